"""From vectors and labels to a catalog: check every vector, split the classes, write one Parquet file.

prepare.py does this for images. Vectors are read a block at a time, so that any number of them fits.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from proxygml.console import progress_bar, warn
from proxygml.data.catalog.catalog import Catalog, check_splits
from proxygml.data.catalog.class_names import check_class_names
from proxygml.data.datasets.layout import Dataset, check_root
from proxygml.data.datasets.vectors import VectorTable
from proxygml.data.preparing.findings import Finding
from proxygml.data.preparing.report import OnBad, check_free, print_counts, publish
from proxygml.data.vectors.source import VectorSource
from proxygml.errors import CatalogError, DatasetError, counted
from proxygml.urls import Place, absolute

NAMED = 3
"""Rows of each kind of problem that a message names."""


def prepare_vectors(
    dataset: Dataset, root: Place | None, out: Path, *, on_bad: OnBad = "fail", force: bool = False
) -> Catalog:
    """Turn vectors with labels into a checked catalog; see `prepare`.

    Rows without a label, and vectors that are missing, of another size, not finite or all zeros, are named by row and
    id. With `drop` they are left out, and listed in OUT.dropped.csv.

    Raises:
        DatasetError, CatalogError, OverwriteError: see `prepare`.
    """
    if out.suffix.lower() != ".parquet":
        raise CatalogError(f"{out} does not end with .parquet, the only kind of catalog that can hold vectors")
    dropped_list = out.with_suffix(".dropped.csv")
    check_free(out, dropped_list, force)
    if root is None:
        raise DatasetError(f"{dataset.name} needs --root: the file with your vectors and labels")
    root = check_root(root, dataset.name)
    found: VectorTable = dataset.read(root)
    if absolute(out) in (absolute(found.vectors.path), absolute(root)):
        raise DatasetError(f"{out} is the file that is read: choose another name for the catalog")
    findings, digests = _problems(found)
    good = np.setdiff1d(np.arange(found.vectors.rows), [finding.row for finding in findings])
    if findings and (on_bad == "fail" or not len(good)):
        fix = "Correct them, or leave them out with --on_bad drop" if len(good) else "No row is left"
        raise DatasetError(f"{_summary(findings, found.vectors)}. {fix}. No catalog was written")
    if findings:
        warn(f"{_summary(findings, found.vectors)}: left out")
    try:
        catalog = Catalog(found.table.iloc[good], found.folder, found.vectors)
    except CatalogError as error:
        raise CatalogError(f"{root}: {error}") from error
    for message in [*check_splits(catalog), *check_class_names(catalog), *_copies(catalog, digests[good])]:
        warn(message)
    publish(catalog, out, findings, dropped_list, force)
    written = Catalog.read(out)
    print_counts(written, out)
    return written


def _problems(found: VectorTable) -> tuple[list[Finding], npt.NDArray[np.uint64]]:
    """What is wrong with which rows; and for each vector a number that copies of it share, uint64 (n,)."""
    source = found.vectors
    digests = np.zeros(source.rows, np.uint64)
    wrong: dict[int, str] = {}
    with progress_bar(disable=source.rows < 100_000) as bar:
        task = bar.add_task("Checking vectors", total=source.rows, note="")
        for first, vectors, problems in source.blocks():
            wrong |= problems
            digests[first : first + len(vectors)] = _digests(vectors.astype(np.float32, copy=False))
            bar.advance(task, len(vectors))
    unlabelled = np.flatnonzero(found.table["label"].isna())
    wrong |= {int(row): "no label" for row in unlabelled if int(row) not in wrong}
    findings = []
    names = next((found.table[name] for name in ("id", "path") if name in found.table), None)
    for row, problem in sorted(wrong.items()):
        name = f"row {row}" if names is None else f"row {row} ({names.name} {names.iloc[row]})"
        findings.append(Finding(name, problem, f"has {problem}", row))
    return findings, digests


def _digests(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """A 64-bit number for each vector (m, F), the same for copies: a sum of its numbers' bits times odd numbers."""
    factors = np.random.default_rng(0).integers(0, 2**63, vectors.shape[1], dtype=np.uint64) * 2 + 1
    bits = np.ascontiguousarray(vectors).view(np.uint32)
    digests = np.zeros(len(vectors), np.uint64)
    for start in range(0, len(vectors), 1024):  # in parts that stay in the processor's cache
        digests[start : start + 1024] = bits[start : start + 1024].astype(np.uint64) @ factors
    return digests


def _copies(catalog: Catalog, digests: npt.NDArray[np.uint64]) -> list[str]:
    """Warnings about vectors that come several times.

    Raises:
        DatasetError: all are the same.
    """
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    if len(first) == 1 and len(digests) > 1:
        raise DatasetError(f"all {len(digests):,} vectors are the same: nothing can tell their classes apart")
    if (copies := len(digests) - len(first)) == 0:
        return []
    labels = catalog.table["label"].astype("category").cat.codes.to_numpy()
    mixed = int(np.count_nonzero(labels != labels[first][group]))
    kept = (
        f"of {counted(len(digests), 'vector')}, {copies:,} equal another one, and {'is' if copies == 1 else 'are'} kept"
    )
    return [f"{kept}; {mixed:,} of them are of another class than it: look at those labels" if mixed else kept]


def _summary(findings: list[Finding], source: VectorSource) -> str:
    """Such as `2 of 10 rows of v.parquet have no label (row 3, row 5)`."""
    parts = []
    for kind in dict.fromkeys(finding.kind for finding in findings):
        rows = [finding.path for finding in findings if finding.kind == kind]
        names = ", ".join(rows[:NAMED]) + (", ..." if len(rows) > NAMED else "")
        verb = "has" if len(rows) == 1 else "have"
        parts.append(f"{len(rows):,} of {counted(source.rows, 'row')} of {source.path} {verb} {kind} ({names})")
    return "; ".join(parts)
