"""The cells of a comparison in processes of this machine, several at a time."""

import os
from collections import deque
from multiprocessing.connection import wait
from typing import Self

import torch

from proxygml.comparison.cell import Cell
from proxygml.comparison.process import CellProcess, Share
from proxygml.comparison.row import Key
from proxygml.comparison.runner import Runner
from proxygml.comparison.tasks import run_tasks
from proxygml.errors import UserError
from proxygml.training.recipe import Recipe


def run_side_by_side(runner: Runner, processes: "Processes") -> None:
    """Train and judge all that is left of a comparison in these processes.

    Raises:
        UserError: a method cannot be trained; the trials and cells that were finished by then are kept.
    """
    runner.start()
    run_tasks(runner, processes)


class Processes:
    """Processes of this machine, until the block that they are made for ends; see tasks.Workers.

    They divide the processors. Where there are several GPUs, each process has one; they are taken in turn. On a GPU a
    process trains cell after cell, of one comparison after the other: it takes most of a minute to load its kernels,
    many times a short epoch.

    Args:
        parallel: how many.

    Raises:
        UserError: it is below 1.
    """

    def __init__(self, parallel: int) -> None:
        if parallel < 1:
            raise UserError(f"--parallel is {parallel}, but must be 1 or more")
        gpus = visible_gpus()
        threads = max(1, torch.get_num_threads() // parallel)  # those that one cell alone would have
        self._free = [Share(threads, gpus[place % len(gpus)] if len(gpus) > 1 else None) for place in range(parallel)]
        self._reuse = bool(gpus)
        self._waiting: deque[tuple[Cell, Recipe]] = deque()
        self._running: list[CellProcess] = []
        self._idle: list[CellProcess] = []
        self._shares: dict[CellProcess, Share] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

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
