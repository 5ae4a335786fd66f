"""What only a GPU shows: the loss beside its products and a copy of its bytes, NCCL, evaluation, training, CUDA graphs.

`python -m benchmarks.gpu --out FOLDER` writes tables.json and tables.md; `--quick` takes small sizes, on a CPU too.
benchmarks/gpu.sh runs it together with the GPU tests.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from benchmarks.cases import CUB, MILLION, SOP, SOP_REGULARISED, Case, batch
from benchmarks.evaluation import floor as evaluation_floor
from benchmarks.evaluation import make_inputs, ours, sop_labels
from benchmarks.loss import dense, floor
from benchmarks.loss import ours as our_loss
from benchmarks.measure import MIB, Work, console, default_device, machine, side_by_side, synchronize, table
from proxygml import ProxyGMLLoss

DEVICE = default_device()
ON_GPU = DEVICE.type == "cuda"
DENSE_PROXIES = 20_000  # beyond, the dense computation's one-hot matrices take gigabytes
BACKBONES = ("mobilenetv2_100", "resnet50", "vit_small_patch16_224")


@dataclass
class Results:
    """A table of figures, to be printed and kept."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def show(self) -> None:
        """Print it."""
        shown = table(self.title, self.columns)
        for row in self.rows:
            shown.add_row(*row)
        console.print(shown)

    def markdown(self) -> str:
        """The same in Markdown."""
        lines = [f"**{self.title}**", "", "| " + " | ".join(self.columns) + " |", "|---" * len(self.columns) + "|"]
        return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in self.rows]) + "\n"


def microseconds(seconds: float) -> str:
    """A time as a table shows it."""
    return f"{1e6 * seconds:,.0f}"


# The loss -------------------------------------------------------------------------------------------------------------


def loss_table(cases: list[Case], seconds: float) -> Results:
    """Forward and backward, launched one by one and replayed as a CUDA graph, beside what they cannot go below."""
    result = Results(
        "Loss forward and backward, microseconds",
        ["shape", "ours", "ours, CUDA graph", "products", "products, CUDA graph", "copy of the bytes", "dense", "MiB"],
    )
    for case in cases:
        works: dict[str, Work] = {"ours": our_loss(case, DEVICE), "products": floor(case, DEVICE)}
        works["copy"] = copy_of_bytes(case)
        if case.C * case.N <= DENSE_PROXIES and case.name != SOP_REGULARISED.name:
            works["dense"] = dense(case, DEVICE)
        if ON_GPU:
            works |= {"ours, graph": replayed(works["ours"]), "products, graph": replayed(works["products"])}
        taken = side_by_side(works, seconds)
        names = ("ours", "ours, graph", "products", "products, graph", "copy", "dense")
        figures = [microseconds(taken[name]) if name in taken else "-" for name in names]
        result.rows.append([f"{case.name or 'million'}: {case.symbols}", *figures, peak_of(works["ours"])])
    return result


def copy_of_bytes(case: Case) -> Work:
    """Read the proxies and write as many numbers, and the similarities twice: the fewest bytes that a step moves."""
    proxies = torch.randn(case.C * case.N, case.D, device=DEVICE)
    similarity = torch.randn(case.M, case.C * case.N, device=DEVICE)
    targets = torch.empty_like(proxies), torch.empty_like(similarity)

    def work() -> None:
        targets[0].copy_(proxies)
        targets[1].copy_(similarity)

    return work


def replayed(work: Work) -> Work:
    """The work as a CUDA graph: its kernels without the time to launch each."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def peak_of(work: Work) -> str:
    """Device memory that a piece of work takes beyond what is there already, in MiB."""
    if not ON_GPU:
        return "-"
    work()
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    synchronize()
    return f"{(torch.cuda.max_memory_allocated() - before) / MIB:,.0f}"


def sharded_table(cases: list[Case], seconds: float) -> Results:
    """What the exchanges of the sharded loss cost where there is nobody to exchange with."""
    result = Results("Loss sharded over one process, microseconds", ["shape", "unsharded", "sharded", "backend"])
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29517")
    backend = "nccl" if ON_GPU else "gloo"
    dist.init_process_group(backend, rank=0, world_size=1)
    for case in cases:
        loss = ProxyGMLLoss(
            case.C, case.D, case.N, case.r, case.weight, case.scale, process_group=dist.group.WORLD, device=DEVICE
        )
        taken = side_by_side({"unsharded": our_loss(case, DEVICE), "sharded": step(loss, case)}, seconds)
        result.rows.append([case.symbols, microseconds(taken["unsharded"]), microseconds(taken["sharded"]), backend])
    dist.destroy_process_group()
    return result


def step(loss: nn.Module, case: Case) -> Work:
    """Forward and backward of a loss."""
    embeddings, labels = batch(case, DEVICE)

    def work() -> None:
        loss.zero_grad()
        embeddings.grad = None
        loss(embeddings, labels).backward()

    return work


# Evaluation -----------------------------------------------------------------------------------------------------------


def evaluation_table(sizes: list[int]) -> Results:
    """Recall@1..1000 and MAP@R of embeddings like SOP's, beside one similarity product."""
    result = Results(
        "Evaluation, 512 dimensions, seconds", ["images", "one product", "float32", "tf32", "bfloat16", "MiB"]
    )
    for count in sizes:
        inputs = make_inputs(sop_labels(count))
        works: dict[str, Work] = {"product": evaluation_floor(inputs), "float32": partial(ours, inputs)}
        if ON_GPU:
            works |= {"tf32": partial(ours, inputs, "tf32"), "bfloat16": partial(ours, inputs, "bfloat16")}
        taken = side_by_side(works, seconds=0, rounds=1 if count > 100_000 else 3)
        names = ("product", "float32", "tf32", "bfloat16")
        figures = [f"{taken[name]:.3f}" if name in taken else "-" for name in names]
        result.rows.append([f"{count:,}", *figures, peak_of(works["float32"])])
    return result


# Training -------------------------------------------------------------------------------------------------------------


def training_table(backbones: tuple[str, ...], images: int, size: int, seconds: float) -> Results:
    """Images a second of whole training steps on images that are on the device already, and the loss's share of it."""
    result = Results(
        f"Training, {images} images of {size} pixels a step, C 11,318, N 1, D 512",
        ["backbone", "precision", "images/s", "loss's share", "MiB"],
    )
    for name in backbones:
        for precision in ("fp32", "bf16"):
            work, loss_work = training_step(name, precision, images, size)
            taken = side_by_side({"step": work, "loss": loss_work}, seconds, rounds=3)
            share = f"{100 * taken['loss'] / taken['step']:.1f}%"
            result.rows.append([name, precision, f"{images / taken['step']:,.0f}", share, peak_of(work)])
    return result


def training_step(name: str, precision: str, count: int, size: int) -> tuple[Work, Work]:
    """A step of network, loss and optimiser; and the loss's part alone."""
    network = timm.create_model(name, num_classes=SOP.D).to(DEVICE).to(memory_format=torch.channels_last).train()
    criterion = ProxyGMLLoss(SOP.C, SOP.D, SOP.N, SOP.r, 0.0, SOP.scale, device=DEVICE)
    optimizer = torch.optim.Adam([*network.parameters(), *criterion.parameters()], lr=1e-4, fused=ON_GPU)
    images = torch.randn(count, 3, size, size, device=DEVICE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(SOP.C, (count,), device=DEVICE)
    fixed = torch.randn(count, SOP.D, device=DEVICE, requires_grad=True)

    def work() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
            embeddings = network(images)
        criterion(embeddings, labels).backward()
        optimizer.step()

    def loss_work() -> None:
        criterion.zero_grad()
        fixed.grad = None
        criterion(fixed, labels).backward()

    return work, loss_work


def graph_table(case: Case, seconds: float) -> Results:
    """A whole step of a linear layer, the loss and fused Adam: launched one by one, and as one CUDA graph."""
    result = Results("A head's training step, microseconds", ["shape", "launched", "CUDA graph"])
    layer = nn.Linear(1280, case.D, device=DEVICE)
    loss = ProxyGMLLoss(case.C, case.D, case.N, case.r, case.weight, case.scale, device=DEVICE)
    parameters = [*layer.parameters(), *loss.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=ON_GPU, capturable=ON_GPU)
    features = torch.randn(case.M, 1280, device=DEVICE)
    labels = torch.randint(case.C, (case.M,), device=DEVICE)

    def work() -> None:
        optimizer.zero_grad()
        loss(F.normalize(layer(features)), labels).backward()
        optimizer.step()

    works: dict[str, Work] = {"launched": work}
    if ON_GPU:
        works["graph"] = replayed(work)
    taken = side_by_side(works, seconds)
    figures = [microseconds(taken[name]) if name in taken else "-" for name in ("launched", "graph")]
    result.rows.append([case.symbols, *figures])
    return result


def tables(quick: bool) -> list[Callable[[], Results]]:
    """Every table, in the order of its worth should the time run out."""
    if quick:
        small = [replace(CUB, C=20), replace(SOP, C=500)]
        return [
            lambda: loss_table(small, 0.2),
            lambda: sharded_table(small, 0.2),
            lambda: evaluation_table([2_000]),
            lambda: training_table(BACKBONES[:1], 2, 64, 0.2),
            lambda: graph_table(small[0], 0.2),
        ]
    million = replace(MILLION, name="million")
    return [
        lambda: loss_table([CUB, SOP, SOP_REGULARISED, million, replace(million, r=0.05)], 3),
        lambda: sharded_table([CUB, SOP, million, replace(million, r=0.05)], 2),
        lambda: evaluation_table([60_502, 500_000]),
        lambda: training_table(BACKBONES, 128, 224, 3),
        lambda: graph_table(replace(CUB, M=128), 2),
    ]


def main() -> None:
    """Print every table, and keep them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for tables.json and tables.md")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    console.print(machine(DEVICE))
    done: list[Results] = []
    for make in tables(arguments.quick):
        start = time.perf_counter()
        done.append(make())
        done[-1].show()
        console.print(f"{time.perf_counter() - start:.0f} s")
        if ON_GPU:
            torch.cuda.empty_cache()
        content = {"machine": machine(DEVICE), "tables": [asdict(results) for results in done]}
        (arguments.out / "tables.json").write_text(json.dumps(content, indent=2) + "\n")
        pages = "\n".join(results.markdown() for results in done)
        (arguments.out / "tables.md").write_text(f"{machine(DEVICE)}\n\n{pages}")


if __name__ == "__main__":
    main()
