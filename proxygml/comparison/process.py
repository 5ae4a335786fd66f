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
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext

import torch

from proxygml.comparison.cell import Cell, train_and_judge
from proxygml.errors import RunError, UserError
from proxygml.training.recipe import Recipe

LOADED_LATE = ("faiss", "jsonargparse", "pyarrow.parquet", "sklearn.metrics", "torch._dynamo")
"""What functions that a cell calls would load; the last one takes an optimiser a second."""
PARENT_GONE, UNGUARDED, STOPPED = 3, 4, 128 + signal.SIGTERM  # exit codes


UNGUARDED_MESSAGE = (
    "the script calls proxygml.compare when it is imported, and each of the processes that train imports it: put the "
    'call under `if __name__ == "__main__":`'
)


@dataclass(frozen=True)
class Share:
    """What a process takes of this machine, where several run: threads, and a GPU as CUDA_VISIBLE_DEVICES names it."""

    threads: int
    gpu: str | None = None

    def take(self) -> None:
        """Keep this process to it; before it uses CUDA."""
        torch.set_num_threads(self.threads)
        if self.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu


class CellProcess:
    """A process that trains and judges a cell. It ends with this one, however this one ends.

    Args:
        cell: what to train.
        recipe: how.
        share: of the machine; None for all of it.
    """

    def __init__(self, cell: Cell, recipe: Recipe, share: Share | None = None) -> None:
        self.cell = cell
        context = _context()
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(sender, cell, recipe, share), name=str(cell.key))
        self._process.start()
        sender.close()

    @property
    def sentinel(self) -> int:
        """For multiprocessing.connection.wait: ready when the process has ended."""
        return self._process.sentinel

    def result(self) -> None:
        """Wait for its end.

        Raises:
            UserError: as training raises it; or the process was stopped; or a script calls this without
                `if __name__ == "__main__":` (see end_where_imported).
            RuntimeError: a bug, whose traceback the process has printed.
        """
        error = _received(self._receiver, self.sentinel)
        self._process.join()
        self._receiver.close()
        if error is not None:
            raise error
        if self._process.exitcode:
            raise _failure(self.cell, self._process.exitcode)

    def stop(self) -> None:
        """End it where it still runs, as after Ctrl-C in this one."""
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self._receiver.close()


def train_in_process(cell: Cell, recipe: Recipe) -> None:
    """Train and judge a cell in a process of its own, and wait for it.

    Raises:
        UserError: as CellProcess.result.
        RuntimeError: likewise.
    """
    process = CellProcess(cell, recipe)
    try:
        process.result()
    finally:
        process.stop()


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


def _work(sender: Connection, cell: Cell, recipe: Recipe, share: Share | None) -> None:
    """What the process does: train, and send back an error that is the user's to fix."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which stops this process
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if share is not None:
        share.take()
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
