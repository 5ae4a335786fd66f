"""Processes that train cells.

On a CPU, each cell has one of its own, so that the peak memory is that of the cell alone, and not of cells before it.
On Linux these processes are forked from one that has only loaded the modules, which is faster than loading them anew.
"""

import gc
import inspect
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
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
    """A process that trains and judges cells, one at a time. It ends with this one, however this one ends.

    Args:
        share: of the machine; None for all of it.
    """

    cell: Cell
    """What it trains, or trained last."""

    def __init__(self, share: Share | None = None) -> None:
        context = _context()
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, share))
        self._process.start()
        theirs.close()

    def start(self, cell: Cell, recipe: Recipe) -> None:
        """Train and judge a cell; none is being trained."""
        self.cell = cell
        with suppress(OSError):  # where the process has died, which `result` says
            self._connection.send((cell, recipe))

    @property
    def signs(self) -> tuple[Connection, int]:
        """For multiprocessing.connection.wait: one of them is ready when the cell is done, or the process has died."""
        return self._connection, self._process.sentinel

    def result(self) -> None:
        """Wait for the end of the cell.

        Raises:
            UserError: as training raises it; or the process was stopped; or a script calls this without
                `if __name__ == "__main__":` (see end_where_imported).
            RuntimeError: a bug, whose traceback the process has printed.
        """
        wait(self.signs)
        try:
            error: Exception | None = self._connection.recv()
        except (EOFError, ConnectionError):  # it died
            self._process.join()
            raise _failure(self.cell, self._process.exitcode or 0) from None
        if error is not None:
            raise error

    def end(self) -> None:
        """Let it end, after its cell."""
        self._connection.close()
        self._process.join()

    def terminate(self) -> None:
        """Let it end at once, as after Ctrl-C in this process; `end` waits for that."""
        if self._process.is_alive():
            self._process.terminate()


def train_in_process(cell: Cell, recipe: Recipe) -> None:
    """Train and judge a cell in a process of its own, and wait for it.

    Raises:
        UserError: as CellProcess.result.
        RuntimeError: likewise.
    """
    process = CellProcess()
    try:
        process.start(cell, recipe)
        process.result()
        process.end()  # by itself, and not by the signal below
    finally:
        process.terminate()
        process.end()


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


def _failure(cell: Cell, code: int) -> Exception:
    if code == UNGUARDED:
        return UserError(UNGUARDED_MESSAGE)
    number = signal.SIGTERM if code == STOPPED else -code
    if number <= 0:
        return RuntimeError(f"the process that trained {cell.key} failed with status {code}: its traceback is above")
    name = signal.Signals(number).name
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return RunError(f"the process that trained {cell.key} was stopped by {name}{hint}: the same command continues it")


def _work(connection: Connection, share: Share | None) -> None:
    """What the process does: train each cell that comes, and send back None, or an error that is the user's to fix."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which stops this process
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Or it would start its loaders' workers as it was started, each of which would load PyTorch anew, every epoch.
    multiprocessing.set_start_method(None, force=True)
    if share is not None:
        share.take()
    for cell, recipe in _received(connection):
        connection.send(_trained(cell, recipe))


def _received(connection: Connection) -> Iterator[tuple[Cell, Recipe]]:
    """The cells that come, until there are no more."""
    with suppress(EOFError):
        while True:
            yield connection.recv()


def _trained(cell: Cell, recipe: Recipe) -> UserError | OSError | None:
    try:
        train_and_judge(cell, recipe)
    except (UserError, OSError) as error:
        return sendable(error)
    finally:
        if torch.cuda.is_available():  # others may share the GPU
            gc.collect()
            torch.cuda.empty_cache()
    return None


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
