"""`python -m benchmarks.sharded`: the loss with its classes divided over processes of one thread each.

Beside it the same batch on one process, and the replicated way of data parallelism: every process computes the whole
loss of the gathered batch, and the gradients of samples and proxies are averaged. Each group of processes does a step
in turn, so that a slow moment strikes all alike.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.cases import CUB, MILLION, SOP, SOP_REGULARISED, Case
from benchmarks.measure import Work, console, machine, mebibytes, milliseconds, side_by_side, table
from benchmarks.process_group import ProcessGroup
from proxygml import ProxyGMLLoss


def make_step(case: Case, replicated: bool) -> Work:
    """A step of the loss in this process, which takes its part of the global batch.

    Args:
        case: the loss and the global batch.
        replicated: whether each process holds all proxies instead of those of its own classes.
    """
    torch.manual_seed(0)
    rank, processes = dist.get_rank(), dist.get_world_size()
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


def show(case: Case, numbers: tuple[int, ...], replicated: tuple[int, ...], seconds: float) -> None:
    """A table with a row for each number of processes, sharded, and for some of them replicated."""
    groups: dict[str, ProcessGroup] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, counts in (("sharded", numbers), ("replicated", replicated)):
            for count in counts:
                name = f"{kind}, {count}"
                place = Path(folder) / name
                place.mkdir()
                groups[name] = ProcessGroup(count, make_step, place, case, kind == "replicated")
        taken = side_by_side({name: group.work for name, group in groups.items()}, seconds, rounds=5)
        one = f"sharded, {numbers[0]}"
        columns = ["processes", "a step", "times faster", "memory of a process", "beside PyTorch", "numbers exchanged"]
        columns.append("2 M D + 1,100 M")
        result = table(f"One thread a process, global batch: {case.symbols}", columns)
        formula = 2 * case.M * case.D + 1100 * case.M
        for name, group in groups.items():
            cost = max(group.costs(), key=lambda cost: cost.peak)
            faster = f"{taken[one] / taken[name]:.2f}"
            held = mebibytes(cost.peak), mebibytes(cost.peak - cost.idle)
            result.add_row(name, milliseconds(taken[name]), faster, *held, f"{cost.moved:,}", f"{formula:,}")
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
