"""How well wrong labels are found: `python -m benchmarks.audit rows`, then `tables`; and how fast, with `million`.

`rows` changes labels of a catalog of vectors on purpose, at random and to the nearest class, ranks them by every
method, and adds a row for each to a CSV file; rows that are there are not computed again. `tables` prints the tables of
such files. Any catalog of vectors will do. Confident learning needs the extra `benchmarks`.

`million` audits a catalog of made vectors by the command, in a process of its own, and prints its time and peak memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import average_precision_score

from benchmarks.audit_rankings import (
    NOISES,
    Doubt,
    cleanlab_rankings,
    mean_loss,
    neighbor_disagreement,
    ours,
    out_of_fold_scores,
    probabilities,
    with_noise,
)
from benchmarks.audit_tables import print_tables
from benchmarks.measure import console, mebibytes
from benchmarks.vectors import run_measured, write_vectors
from proxygml.arrays import Rows, Vectors
from proxygml.auditing.feature_rows import FeatureRows
from proxygml.data.catalog import Catalog

SHARES = (0.05, 0.1, 0.2)
SEEDS = (1, 2, 3)
KEY = ["data", "noise", "share", "seed", "method"]


def read_vectors(path: Path) -> tuple[Vectors, Rows, int]:
    """Vectors of length 1, their classes as numbers, and how many classes there are."""
    catalog = Catalog.read(path)
    rows = catalog.vector_rows
    assert catalog.vectors is not None
    vectors = FeatureRows(catalog.vectors.mapped(), rows).take(np.arange(len(rows)))
    classes, labels = np.unique(catalog.labels, return_inverse=True)
    return vectors, labels.astype(np.int64), len(classes)


def add_rows(path: Path, name: str, out: Path, seeds: tuple[int, ...], shares: tuple[float, ...]) -> None:
    """Rank the labels of a catalog with every kind and share of noise, and keep a row for each method."""
    vectors, labels, num_classes = read_vectors(path)
    console.print(f"{name}: {len(labels):,} vectors of {vectors.shape[1]}, {num_classes:,} classes")
    for kind in NOISES:
        for share in shares:
            for seed in seeds:
                kept = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=KEY)
                there = kept[(kept[KEY[:4]] == [name, kind, share, seed]).all(axis=1)]
                if len(there):
                    continue
                changed, wrong = with_noise(vectors, labels, num_classes, kind, share, seed)
                found = pd.DataFrame(list(_judged(vectors, changed, num_classes, wrong, seed)))
                found = found.assign(data=name, noise=kind, share=share, seed=seed)
                columns = [*KEY, *(column for column in found if column not in KEY)]
                pd.concat([kept, found[columns]]).to_csv(out, index=False)
                console.print(f"{kind} {share} seed {seed}: " + _line(found))


def _line(found: pd.DataFrame) -> str:
    pairs = zip(found["method"], found["average_precision"], strict=True)
    return ", ".join(f"{method} {100 * value:.1f}" for method, value in pairs)


def _judged(
    vectors: Vectors, labels: Rows, num_classes: int, wrong: npt.NDArray[np.bool_], seed: int
) -> Iterator[dict[str, object]]:
    """A row for each method."""
    start = time.perf_counter()
    doubt, evidence = ours(vectors, labels, num_classes, seed)
    yield _row("ours", doubt, wrong) | {
        "estimated_share": round(evidence.noise.share, 5),
        "low": round(evidence.noise.low, 5),
        "high": round(evidence.noise.high, 5),
        "seconds": round(time.perf_counter() - start, 1),
    }
    chances = probabilities(out_of_fold_scores(vectors, labels, num_classes, seed), labels)
    for method, found in cleanlab_rankings(chances, labels).items():
        yield _row(method, found, wrong)
    yield _row("neighbours that disagree", neighbor_disagreement(vectors, labels), wrong)
    yield _row("loss", mean_loss(vectors, labels, num_classes, seed), wrong)


def _row(method: str, doubt: Doubt, wrong: npt.NDArray[np.bool_]) -> dict[str, object]:
    count = int(wrong.sum())
    first = np.argsort(-doubt, kind="stable")[:count]
    finite = np.nan_to_num(doubt, neginf=float(np.min(doubt[np.isfinite(doubt)])) - 1)
    return {
        "method": method,
        "precision": round(float(wrong[first].mean()), 5),
        "average_precision": round(float(average_precision_score(wrong, finite)), 5),
    }


def million(rows: int, size: int, classes: int, folder: Path) -> None:
    """Audit many vectors, a tenth of whose labels are wrong, by the command: seconds and peak memory."""
    write_vectors(folder / "raw.parquet", rows, size, classes)
    random = np.random.default_rng(0)
    catalog = folder / "catalog.parquet"
    with pq.ParquetFile(folder / "raw.parquet") as file:
        writer = None
        for group in range(file.num_row_groups):
            part = file.read_row_group(group)
            labels = part.column("label").to_numpy().copy()
            wrong = random.random(len(labels)) < 0.1
            labels[wrong] = random.integers(0, classes, int(wrong.sum()))
            part = part.set_column(0, "label", pa.array(labels.astype(str)))
            part = part.append_column("split", pa.array(["train"] * len(part)))
            writer = writer or pq.ParquetWriter(catalog, part.schema, compression="NONE")
            writer.write_table(part)
        assert writer is not None
        writer.close()
    seconds, peak = run_measured(["proxygml", "audit", "--catalog", str(catalog), "--out", str(folder / "audit")])
    console.print(f"audit of {rows:,} x {size}, {classes:,} classes: {seconds:,.0f} s, {mebibytes(peak)} at its peak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("rows", help="judge every method on a catalog of vectors")
    adding.add_argument("--catalog", type=Path, required=True, help="of vectors, as `proxygml embed` writes it")
    adding.add_argument("--name", required=True, help="what the table calls it")
    adding.add_argument("--out", type=Path, required=True, help="the CSV file that rows are added to")
    words = "of the draws of wrong labels; the ranking was tuned on those of seed 0"
    adding.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help=words)
    adding.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    printing = commands.add_parser("tables", help="the tables of files of rows")
    printing.add_argument("files", type=Path, nargs="+")
    many = commands.add_parser("million", help="time and memory of many vectors")
    many.add_argument("--rows", type=int, default=1_000_000)
    many.add_argument("--size", type=int, default=128)
    many.add_argument("--classes", type=int, default=10_000)
    many.add_argument("--folder", type=Path, default=None, help="where the vectors go; needs 3 GB")
    options = parser.parse_args()
    if options.command == "rows":
        add_rows(options.catalog, options.name, options.out, tuple(options.seeds), tuple(options.shares))
    elif options.command == "tables":
        print_tables(pd.concat([pd.read_csv(file) for file in options.files]))
    elif options.folder is None:
        with TemporaryDirectory() as folder:
            million(options.rows, options.size, options.classes, Path(folder))
    else:
        options.folder.mkdir(parents=True, exist_ok=True)
        million(options.rows, options.size, options.classes, options.folder)


if __name__ == "__main__":
    main()
