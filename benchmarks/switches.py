"""What candidates of benchmarks/candidates.py are worth in the recipe `photos`, one switch at a time.

`run` trains on catalogs of held-out training classes and appends a row for each data set, switch, value, seed, number
of epochs and size; rows that are there are not trained again. `table` prints means and the differences from the recipe
without a switch, paired by seed, from kept rows alone:

    python -m benchmarks.switches run --data birds=birds_held_out.csv --weights mobilenetv2.safetensors --out rows.csv
    python -m benchmarks.switches table rows.csv

Images are decoded once and cut in batches on the device (memory_images.py), with the crops of `proxygml train`, so that
a run on a GPU is not limited by decoding. Several processes can share a GPU: `--part 0/4` is the first of four.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor

from benchmarks.candidates import SWITCHES, Switch
from benchmarks.measure import default_device
from benchmarks.memory_images import Crops, Split
from proxygml.data.catalog import Catalog
from proxygml.errors import UserError, did_you_mean
from proxygml.evaluation.metrics import evaluate
from proxygml.models.embedder import Embedder
from proxygml.models.views import ONE_VIEW
from proxygml.training.initialization import check_directions, new_embedder, start_head
from proxygml.training.optimization import freeze, make_optimizers, set_learning_rates
from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import find_recipe
from proxygml.training.sampler import Batches

NONE = "none"
LAST_PHASE = 0.8  # the share of the epochs after which the rates fall, as in `photos`
BORDER = 8 / 7  # of a test image before its centre is cut out
EVALUATED_AT_A_TIME = 128
FIGURES = {"recall_at_1": "Recall@1", "map_at_r": "MAP@R"}


@dataclass(frozen=True)
class Cell:
    """What is trained, and how long."""

    data: str
    switch: str
    value: float
    seed: int
    epochs: int
    size: int

    def __str__(self) -> str:
        return f"{self.data} at {self.size} pixels, seed {self.seed}: {self.switch} {self.value:g}"


@dataclass(frozen=True)
class Row(Cell):
    """A cell's figures, in 0..1 and seconds of training."""

    recall_at_1: float
    map_at_r: float
    seconds: float
    device: str

    @property
    def cell(self) -> Cell:
        """Which cell it is of."""
        return Cell(*(getattr(self, column.name) for column in fields(Cell)))


# Training ------------------------------------------------------------------------------------------------------------


def start_embedder(recipe: Recipe, train: Split, device: torch.device) -> Embedder:
    """The network before the first step: that of proxygml.training.initialization.initial_embedder."""
    set_seed(recipe.seed)
    embedder = new_embedder(recipe, train.catalog.classes, train.catalog).to(device)
    check_directions(embedder.embedding_size, len(train.images), embedder.num_features)
    embedder.eval()
    squares = torch.split(train.squares(recipe.images.as_trained), EVALUATED_AT_A_TIME)
    with torch.no_grad():
        found = [embedder.features(some.to(device), views=ONE_VIEW, finer=False).float().cpu() for some in squares]
    features = torch.cat(found)
    start_head(embedder.head, lambda: iter([features]), torch.from_numpy(train.catalog.class_numbers), recipe)
    return embedder


def train(recipe: Recipe, switch: Switch, images: Split, device: torch.device) -> tuple[Embedder, float]:
    """The trained network, and the seconds of its steps; the loop of proxygml.training.trainer without its files."""
    recipe = switch.changed(recipe)
    embedder = start_embedder(recipe, images, device)
    numbers = images.catalog.class_numbers
    criterion = switch.start(recipe, embedder, len(images.catalog.classes))
    optimizers = make_optimizers(recipe, embedder, criterion)
    batches = Batches(numbers, recipe.batch_size, recipe.images_per_class, recipe.seed)
    crops = Crops(images.images, recipe.images, recipe.seed, device)
    labels, start = torch.from_numpy(numbers).to(device), time.perf_counter()
    for epoch in range(1, recipe.epochs + 1):
        set_seed(int(np.random.SeedSequence((recipe.seed, epoch)).generate_state(1)[0]))
        batches.set_epoch(epoch)
        crops.set_epoch(epoch)
        freeze(embedder, recipe, epoch)
        for step, indices in enumerate(batches.batches):
            set_learning_rates(optimizers, recipe, epoch - 1 + (step + 0.5) / len(batches))
            loss = switch.backward(embedder, crops.batch(indices), labels[torch.from_numpy(indices).to(device)])
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            switch.after_step(embedder)
    if not loss.isfinite():  # also waits for the device
        raise UserError(f"the loss became {float(loss)}")
    return embedder, time.perf_counter() - start


@torch.no_grad()
def embed(embedder: Embedder, squares: Tensor) -> Tensor:
    """The embeddings (n, D) of squares, uint8 (n, 3, size, size), by the views of the recipe."""
    embedder.eval()
    parts = torch.split(squares, EVALUATED_AT_A_TIME)
    return torch.cat([embedder(some.to(embedder.device)).float() for some in parts]).cpu()


def measured(cell: Cell, recipe: Recipe, splits: dict[str, Split], device: torch.device) -> Row:
    """Train a cell, and evaluate it on the held-out classes."""
    recipe = replace(
        recipe,
        images=replace(recipe.images, size=cell.size, resize=round(cell.size * BORDER), test_scale=1.0),
        epochs=cell.epochs,
        milestones=(max(1, round(cell.epochs * LAST_PHASE)),),
        seed=cell.seed,
    )
    embedder, seconds = train(recipe, SWITCHES[cell.switch](cell.value), splits["train"], device)
    test = splits["test"]
    embeddings = embed(embedder, test.squares(recipe.images))
    found = evaluate(embeddings, test.catalog.labels, (1,), nmi=False, **test.catalog.rules)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return Row(
        **asdict(cell), recall_at_1=found.recall[1].value, map_at_r=found.map_at_r.value, seconds=seconds, device=name
    )


# Rows ----------------------------------------------------------------------------------------------------------------


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """The rows of the files that are there."""
    kinds = {"str": str, "int": int, "float": float}
    rows = []
    for path in filter(Path.exists, paths):
        with path.open(encoding="utf-8", newline="") as file:
            for record in csv.DictReader(file):
                values = {column.name: kinds[str(column.type)](record[column.name]) for column in fields(Row)}
                rows.append(Row(**values))
    return rows


def append(row: Row, path: Path) -> None:
    """Add a row to the file, which is begun where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Row)], lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(asdict(row))


def chosen(names: Sequence[str]) -> list[tuple[str, float]]:
    """The switches and values of texts such as `distillation` (all its values) or `distillation=0.5`."""
    found = []
    for text in names or SWITCHES:
        name, _, value = text.partition("=")
        if name not in SWITCHES:
            raise UserError(f"there is no switch {name!r}: {did_you_mean(name, SWITCHES)}")
        found += [(name, float(value))] if value else [(name, known) for known in SWITCHES[name].values]
    return found


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """This process's part of the cells. Data sets come innermost, so that a run that is stopped leaves whole seeds."""
    data = [text.partition("=")[0] for text in options.data]
    orders = product(options.size, options.seeds, chosen(options.switches), data)
    cells = [Cell(name, *switch, seed, options.epochs, size) for size, seed, switch, name in orders]
    part, parts = options.part
    return cells[part::parts]


def part_of(text: str) -> tuple[int, int]:
    """The two numbers of a text such as 0/4, the first of four parts."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part: give one of 0/4 to 3/4, say")
    return int(part), int(parts)


def run(options: argparse.Namespace) -> None:
    """Train and evaluate all cells that have no row yet."""
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    content = Recipe.read(find_recipe(options.recipe)).content()
    recipe = Recipe.of(content | {"embedder": content["embedder"] | {"weights": options.weights}}, options.recipe)
    catalogs = dict(text.split("=", 1) for text in options.data)
    read: dict[str, dict[str, Split]] = {}
    done = {row.cell for row in read_rows([options.out])}
    cells = [cell for cell in cells_of(options) if cell not in done]
    for number, cell in enumerate(cells, start=1):
        if cell.data not in read:
            whole = Catalog.read(catalogs[cell.data])
            read[cell.data] = {name: Split.read(whole.split(name), options.threads) for name in ("train", "test")}
        try:
            row = measured(cell, recipe, read[cell.data], device)
        except UserError as error:  # such as a loss that diverged: the others go on
            print(f"{number}/{len(cells)} {cell}: {error}", flush=True)
            continue
        append(row, options.out)
        figures = f"{100 * row.recall_at_1:.1f}, {100 * row.map_at_r:.1f} in {row.seconds:.0f} s"
        print(f"{number}/{len(cells)} {cell}: {figures}", flush=True)


# Tables --------------------------------------------------------------------------------------------------------------


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """A table in Markdown for each data set, size and number of epochs."""
    # Loaded here: a machine that only trains needs nothing of it.
    from proxygml.comparison.row import Row as Kept  # noqa: PLC0415
    from proxygml.comparison.tables import Summary, Table  # noqa: PLC0415

    for data, size, epochs in dict.fromkeys((row.data, row.size, row.epochs) for row in rows):
        found = sorted(
            (row for row in rows if (row.data, row.size, row.epochs) == (data, size, epochs)),
            key=lambda row: (list(SWITCHES).index(row.switch), row.value),
        )
        if found[0].switch != NONE:
            raise UserError(f"{data} at {size} pixels has no row without a switch: train the switch `{NONE}` too")
        kept = [
            Kept(_name(row), row.seed, metrics={figure: getattr(row, figure) for figure in FIGURES}) for row in found
        ]
        summary = Summary(kept)
        head = ["switch", "seeds", *FIGURES.values(), *(f"difference in {name}" for name in FIGURES.values()), "s"]
        lines = []
        for method in summary.methods:
            times = [row.seconds for row in found if _name(row) == method]
            means = [str(summary.mean(method, figure)) for figure in FIGURES]
            gaps = ["" if method == NONE else str(summary.difference(method, figure)) for figure in FIGURES]
            lines.append([method, str(len(times)), *means, *gaps, f"{float(np.median(times)):.0f}"])
        devices = ", ".join(sorted({row.device for row in found}))
        note = (
            f"{epochs} epochs on {devices}. In per cent and points: means over the seeds with 95% t intervals; "
            "differences from the recipe without a switch are paired by seed."
        )
        yield Table(f"{data}, {size} pixels", note, head, lines).markdown()


def _name(row: Row) -> str:
    return NONE if row.switch == NONE else f"{row.switch} {row.value:g}"


def parser_of_options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("run", help="train and append rows")
    training.add_argument("--data", action="append", required=True, metavar="NAME=CSV", help="a catalog; repeatable")
    training.add_argument("--weights", required=True, help="the backbone's weights: a file, pretrained or none")
    training.add_argument("--recipe", default="photos", help="a file, or the name of a recipe")
    training.add_argument("--size", type=int, nargs="+", default=[96], help="pixels")
    training.add_argument("--epochs", type=int, default=5)
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    training.add_argument("--switches", nargs="+", default=[], metavar="NAME[=VALUE]", help=f"of {', '.join(SWITCHES)}")
    training.add_argument("--part", type=part_of, default="0/1", help="of the cells, of how many: 0/4 to 3/4")
    training.add_argument("--out", type=Path, required=True, help="the CSV file of rows")
    training.add_argument("--device", default=str(default_device()))
    training.add_argument("--threads", type=int, default=1, help="of the CPU, for decoding and computing")
    showing = commands.add_parser("table", help="print tables of kept rows")
    showing.add_argument("rows", type=Path, nargs="+", help="CSV files of rows")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser_of_options().parse_args(arguments)
    if options.command == "run":
        run(options)
    else:
        for table in tables(read_rows(options.rows)):
            print(table)


if __name__ == "__main__":
    main()
