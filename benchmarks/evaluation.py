"""What the exact evaluation costs, beside the one similarity product that it is made of.

`python -m benchmarks.evaluation` takes some eight minutes on two cores; `--quick` under one, at small sizes.
`--processes 2` compares two processes of one thread each with one instead.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

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
from benchmarks.process_group import ProcessGroup
from proxygml.evaluation.metrics import Evaluation, evaluate
from proxygml.evaluation.retrieval import Precision

Labels = np.ndarray[Any, np.dtype[np.int64]]

SIZE = 512
RECALL_AT = (1, 10, 100, 1000)
SOP_IMAGES, SOP_CLASSES = 60_502, 11_316
SIZES = (5_000, 10_000, 20_000, 40_000, SOP_IMAGES)
PER_CLASS = (2, 5, 10, 30, 100, 250, 500)
FLOOR_ROWS = 1024
PLAIN_LIMIT = (
    10_000  # images; beyond, sorting the rows of the whole matrix takes minutes, then more memory than there is
)
THEIRS_LIMIT = 20_000  # images; beyond, pytorch-metric-learning takes over a minute


@dataclass(frozen=True)
class Inputs:
    """Embeddings (n, 512) of length 1 and their labels, (n,)."""

    embeddings: Tensor
    labels: Labels


def sop_labels(count: int) -> Labels:
    """Labels like those of the SOP test split, or of a part of it: 2 to 12 images a class, 5.35 on average."""
    generator = np.random.default_rng(0)
    classes = round(count * SOP_CLASSES / SOP_IMAGES)
    sizes = 2 + generator.binomial(10, (count / classes - 2) / 10, size=classes)
    while (wanted := count - sizes.sum()) != 0:
        chosen = generator.integers(classes, size=abs(wanted))
        sizes = np.clip(sizes + np.sign(wanted) * np.bincount(chosen, minlength=classes), 2, 12)
    return np.repeat(np.arange(classes), sizes)


def even_labels(count: int, per_class: int) -> Labels:
    """As many images of every class."""
    return np.arange(count) // per_class


def make_inputs(labels: Labels) -> Inputs:
    """A centre for every class, and noise around it of more than twice its length: not every image finds its class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(int(labels.max()) + 1, SIZE, generator=generator)
    noise = torch.randn(len(labels), SIZE, generator=generator)
    embeddings = torch.nn.functional.normalize(centres[torch.from_numpy(labels)] + 2.2 * noise)
    return Inputs(embeddings.to(default_device()), labels)


def floor(inputs: Inputs) -> Work:
    """One similarity product, all images with all, in blocks that overwrite one another."""
    embeddings = inputs.embeddings
    buffer = embeddings.new_empty(FLOOR_ROWS, len(embeddings))

    def work() -> None:
        for rows in torch.split(embeddings, FLOOR_ROWS):
            torch.mm(rows, embeddings.T, out=buffer[: len(rows)])

    return work


def ours(inputs: Inputs, precision: Precision = "float32") -> Evaluation:
    """Recall@1..1000, R-precision and MAP@R with their intervals."""
    return evaluate(inputs.embeddings, inputs.labels, RECALL_AT, nmi=False, precision=precision)


def plain(inputs: Inputs) -> tuple[float, float]:
    """Recall@1 and MAP@R from the whole matrix, every row sorted."""
    similarity = inputs.embeddings @ inputs.embeddings.T
    similarity.fill_diagonal_(-torch.inf)
    labels = torch.from_numpy(inputs.labels).to(similarity.device)
    relevant = labels.bincount()[labels] - 1
    ranking = similarity.argsort(dim=1, descending=True, stable=True)[:, : int(relevant.max())]
    rank = torch.arange(1, ranking.shape[1] + 1, device=labels.device)
    hits = (labels[ranking] == labels[:, None]) & (rank <= relevant[:, None])
    average_precision = (hits * hits.cumsum(dim=1) / rank).sum(dim=1) / relevant
    return hits[:, 0].double().mean().item(), average_precision.double().mean().item()


def theirs(inputs: Inputs) -> dict[str, float]:
    """pytorch-metric-learning's own calculator, over lists that are as long as its MAP@R needs."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator  # noqa: PLC0415

    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r", "r_precision"), k="max_bin_count"
    )
    labels = torch.from_numpy(inputs.labels).to(inputs.embeddings.device)
    figures: dict[str, float] = calculator.get_accuracy(inputs.embeddings, labels)
    return figures


def prepared(count: int) -> Work:
    """Our work alone, for a process that measures its memory."""
    inputs = make_inputs(sop_labels(count))
    ours(make_inputs(sop_labels(500)))  # what loads on first use is nobody's cost
    return partial(ours, inputs)


def show_sizes(sizes: Sequence[int]) -> None:
    """Time and memory over the number of images."""
    columns = [
        "images",
        "floor",
        "ours",
        "ours / floor",
        "peak memory of ours",
        "sorting all",
        "pytorch-metric-learning",
    ]
    result = table(
        f"Recall@1..1000 and MAP@R, {SIZE} dimensions, float32, classes like SOP's (2 to 12 images)", columns
    )
    for count in sizes:
        inputs = make_inputs(sop_labels(count))
        contenders: dict[str, Work] = {"floor": floor(inputs), "ours": partial(ours, inputs)}
        if count <= PLAIN_LIMIT:
            contenders["plain"] = partial(plain, inputs)
        if count <= THEIRS_LIMIT:
            contenders["theirs"] = partial(theirs, inputs)
        seconds = side_by_side(contenders, seconds=0, rounds=2 if count > THEIRS_LIMIT else 3)
        result.add_row(
            f"{count:,}",
            milliseconds(seconds["floor"]),
            milliseconds(seconds["ours"]),
            f"{seconds['ours'] / seconds['floor']:.2f}",
            mebibytes(peak_memory(prepared, count)),
            *(milliseconds(seconds[name]) if name in seconds else "left out" for name in ("plain", "theirs")),
        )
    console.print(result)


def show_agreement(count: int) -> None:
    """The figures that each way finds."""
    inputs = make_inputs(sop_labels(count))
    result = table(f"What they find, {count:,} images", ["", "Recall@1", "MAP@R"])
    found, library = ours(inputs), theirs(inputs)
    result.add_row("ours", f"{found.recall[1].value:.6f}", f"{found.map_at_r.value:.6f}")
    result.add_row("sorting all", *(f"{value:.6f}" for value in plain(inputs)))
    result.add_row(
        "pytorch-metric-learning", f"{library['precision_at_1']:.6f}", f"{library['mean_average_precision_at_r']:.6f}"
    )
    console.print(result)


def show_precisions(count: int) -> None:
    """What a coarser product saves, and what it changes."""
    inputs = make_inputs(sop_labels(count))
    precisions: list[Precision] = ["float32", "bfloat16"]
    if inputs.embeddings.is_cuda:
        precisions.insert(1, "tf32")
    works: dict[str, Work] = {each: partial(ours, inputs, each) for each in precisions}
    seconds = side_by_side({"floor": floor(inputs)} | works, seconds=0, rounds=3)
    result = table(f"Precision of the product, {count:,} images", ["", "time", "/ floor", "Recall@1", "MAP@R"])
    for precision in precisions:
        found = ours(inputs, precision)
        result.add_row(
            precision,
            milliseconds(seconds[precision]),
            f"{seconds[precision] / seconds['floor']:.2f}",
            f"{found.recall[1].value:.6f}",
            f"{found.map_at_r.value:.6f}",
        )
    console.print(result)


def show_class_sizes(count: int, per_class: Sequence[int]) -> None:
    """How the time grows with the images of a class."""
    result = table(
        f"Images per class, {count:,} images", ["images per class", "floor", "ours", "ours / floor", "MAP@R"]
    )
    for size in per_class:
        inputs = make_inputs(even_labels(count, size))
        seconds = side_by_side({"floor": floor(inputs), "ours": partial(ours, inputs)}, seconds=0, rounds=3)
        result.add_row(
            str(size),
            milliseconds(seconds["floor"]),
            milliseconds(seconds["ours"]),
            f"{seconds['ours'] / seconds['floor']:.2f}",
            f"{ours(inputs).map_at_r.value:.4f}",
        )
    console.print(result)


def show_clustering(count: int) -> None:
    """The time of each part when NMI is asked for."""
    inputs = make_inputs(sop_labels(count))
    found = evaluate(inputs.embeddings, inputs.labels, RECALL_AT)
    result = table(f"Parts, {count:,} images, {found.num_classes:,} clusters", ["part", "time"])
    for part, seconds in found.seconds.items():
        result.add_row(part, milliseconds(seconds))
    console.print(result)


def prepared_part(count: int) -> Work:
    """Work on this process's part of the images, for a process of a group."""
    inputs = make_inputs(sop_labels(count))
    part = slice(*(count * (dist.get_rank() + end) // dist.get_world_size() for end in (0, 1)))
    embeddings, labels = inputs.embeddings[part].clone(), inputs.labels[part]
    return partial(evaluate, embeddings, labels, RECALL_AT, nmi=False, process_group=dist.group.WORLD)


def show_processes(count: int, most: int, seconds: float) -> None:
    """Time and memory over the number of processes of one thread each, the images divided evenly."""
    columns = ["processes", "time", "times faster", "CPU time of a process", "times less", "peak memory of a process"]
    result = table(f"Recall@1..1000 and MAP@R over processes of one thread each, {count:,} x {SIZE}", columns)
    numbers = [number for number in (1, 2, 3, 4, 8) if number <= most]
    with tempfile.TemporaryDirectory() as folder:
        groups = {}
        for number in numbers:
            place = Path(folder) / str(number)
            place.mkdir()
            groups[str(number)] = ProcessGroup(number, prepared_part, place, count)
        taken = side_by_side({name: group.work for name, group in groups.items()}, seconds, rounds=3)
        costs = {name: group.costs() for name, group in groups.items()}
        busy = {name: max(cost.seconds for cost in found) for name, found in costs.items()}
        for name, found in costs.items():
            faster, less = f"{taken['1'] / taken[name]:.2f}", f"{busy['1'] / busy[name]:.2f}"
            memory = mebibytes(max(cost.peak - cost.held for cost in found))
            result.add_row(name, milliseconds(taken[name]), faster, milliseconds(busy[name]), less, memory)
            groups[name].stop()
    console.print(result)


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--processes", type=int, help="only compare up to so many processes of one thread each")
    parser.add_argument("--images", type=int, help=f"with --processes: how many, instead of {SOP_IMAGES}")
    arguments = parser.parse_args()
    quick = arguments.quick
    if arguments.processes:
        torch.set_num_threads(1)
        console.print(machine(torch.device("cpu")))
        show_processes(arguments.images or (10_000 if quick else SOP_IMAGES), arguments.processes, seconds=0)
        return
    console.print(machine(default_device()))
    show_sizes(SIZES[:1] if quick else SIZES)
    show_agreement(5_000)
    show_precisions(5_000 if quick else 20_000)
    show_class_sizes(5_000 if quick else 10_000, PER_CLASS[::3] if quick else PER_CLASS)
    show_clustering(2_000 if quick else 10_000)


if __name__ == "__main__":
    main()
