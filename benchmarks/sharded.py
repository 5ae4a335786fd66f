"""`python -m benchmarks.sharded`: the loss with its classes divided over processes of one thread each.

Beside it the same batch on one process, and the replicated way of data parallelism: every process computes the whole
loss of the gathered batch, and the gradients of samples and proxies are averaged. Each group of processes does a step
in turn, so that a slow moment strikes all alike.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from benchmarks.cases import CUB, MILLION, SOP, SOP_REGULARISED, Case
from benchmarks.measure import console, machine, mebibytes, milliseconds, resident, side_by_side, table
from proxygml import ProxyGMLLoss

MOVED = ("all_reduce", "all_gather_into_tensor", "broadcast")


class Group:
    """Processes of one thread each that do a step of the loss when they are told to.

    Args:
        case: the loss and the global batch, which is divided evenly.
        processes: how many.
        replicated: whether each process holds all proxies instead of those of its own classes.
        folder: where the processes meet.
    """

    def __init__(self, case: Case, processes: int, replicated: bool, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        ends = [context.Pipe() for _ in range(processes)]
        self._ends = [ours for ours, _ in ends]
        self._processes = [
            context.Process(target=_serve, args=(theirs, rank, processes, case, replicated, folder))
            for rank, (_, theirs) in enumerate(ends)
        ]
        for process in self._processes:
            process.start()
        for end in self._ends:
            end.recv()

    def step(self) -> None:
        """Forward and backward on all processes."""
        for end in self._ends:
            end.send("step")
        for end in self._ends:
            end.recv()

    def costs(self) -> tuple[int, int, int]:
        """Bytes of the largest process, those it had before the loss, and the numbers that a step exchanges."""
        for end in self._ends:
            end.send("costs")
        costs = [end.recv() for end in self._ends]
        return *max((memory, before) for memory, before, _ in costs), costs[0][2]

    def stop(self) -> None:
        """End the processes."""
        for end in self._ends:
            end.send("stop")
        for process in self._processes:
            process.join()


def _serve(end: Connection, rank: int, processes: int, case: Case, replicated: bool, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    before = resident("VmRSS")
    step, counter = _make_step(rank, processes, case, replicated), _count_moved()
    held = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    end.send("ready")
    while (told := end.recv()) != "stop":
        if told == "step":
            counter.clear()
            step()
            end.send("done")
        else:
            end.send((max(resident("VmHWM"), held), before, sum(counter)))
    dist.destroy_process_group()


def _make_step(rank: int, processes: int, case: Case, replicated: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    group = None if replicated else dist.group.WORLD
    loss = ProxyGMLLoss(case.C, case.D, case.N, case.r, case.weight, case.scale, process_group=group)
    embeddings, labels = torch.randn(case.M, case.D), torch.randint(case.C, (case.M,))
    own = slice(rank * case.M // processes, (rank + 1) * case.M // processes)
    samples = embeddings[own].clone().requires_grad_()

    def step() -> None:
        loss.zero_grad()
        samples.grad = None
        if not replicated:
            loss(samples, labels[own]).backward()
            return
        everything = samples.new_empty(case.M, case.D)
        dist.all_gather_into_tensor(everything, samples.detach())
        loss(everything.requires_grad_(), labels).backward()
        assert everything.grad is not None and loss.proxies.grad is not None
        dist.all_reduce(everything.grad)
        dist.all_reduce(loss.proxies.grad)

    return step


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


def show(case: Case, numbers: tuple[int, ...], replicated: tuple[int, ...], seconds: float) -> None:
    """A table with a row for each number of processes, sharded, and for some of them replicated."""
    groups: dict[str, Group] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, counts in (("sharded", numbers), ("replicated", replicated)):
            for count in counts:
                name = f"{kind}, {count}"
                place = Path(folder) / name
                place.mkdir()
                groups[name] = Group(case, count, kind == "replicated", place)
        taken = side_by_side({name: group.step for name, group in groups.items()}, seconds, rounds=5)
        one = f"sharded, {numbers[0]}"
        columns = ["processes", "a step", "times faster", "memory of a process", "beside PyTorch", "numbers exchanged"]
        columns.append("2 M D + 1,100 M")
        result = table(f"One thread a process, global batch: {case.symbols}", columns)
        formula = 2 * case.M * case.D + 1100 * case.M
        for name, group in groups.items():
            memory, before, moved = group.costs()
            faster = f"{taken[one] / taken[name]:.2f}"
            held = mebibytes(memory), mebibytes(memory - before)
            result.add_row(name, milliseconds(taken[name]), faster, *held, f"{moved:,}", f"{formula:,}")
        for group in groups.values():
            group.stop()
    console.print(result)


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharded", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 and 100,000 classes on one and two processes")
    parser.add_argument("--classes", type=int, nargs="+", help="numbers of classes, instead of 10,000 to 1,000,000")
    parser.add_argument("--small", action="store_true", help="the shapes of CUB-200-2011 and Stanford Online Products")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console.print(machine(torch.device("cpu")))
    if arguments.small:
        for case in (CUB, SOP, SOP_REGULARISED):
            show(case, (1, 2), (2,), seconds=10)
        return
    classes = arguments.classes or ((10_000, 100_000) if arguments.quick else (10_000, 100_000, 1_000_000))
    for count in classes:
        numbers = (1, 2) if arguments.quick else (1, 2, 4)
        show(replace(MILLION, C=count), numbers, (2,), seconds=3 if arguments.quick else 10)


if __name__ == "__main__":
    main()
