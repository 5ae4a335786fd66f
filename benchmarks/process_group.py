"""Processes of one thread each that form a group of torch.distributed and work when they are asked to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from benchmarks.measure import Work, resident


class ProcessGroup:
    """Processes that run the same work together, on the CPU.

    Args:
        processes: how many.
        prepare: a function of a module that makes the inputs in each process and returns the work.
        folder: where the processes meet; of this group alone.
        arguments: what `prepare` takes, picklable.
    """

    def __init__(self, processes: int, prepare: Callable[..., Work], folder: Path, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        ends = [context.Pipe() for _ in range(processes)]
        self._ends = [ours for ours, _ in ends]
        self._processes = [
            context.Process(target=_serve, args=(theirs, rank, processes, prepare, folder, arguments))
            for rank, (_, theirs) in enumerate(ends)
        ]
        for process in self._processes:
            process.start()
        self._receive()

    def work(self) -> None:
        """Do the work once, on all processes."""
        self._send("work")
        self._receive()

    def costs(self) -> tuple[int, float]:
        """What the work took in the process that took most: bytes of memory beyond its inputs, seconds of a CPU.

        The seconds are of the quickest of all times. On a machine that does other work too, they say more than a clock.
        """
        self._send("costs")
        costs = self._receive()
        return max(memory for memory, _ in costs), max(seconds for _, seconds in costs)

    def stop(self) -> None:
        """End the processes."""
        self._send("stop")
        for process in self._processes:
            process.join()

    def _send(self, request: str) -> None:
        for end in self._ends:
            end.send(request)

    def _receive(self) -> list[tuple[int, float]]:
        return [end.recv() for end in self._ends]


def _serve(
    end: Connection, rank: int, size: int, prepare: Callable[..., Work], folder: Path, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    work = prepare(*arguments)
    torch.ones(64, 64) @ torch.ones(64, 64)  # thread pools and their buffers are nobody's cost
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    end.send((0, 0.0))
    least = math.inf
    while (request := end.recv()) != "stop":
        if request == "work":
            start = time.process_time()
            work()
            least = min(least, time.process_time() - start)
        end.send((max(0, resident("VmHWM") - before), least))
    dist.destroy_process_group()
