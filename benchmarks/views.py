"""The cells of a comparison again, by several ways to embed an image: what each finds, and what an image costs.

Training looks at one view of the network's usual map, whatever the settings say, so that a model that is trained can be
judged by any way. `measure` judges the finished cells of a comparison by each of WAYS, from photo to photo and, where
a table of packshots is given, from photo to packshot, and adds rows to a CSV file; those that it has are not measured
again. An image takes the same time with every method, so each way is timed once. `table` makes tables and a picture
(Recall@1 against milliseconds) of the rows, without images:

    python -m benchmarks.views measure --run runs/groceries --catalog groceries.csv --packshots packshots.csv \\
        --out views.csv
    python -m benchmarks.views table views.csv --picture views.png

Milliseconds are processor time of one thread on a CPU, which other work hardly changes, and time on a GPU.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.measure import default_device, synchronize
from proxygml import evaluate
from proxygml.data.catalog import Catalog
from proxygml.data.images.tensors import ImageDataset, collate
from proxygml.errors import UserError
from proxygml.kept_memory import freed_memory_kept
from proxygml.models.embedder import Embedder
from proxygml.models.image_embedder import ImageEmbedder

BATCH = 32
BATCHES = 12  # that are timed, the first apart
USUAL = "one view of the usual map"


@dataclass(frozen=True)
class Way:
    """How a trained model embeds an image."""

    settings: dict[str, bool | int]  # of the embedder
    enlarged: float = 1.0  # how many times the side of the images that it was trained on


WAYS = {
    USUAL: Way({"mirror": False, "output_stride": 0}),
    "finer map and mirror image": Way({"mirror": True, "output_stride": 8}),
    "larger images": Way({"mirror": False, "output_stride": 0}, 5 / 3),
    "larger images and mirror image": Way({"mirror": True, "output_stride": 0}, 5 / 3),  # as dear as the finer map
    "somewhat larger images and mirror image": Way({"mirror": True, "output_stride": 0}, 9 / 7),  # as `photos`
    "much larger images": Way({"mirror": False, "output_stride": 0}, 2.25),
}
"""The columns of a fair comparison: the cheapest, and dearer ones."""

OURS = "Our recipe"
Group = tuple[str, str, int, int]
"""What a table is of: data, backbone, pixels in training, dimensions."""

FIGURES = {"recall_at_1": "Recall@1", "map_at_r": "MAP@R", "packshot_recall_at_1": "photo to packshot: Recall@1"}


@dataclass(frozen=True)
class Row:
    """What one model finds by one way to embed; shares in 0..1."""

    data: str
    backbone: str
    method: str
    seed: int
    way: str
    size: int  # pixels of an image's side in training
    dimensions: int
    milliseconds: float | None  # an image, decoding not included; None before `add_times`
    device: str
    recall_at_1: float
    map_at_r: float
    packshot_recall_at_1: float | None = None
    packshot_recall_at_4: float | None = None

    @property
    def key(self) -> tuple[object, ...]:
        return self.data, self.backbone, self.method, self.seed, self.way, self.size, self.dimensions

    @property
    def group(self) -> Group:
        return self.data, self.backbone, self.size, self.dimensions


def read(path: Path) -> list[Row]:
    """The rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    table = pd.read_csv(path)
    return [Row(**line) for line in table.astype(object).where(table.notna(), None).to_dict("records")]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows, in one step."""
    temporary = path.with_suffix(".part")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    temporary.replace(path)


# Measuring ------------------------------------------------------------------------------------------------------------


def cells(run: Path) -> Iterator[tuple[str, int, Path]]:
    """Method, seed and folder of each finished cell of a comparison."""
    for folder in sorted(run.glob("*/seed-*")):
        if (folder / "evaluation.json").exists() and (folder / "model.json").exists():
            yield folder.parent.name, int(folder.name.removeprefix("seed-")), folder


def embedder_of(folder: Path, way: Way, device: torch.device) -> Embedder:
    """The model of a cell, to embed in another way."""
    trained = Embedder.load(folder)
    assert isinstance(trained, ImageEmbedder)
    settings = replace(trained.settings, **way.settings, weights="none")  # type: ignore[arg-type]
    embedder = ImageEmbedder(settings, replace(trained.images, test_scale=way.enlarged), trained.classes)
    embedder.load_state_dict(trained.state_dict())
    embedder.space, embedder.mean, embedder.std = trained.space, trained.mean, trained.std
    return embedder.to(device).eval()


def decoded(catalog: Catalog, embedder: Embedder, workers: int) -> Tensor:
    """All images of a catalog as the network sees them, uint8 (n, 3, size, size)."""
    data = ImageDataset(catalog.paths, catalog.boxes, embedder.images, training=False)
    loader = DataLoader(data, batch_size=256, num_workers=workers, collate_fn=collate)
    return torch.cat([images for images, _ in loader])


@torch.no_grad()
def embedded(embedder: Embedder, images: Tensor, device: torch.device) -> Tensor:
    """The embeddings (n, D) of images, on the CPU."""
    batch = 8 * BATCH if device.type == "cuda" else BATCH  # a GPU would wait for the next small kernel
    return torch.cat([embedder(part.to(device)).float().cpu() for part in torch.split(images, batch)])


class Judge:
    """Judges the finished cells of comparisons of one catalog by every way, and adds the rows, still without times.

    Args:
        table: the catalog.
        packshots: a catalog of photos and packshots, where there is one.
        out: the file of rows; what is in it is not measured again.
        workers: processes that decode images.
        ways: the names of the ways.
    """

    def __init__(
        self, table: Path, packshots: Path | None, out: Path, workers: int, ways: Sequence[str] = tuple(WAYS)
    ) -> None:
        self.data, self.out, self.workers, self.ways = table.stem, out, workers, ways
        self.catalogs = [Catalog.read(table).split("test")]
        if packshots is not None:
            shots = Catalog.read(packshots).split("test")
            self.catalogs.append(shots.with_table(shots.table[~shots.table["is_query"].astype(bool)]))
        self.device = default_device()
        self.rows = read(out)
        self._judged: set[Path] = set()
        self._images: dict[tuple[int, int], list[Tensor]] = {}  # of each catalog, as networks of a size see them

    def judge(self, run: Path, stopped: Event | None = None) -> None:
        """Judge what has been finished since; it ends after the model that it is at when `stopped` is set."""
        for method, seed, folder in cells(run):
            if folder in self._judged:
                continue
            size = Embedder.load(folder).images.size
            for name in self.ways:
                if stopped is not None and stopped.is_set():
                    return
                embedder = embedder_of(folder, WAYS[name], self.device)
                row = _row(self.data, method, seed, name, size, embedder, self.device)
                if row.key not in {known.key for known in self.rows}:
                    self._add(self._judge_one(row, embedder))
            self._judged.add(folder)

    def forget_images(self) -> None:
        """Free the memory of the decoded images; they are decoded again where they are needed."""
        self._images.clear()

    def _judge_one(self, row: Row, embedder: Embedder) -> Row:
        size = (embedder.images.at_test.size, embedder.images.at_test.resize)
        if size not in self._images:
            self._images[size] = [decoded(catalog, embedder, self.workers) for catalog in self.catalogs]
        found = [embedded(embedder, images, self.device) for images in self._images[size]]
        figures = evaluate(found[0], self.catalogs[0].labels, (1,), nmi=False)
        row = replace(row, recall_at_1=figures.recall[1].value, map_at_r=figures.map_at_r.value)
        if len(found) == 1:
            return row
        recalls = _to_packshots(found[0], self.catalogs[0], found[1], self.catalogs[1])
        return replace(row, packshot_recall_at_1=recalls[0], packshot_recall_at_4=recalls[1])

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        write(self.out, self.rows)
        print(f"{row.method}, seed {row.seed}, {row.way}: {json.dumps(asdict(row))}", flush=True)


def add_times(run: Path, out: Path) -> None:
    """Time every way once, with the network of the first finished cell, for its rows that have no time.

    The weights change nothing about the time. Nothing else should run on the device meanwhile.

    Raises:
        UserError: no cell is finished.
    """
    first = next(cells(run), None)
    if first is None:
        raise UserError(f"{run} has no finished cell: give the folder of a comparison, its `--run`")
    rows, device, folder = read(out), default_device(), first[-1]
    trained = Embedder.load(folder)
    own = trained.settings.backbone, trained.images.size, trained.embedding_size, _name_of(device)
    times: dict[str, float] = {}
    for number, row in enumerate(rows):
        if row.milliseconds is None and (row.backbone, row.size, row.dimensions, row.device) == own:
            if row.way not in times:
                times[row.way] = time_of(embedder_of(folder, WAYS[row.way], device), device)
            rows[number] = replace(row, milliseconds=times[row.way])
    write(out, rows)


@freed_memory_kept()  # as in embedding
@torch.no_grad()
def time_of(embedder: Embedder, device: torch.device) -> float:
    """Milliseconds of an image: the median over BATCHES of random pixels."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    side, taken = embedder.images.at_test.size, []
    images = torch.randint(256, (BATCH, 3, side, side), dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    for _ in range(BATCHES):
        synchronize()
        start = clock()
        embedder(images)
        synchronize()
        taken.append(1000 * (clock() - start) / BATCH)
    return round(median(taken[1:]), 3)


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _row(data: str, method: str, seed: int, way: str, size: int, embedder: Embedder, device: torch.device) -> Row:
    backbone, dimensions = embedder.settings.backbone, embedder.embedding_size
    return Row(data, backbone, method, seed, way, size, dimensions, None, _name_of(device), 0.0, 0.0)


def _to_packshots(photos: Tensor, of_photos: Catalog, shots: Tensor, of_shots: Catalog) -> tuple[float, float]:
    """Recall@1 and @4 of the photos among the packshots of all products, those that trained included."""
    is_query = np.arange(len(photos) + len(shots)) < len(photos)
    labels = [*of_photos.labels, *of_shots.labels]
    figures = evaluate(torch.cat([photos, shots]), labels, (1, 4), nmi=False, is_query=is_query, is_gallery=~is_query)
    return figures.recall[1].value, figures.recall[4].value


# Tables and the picture -----------------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> str:
    """Mean and 95% t interval over seeds, in per cent."""
    mean = 100 * float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.1f}"
    half = 100 * float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return f"{mean:.1f} ({mean - half:.1f} - {mean + half:.1f})"


def tables(rows: Sequence[Row]) -> str:
    """A Markdown table for each data set, backbone, size and dimension: a line per method and way."""
    groups: dict[Group, dict[tuple[str, str], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row.group][row.way, row.method].append(row)
    return "\n".join(_table(group, lines) for group, lines in groups.items())


def heading(group: Group) -> str:
    """What a table is of."""
    data, backbone, size, dimensions = group
    return f"**{data}, {backbone}, {size} pixels, {dimensions} numbers**"


def _table(group: Group, lines: dict[tuple[str, str], list[Row]]) -> str:
    shots = any(row.packshot_recall_at_1 is not None for found in lines.values() for row in found)
    text = [heading(group), ""]
    columns = ["way to embed", "method", "seeds", "Recall@1", "MAP@R"]
    columns += ["photo to packshot: Recall@1", "Recall@4"] * shots + ["ms an image"]
    text += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for (way, method), found in sorted(lines.items(), key=lambda line: ([*WAYS].index(line[0][0]), line[0][1])):
        figures = [interval([row.recall_at_1 for row in found]), interval([row.map_at_r for row in found])]
        for name in ("packshot_recall_at_1", "packshot_recall_at_4") if shots else ():
            values = [getattr(row, name) for row in found]
            figures += [interval([value for value in values if value is not None])]
        times = [row.milliseconds for row in found if row.milliseconds is not None]
        milliseconds = f"{median(times):.2f}" if times else ""
        text.append("| " + " | ".join([way, method, str(len(found)), *figures, milliseconds]) + " |")
    return "\n".join(text) + "\n"


def ahead(rows: Sequence[Row]) -> str:
    """How far OURS is ahead of each method at equal cost: a Markdown table for each group of rows.

    Mean and 95% t interval of the differences, paired by seed, in points.
    """
    text = []
    for group in dict.fromkeys(row.group for row in rows):
        found = [row for row in rows if row.group == group]
        figures = [name for name in FIGURES if all(getattr(row, name) is not None for row in found)]
        columns = ["way to embed", "ahead of", "seeds", *(FIGURES[name] for name in figures)]
        text += [heading(group), "", "| " + " | ".join(columns) + " |"]
        text.append("|---" * len(columns) + "|")
        for way in WAYS:  # the same for both, so at the same cost
            for method in sorted({row.method for row in found} - {OURS}):
                pairs = _pairs(found, method, way)
                if pairs:
                    gaps = [[getattr(a, name) - getattr(b, name) for a, b in pairs] for name in figures]
                    cells = [way, method, str(len(pairs)), *map(interval, gaps)]
                    text.append("| " + " | ".join(cells) + " |")
        text.append("")
    return "\n".join(text)


def _pairs(rows: Sequence[Row], method: str, way: str) -> list[tuple[Row, Row]]:
    """The rows of our recipe and of a method by a way to embed, of the seeds that both have."""
    of = {(row.method, row.way, row.seed): row for row in rows}
    seeds = sorted({row.seed for row in rows})
    return [
        (of[OURS, way, seed], of[method, way, seed])
        for seed in seeds
        if (OURS, way, seed) in of and (method, way, seed) in of
    ]


def picture(rows: Sequence[Row], path: Path) -> None:
    """Recall@1 against milliseconds an image: one of `panels` beside the other, each with its Pareto front.

    Rows without a time are left out; where none has one, there is no picture.
    """
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415
    from matplotlib.ticker import LogLocator, NullLocator  # noqa: PLC0415

    rows = [row for row in rows if row.milliseconds is not None]
    if not rows:
        return
    shown = panels(rows)
    methods = sorted({row.method for row in rows})
    figure, axes = plt.subplots(1, len(shown), figsize=(6 * len(shown), 4.5), squeeze=False)
    for axis, (title, found) in zip(axes[0], shown.items(), strict=True):
        places, label = _places(found)
        for number, method in enumerate(methods):
            own = sorted(place for (name, *_), place in places.items() if name == method)
            if own:
                axis.plot(*zip(*own, strict=True), "o-", color=f"C{number}", label=method, linewidth=0.8)
        front = pareto_front([*places.values()])
        axis.step(*zip(*front, strict=True), where="post", color="black", linestyle=":", label="Pareto front")
        axis.set(xscale="log", xlabel="milliseconds an image", ylabel=label, title=title)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
        axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def panels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each panel of the picture by its title: all are of vectors of one size, and timed on one device."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.data, row.backbone, row.dimensions, row.device)):
        found[f"{row.data}, {row.backbone}, {row.dimensions} numbers, {row.device}"].append(row)
    return found


def _places(rows: Sequence[Row]) -> tuple[dict[tuple[str, str, int], tuple[float, float]], str]:
    """Milliseconds and Recall@1 in per cent of each method, way and size, means over seeds; and what that Recall is."""
    name = "recall_at_1" if any(row.packshot_recall_at_1 is None for row in rows) else "packshot_recall_at_1"
    points: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row.milliseconds is not None:
            points[row.method, row.way, row.size].append(row)
    places = {
        key: (
            median(row.milliseconds for row in found if row.milliseconds is not None),
            100 * float(np.mean([getattr(row, name) for row in found])),
        )
        for key, found in points.items()
    }
    return places, "Recall@1 (%)" if name == "recall_at_1" else "Recall@1, photo to packshot (%)"


def pareto_front(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, value) those that no cheaper one reaches, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(places, key=lambda place: (place[0], -place[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    for name in ("run", "catalog", "out"):
        measuring.add_argument(f"--{name}", type=Path, required=True)
    measuring.add_argument("--packshots", type=Path)
    measuring.add_argument("--workers", type=int, default=0)
    measuring.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS], help="to embed, all by default")
    drawing = commands.add_parser("table")
    drawing.add_argument("rows", type=Path, nargs="+")
    drawing.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if options.command == "measure":
        Judge(options.catalog, options.packshots, options.out, options.workers, options.ways).judge(options.run)
        try:
            add_times(options.run, options.out)
        except UserError as error:
            sys.exit(str(error))
        return
    rows = [*dict.fromkeys(row for path in options.rows for row in read(path))]  # a row in two files counts once
    print(tables(rows))
    print(ahead(rows))
    if options.picture:
        picture(rows, options.picture)


if __name__ == "__main__":
    main()
