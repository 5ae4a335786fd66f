"""Processes of one thread each that form a group of torch.distributed and work when they are asked to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from benchmarks.measure import Work, resident

MOVED = ("all_reduce", "all_gather_into_tensor", "broadcast")


class Cost(NamedTuple):
    """What the work takes in one process."""

    idle: int
    """Bytes of memory before the inputs were made."""
    held: int
    """Bytes with the inputs, before the first work."""
    peak: int
    """Bytes at most since, and at least `held`."""
    seconds: float
    """Of a CPU, the least of all works: on a machine that does other work too, it says more than a clock."""
    moved: int
    """Numbers that the last work exchanged with other processes."""


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

    def costs(self) -> list[Cost]:
        """What the work took in each process."""
        self._send("costs")
        return self._receive()

    def stop(self) -> None:
        """End the processes."""
        self._send("stop")
        for process in self._processes:
            process.join()

    def _send(self, request: str) -> None:
        for end in self._ends:
            end.send(request)

    def _receive(self) -> list[Cost]:
        return [end.recv() for end in self._ends]


def _serve(
    end: Connection, rank: int, size: int, prepare: Callable[..., Work], folder: Path, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    torch.ones(64, 64) @ torch.ones(64, 64)  # thread pools and their buffers are nobody's cost
    idle, moved = resident("VmRSS"), _count_moved()
    work = prepare(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    held, least = resident("VmRSS"), math.inf
    end.send(Cost(idle, held, held, 0.0, 0))
    while (request := end.recv()) != "stop":
        if request == "work":
            moved.clear()
            start = time.process_time()
            work()
            least = min(least, time.process_time() - start)
        end.send(Cost(idle, held, max(held, resident("VmHWM")), least, sum(moved)))
    dist.destroy_process_group()


def _count_moved() -> list[int]:
    """The numbers that each exchange is about, as they happen."""
    moved: list[int] = []

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            moved.append(tensor.numel())
            return function(tensor, *arguments, **options)

        return call

    for name in MOVED:
        setattr(dist, name, counting(getattr(dist, name)))
    return moved
