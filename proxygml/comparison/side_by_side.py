"""The cells of a comparison in processes of this machine, several at a time."""

import os
from collections import deque
from multiprocessing.connection import wait

import torch

from proxygml.comparison.cell import Cell
from proxygml.comparison.process import CellProcess, Share
from proxygml.comparison.row import Key
from proxygml.comparison.runner import Runner
from proxygml.comparison.tasks import run_tasks
from proxygml.errors import UserError
from proxygml.training.recipe import Recipe


def run_side_by_side(runner: Runner, parallel: int) -> None:
    """Train and judge all that is left of a comparison, so many cells at a time.

    They divide the processors. Where there are several GPUs, each cell has one; they are taken in turn.

    Raises:
        UserError: `parallel` is below 1, or a method cannot be trained; the trials and cells that were finished by then
            are kept.
    """
    if parallel < 1:
        raise UserError(f"--parallel is {parallel}, but must be 1 or more")
    runner.start()
    run_tasks(runner, _Processes(parallel))


class _Processes:
    """Processes of this machine; see tasks.Workers.

    On a GPU a process trains cell after cell: it takes most of a minute to load its kernels, many times a short epoch.
    """

    def __init__(self, parallel: int) -> None:
        gpus = visible_gpus()
        threads = max(1, torch.get_num_threads() // parallel)  # those that one cell alone would have
        self._free = [Share(threads, gpus[place % len(gpus)] if len(gpus) > 1 else None) for place in range(parallel)]
        self._reuse = bool(gpus)
        self._waiting: deque[tuple[Cell, Recipe]] = deque()
        self._running: list[CellProcess] = []
        self._idle: list[CellProcess] = []
        self._shares: dict[CellProcess, Share] = {}

    def start(self, cell: Cell, recipe: Recipe) -> None:
        self._waiting.append((cell, recipe))
        self._fill()

    def ended(self) -> Key:
        ready = wait([sign for process in self._running for sign in process.signs])
        process = next(process for process in self._running if any(sign in ready for sign in process.signs))
        process.result()
        key = process.cell.key  # before it starts with another
        self._running.remove(process)
        if self._reuse:
            self._idle.append(process)
        else:
            process.end()
            self._free.append(self._shares.pop(process))
        self._fill()
        return key

    def stop(self) -> None:
        self._waiting.clear()
        for process in self._shares:  # all, before waiting for one: a second Ctrl-C may end the waiting
            process.terminate()
        for process in self._shares:
            process.end()

    def _fill(self) -> None:
        while self._waiting and (self._idle or self._free):
            process = self._idle.pop() if self._idle else self._new()
            process.start(*self._waiting.popleft())
            self._running.append(process)

    def _new(self) -> CellProcess:
        share = self._free.pop()
        process = CellProcess(share)
        self._shares[process] = share
        return process


def visible_gpus() -> list[str]:
    """The GPUs of this process as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[: torch.cuda.device_count()] if named else [*map(str, range(torch.cuda.device_count()))]
