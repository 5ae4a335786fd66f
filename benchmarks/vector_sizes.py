"""`python -m benchmarks.vector_sizes`: Recall@1 against the bytes of a vector, as tables and a picture, of kept rows.

`python -m benchmarks.vector_sizes measure FILE --data birds --seed 0` adds rows: FILE is what `proxygml embed RUN
--catalog TABLE --split test` wrote, of a model with `embedder.prefixes`. Queries keep all bits of their numbers; the
items that they search are codes, as in a gallery without the second look at the exact vectors.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.measure import console
from proxygml import Gallery
from proxygml.arrays import Rows, Vectors
from proxygml.data.vectors.codes import decoded, encoded
from proxygml.data.vectors.file import VectorFile
from proxygml.files import atomic_write
from proxygml.gallery.index_kinds import balanced_directions, faiss
from proxygml.models.prefix import vector_prefix
from proxygml.reports.figures import DASHES, MARKERS, SERIES, png

ROWS, PICTURE = Path("docs/results/vector_sizes.csv"), Path("docs/images/results/vector_sizes.png")
PREFIXES = (256, 128, 64, 32, 16, 8, 4, 2)
CODES = (128, 64, 32, 16, 8)  # of product quantisation, a byte each
QUERIES = 4000  # at most so many of the vectors are queries, drawn at random; all are items
PRINCIPAL = 128  # directions, of those that keep most of the vectors
CHOSEN = f"PQ of {PRINCIPAL} principal directions"
"""The coding for 32 bytes, chosen on validation classes: see docs/notebook.md."""

SHOWN = (2048, 1024, 512, 256, 128, 64, 32, 16, 8)  # bytes


@dataclass(frozen=True)
class Row:
    """How often the nearest item is of a query's class, where items have so many bytes."""

    data: str
    seed: int
    coding: str
    dimensions: int
    bytes: float
    recall_at_1: float


def codings(vectors: Vectors, queries: Rows) -> Iterator[tuple[str, int, float, Rows]]:
    """Each coding of unit vectors (n, D): its name, numbers, bytes, and the item nearest to each query (q,)."""
    whole = vectors.shape[1]
    for size in (whole, *PREFIXES):
        part = vector_prefix(vectors, size)
        yield "float32, the first numbers", size, 4 * size, _nearest(part, part, queries)
        if size >= 8:
            yield "int8, the first numbers", size, size, _nearest(part, decoded(encoded(part, "int8"), size), queries)
        if size >= 64:
            bits = decoded(encoded(part, "binary"), size)
            yield "bits, the first numbers", size, size / 8, _nearest(part, bits, queries)
            gallery = Gallery.create(part, pd.DataFrame({"row": range(len(part))}), "binary", refine=0)
            found = gallery.search(part[queries], 1, exclude=queries).ids[:, 0]
            yield "binary (RaBitQ), the first numbers", size, size / 8 + 8, found
    for size in (whole, 128):
        part = vector_prefix(vectors, size)
        name = "PQ of all numbers" if size == whole else f"PQ of the first {size}"
        for codes in (number for number in CODES if number <= size / 2):
            yield name, size, codes, _nearest(part, _product_quantised(part, codes), queries)
    for codes in (number for number in CODES if number <= PRINCIPAL / 2):
        turned = np.ascontiguousarray(vectors @ balanced_directions(vectors, codes, PRINCIPAL).T)
        yield CHOSEN, whole, codes, _nearest(turned, _product_quantised(turned, codes), queries)


def _nearest(vectors: Vectors, items: Vectors, queries: Rows) -> Rows:
    """For each of these rows of vectors (n, D) the nearest of the items (n, D), by inner product, but for its own."""
    found: list[Rows] = []
    for start in range(0, len(queries), 1024):
        own = queries[start : start + 1024]
        similarity = vectors[own] @ items.T
        similarity[np.arange(len(own)), own] = -np.inf
        found.append(similarity.argmax(axis=1))
    return np.concatenate(found)


def _product_quantised(vectors: Vectors, codes: int) -> Vectors:
    """What product quantisation, learnt from these vectors, makes of them."""
    quantizer = faiss().ProductQuantizer(vectors.shape[1], codes, 8)
    quantizer.cp.min_points_per_centroid = 1  # else FAISS warns
    quantizer.train(vectors)
    approximate: Vectors = quantizer.decode(quantizer.compute_codes(vectors))
    return approximate


def measured(file: Path, data: str, seed: int) -> list[Row]:
    """The rows of a file of test vectors with a column `label`."""
    blocks = list(VectorFile(file).blocks())
    vectors = np.ascontiguousarray(np.concatenate([vectors for vectors, _ in blocks]))
    labels = np.concatenate([table["label"].to_numpy() for _, table in blocks])
    queries = np.sort(np.random.default_rng(0).permutation(len(vectors))[:QUERIES])
    return [
        Row(data, seed, name, size, taken, float((labels[found] == labels[queries]).mean()))
        for name, size, taken, found in codings(vectors, queries)
    ]


def add_rows(rows: Sequence[Row], path: Path) -> None:
    """Add rows to the kept ones, in place of those of the same data and seed."""
    new = pd.DataFrame([asdict(row) for row in rows])
    if path.exists():
        kept = pd.read_csv(path)
        same = (kept["data"] == rows[0].data) & (kept["seed"] == rows[0].seed)
        new = pd.concat([kept[~same], new])
    with atomic_write(path) as temporary:
        new.sort_values(["data", "seed"], kind="stable").to_csv(temporary, index=False)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its 95% t interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(half)


def print_tables(rows: pd.DataFrame) -> None:
    """For each data set, as Markdown: Recall@1 of each coding at each number of bytes, in per cent; then the aim."""
    for data, part in rows.groupby("data", sort=False):
        console.print(f"\n**{data}**, {part['seed'].nunique()} seeds\n", soft_wrap=True)
        print("| bytes a vector | " + " | ".join(f"{size:,}" for size in SHOWN) + " |")
        print("|---" * (1 + len(SHOWN)) + "|")
        for name, found in part.groupby("coding", sort=False):
            cells = []
            for taken in SHOWN:
                values = 100 * found[found["bytes"] == taken]["recall_at_1"]
                mean, half = _interval(list(values)) if len(values) else (math.nan, math.nan)
                cells.append("" if math.isnan(mean) else f"{mean:.1f} ± {half:.1f}")
            if any(cells):
                print(f"| {name} | " + " | ".join(cells) + " |")
        _print_aim(part)


def _print_aim(part: pd.DataFrame) -> None:
    """How far the chosen coding in 32 bytes lies below the whole vectors, seed by seed."""
    whole = part[part["bytes"] == part["bytes"].max()].set_index("seed")["recall_at_1"]
    chosen = part[(part["coding"] == CHOSEN) & (part["bytes"] == 32)].set_index("seed")["recall_at_1"]
    mean, half = _interval(list(100 * (chosen - whole)))
    print(f"\n{CHOSEN}, 32 bytes: {mean:+.1f} ± {half:.1f} points against {part['bytes'].max():,.0f} bytes")


def picture(rows: pd.DataFrame) -> Figure:
    """Recall@1 against bytes, a panel for each data set, a line for each coding, with intervals over the seeds."""
    sets, names = list(rows["data"].unique()), list(rows["coding"].unique())  # a coding looks alike in all panels
    figure = Figure(figsize=(4.2 * len(sets), 4.2), layout="constrained")
    panels = figure.subplots(1, len(sets), squeeze=False)[0]
    for axes, data in zip(panels, sets, strict=True):
        part = rows[rows["data"] == data]
        for name, found in part.groupby("coding", sort=False):
            place = names.index(name)
            points = [(taken, *_interval(list(100 * one["recall_at_1"]))) for taken, one in found.groupby("bytes")]
            taken, means, halves = zip(*points, strict=True)
            style = {"color": SERIES[place], "marker": MARKERS[place], "linestyle": DASHES[place % len(DASHES)]}
            axes.errorbar(taken, means, halves, capsize=2, markersize=4, label=name, **style)
        whole = 100 * part[part["bytes"] == part["bytes"].max()]["recall_at_1"].mean()
        axes.axhspan(whole - 1, whole, color="grey", alpha=0.2, lw=0)
        axes.axvline(32, color="grey", lw=0.8)
        axes.set(title=data, xlabel="bytes a vector", xscale="log", ylim=(max(0, whole - 30), whole + 4))
        axes.set_xticks(SHOWN, [str(size) for size in SHOWN], minor=False, fontsize=8)
        axes.set_xticks([], minor=True)
    panels[0].set_ylabel("Recall@1, per cent")
    panels[0].legend(fontsize=7, loc="lower right")  # of the data set that has all codings
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="show", choices=["show", "measure"])
    parser.add_argument("file", type=Path, nargs="?", help="test vectors, for measure")
    parser.add_argument("--data", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    if options.what == "measure":
        add_rows(measured(options.file, options.data, options.seed), options.rows)
        return
    rows = pd.read_csv(options.rows)
    print_tables(rows)
    with atomic_write(options.picture) as path:
        path.write_bytes(png(picture(rows)))


if __name__ == "__main__":
    main()
