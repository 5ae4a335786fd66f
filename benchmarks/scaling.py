"""`python -m benchmarks.scaling`: how a step of the loss grows with classes, proxies, batch and neighbours.

Also a whole training step of a million classes, optimiser included, in its variants.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from benchmarks.cases import MILLION, Case, batch
from benchmarks.loss import floor, ours, peak
from benchmarks.measure import (
    Work,
    console,
    default_device,
    machine,
    mebibytes,
    milliseconds,
    peak_memory,
    side_by_side,
    table,
)
from proxygml import ProxyGMLLoss
from proxygml.loss.lazy_adam import LazyAdam

BASE = Case("", 32, 128, 10_000, 1, 0.05, 0.0, 20.0)


def grow(title: str, cases: list[Case], seconds: float) -> None:
    """Print a table with a row a case."""
    device = default_device()
    rows = table(title, ["", "ours", "floor", "ours / floor", "peak memory"])
    for case in cases:
        taken = side_by_side({"ours": ours(case, device), "floor": floor(case, device)}, seconds, rounds=3)
        ratio = f"{taken['ours'] / taken['floor']:.2f}"
        rows.add_row(
            case.symbols,
            milliseconds(taken["ours"]),
            milliseconds(taken["floor"]),
            ratio,
            mebibytes(peak("ours", case)),
        )
    console.print(rows)


def training_step(case: Case, dtype: torch.dtype, sparse: bool) -> Work:
    """Forward, backward and the optimiser's step."""
    device = default_device()
    loss = ProxyGMLLoss(case.C, case.D, case.N, case.r, case.weight, case.scale, sparse=sparse, dtype=dtype).to(device)
    embeddings, labels = batch(case, device)
    optimizer: torch.optim.Optimizer
    if sparse:
        optimizer = LazyAdam(loss.parameters(), lr=0.3, eps=0.01, weight_decay=1e-4)
    else:
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.3, eps=0.01, weight_decay=1e-4, fused=True)

    def work() -> None:
        optimizer.zero_grad()
        loss(embeddings, labels).backward()
        optimizer.step()

    return work


def million(seconds: float) -> None:
    """Print the training steps of a million classes."""
    variants = {
        "float32, dense gradients, Adam": (torch.float32, False),
        "float32, sparse gradients, LazyAdam": (torch.float32, True),
        "bfloat16, sparse gradients, LazyAdam": (torch.bfloat16, True),
    }
    for neighbor_ratio in (0.0001, 0.001, 0.05):
        case = replace(MILLION, r=neighbor_ratio)
        rows = table(f"A training step, optimiser included: {case.symbols}", ["", "time", "peak memory beyond proxies"])
        steps = {name: training_step(case, *variant) for name, variant in variants.items()}
        taken = side_by_side(steps, seconds)
        del steps
        for name, variant in variants.items():
            rows.add_row(name, milliseconds(taken[name]), mebibytes(peak_memory(training_step, case, *variant)))
        console.print(rows)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases")
    quick = parser.parse_args().quick
    seconds = 1.0 if quick else 3.0
    console.print(machine(default_device()))
    classes = (100, 1_000, 10_000, 100_000) + (() if quick else (1_000_000,))
    grow("Classes", [replace(BASE, C=count) for count in classes], seconds)
    grow("Proxies per class", [replace(BASE, C=1_000, N=count) for count in (1, 2, 4, 8, 16, 32)], seconds)
    grow("Batch size", [replace(BASE, M=count) for count in (32, 64, 128, 256, 512)], seconds)
    grow("Neighbours", [replace(BASE, r=ratio) for ratio in (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)], seconds)
    grow("The regulariser", [replace(BASE, weight=0.3, C=count) for count in (100, 1_000, 5_000)], seconds)
    if not quick:
        million(seconds)


if __name__ == "__main__":
    main()
