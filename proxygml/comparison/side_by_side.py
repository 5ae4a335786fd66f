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
    """Processes of this machine; see tasks.Workers."""

    def __init__(self, parallel: int) -> None:
        gpus = visible_gpus()
        threads = max(1, (os.cpu_count() or 1) // parallel)
        self._free = [Share(threads, gpus[place % len(gpus)] if len(gpus) > 1 else None) for place in range(parallel)]
        self._waiting: deque[tuple[Cell, Recipe]] = deque()
        self._running: list[tuple[CellProcess, Share]] = []

    def start(self, cell: Cell, recipe: Recipe) -> None:
        self._waiting.append((cell, recipe))
        self._fill()

    def ended(self) -> Key:
        places = {process.sentinel: place for place, (process, _) in enumerate(self._running)}
        first = min(places[sentinel] for sentinel in wait(list(places)) if isinstance(sentinel, int))
        process, share = self._running.pop(first)
        self._free.append(share)
        process.result()
        self._fill()
        return process.cell.key

    def stop(self) -> None:
        self._waiting.clear()
        for process, _ in self._running:
            process.stop()

    def _fill(self) -> None:
        while self._waiting and self._free:
            cell, recipe = self._waiting.popleft()
            share = self._free.pop()
            self._running.append((CellProcess(cell, recipe, share), share))


def visible_gpus() -> list[str]:
    """The GPUs of this process as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[: torch.cuda.device_count()] if named else [*map(str, range(torch.cuda.device_count()))]
