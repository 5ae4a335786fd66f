"""A process of its own for each cell.

So the peak memory is that of the cell alone, and not of cells before it. On Linux these processes are forked from one
that has only loaded the modules, which is faster than loading them for each cell.
"""

import inspect
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import suppress
from copy import copy
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext

from proxygml.comparison.cell import Cell, train_and_judge
from proxygml.errors import RunError, UserError
from proxygml.training.recipe import Recipe

LOADED_LATE = ("faiss", "jsonargparse", "pyarrow.parquet", "sklearn.metrics")  # by functions that a cell calls
PARENT_GONE, UNGUARDED, STOPPED = 3, 4, 128 + signal.SIGTERM  # exit codes


UNGUARDED_MESSAGE = (
    "the script calls proxygml.compare when it is imported, and each of the processes that train imports it: put the "
    'call under `if __name__ == "__main__":`'
)


def train_in_process(cell: Cell, recipe: Recipe) -> None:
    """Train and judge a cell in a process of its own, and wait for it.

    The process ends with this one, however this one ends.

    Raises:
        UserError: as training raises it; or the process was stopped; or a script calls this without
            `if __name__ == "__main__":` (see end_where_imported).
        RuntimeError: a bug, whose traceback the process has printed.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, cell, recipe), name=str(cell.key))
    process.start()
    sender.close()
    try:
        error = _received(receiver, process.sentinel)
        process.join()
    finally:
        if process.is_alive():  # Ctrl-C in this one
            process.terminate()
            process.join()
        receiver.close()
    if error is not None:
        raise error
    if process.exitcode:
        raise _failure(cell, process.exitcode)


def end_where_imported() -> None:
    """End this process where it is a cell's process that is only importing the script that started it.

    Python imports the script again in each process that it starts. A script that calls `compare` without
    `if __name__ == "__main__":` would start the comparison again there; the first process then raises UserError.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__":
            os._exit(UNGUARDED)
        frame = frame.f_back


def _context() -> ForkServerContext | SpawnContext:
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *LOADED_LATE])
    return context


def _received(receiver: Connection, ended: int) -> Exception | None:
    """The error that the process sends, or None where it ends without one."""
    wait([receiver, ended])
    try:
        error: Exception | None = receiver.recv() if receiver.poll() else None
    except EOFError:
        return None
    return error


def _failure(cell: Cell, code: int) -> Exception:
    if code == UNGUARDED:
        return UserError(UNGUARDED_MESSAGE)
    number = signal.SIGTERM if code == STOPPED else -code
    if number <= 0:
        return RuntimeError(f"the process that trained {cell.key} failed with status {code}: its traceback is above")
    name = signal.Signals(number).name
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return RunError(f"the process that trained {cell.key} was stopped by {name}{hint}: the same command continues it")


def _work(sender: Connection, cell: Cell, recipe: Recipe) -> None:
    """What the process does: train, and send back an error that is the user's to fix."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which stops this process
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        train_and_judge(cell, recipe)
    except (UserError, OSError) as error:
        sender.send(sendable(error))


def sendable(error: UserError | OSError) -> UserError | OSError:
    """The error, or one that says the same where it does not survive the way to another process.

    Python makes an exception anew from the arguments that it was given, which fails where its class needs others.
    """
    with suppress(Exception):  # whatever the class raises
        made_anew = copy(error)  # as the other process does it
        if type(made_anew) is type(error) and str(made_anew) == str(error):
            return error
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename, None, error.filename2)
    return UserError(f"{type(error).__name__}: {error}")


def _stop(*_: object) -> None:
    """End by an exception, so that a progress bar gives the terminal its cursor back."""
    sys.exit(STOPPED)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(PARENT_GONE)
