"""Auditing the labels of a catalog: the function behind `proxygml audit`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from proxygml.arguments import check_arguments
from proxygml.arrays import Rows
from proxygml.auditing.alike import alike_classes
from proxygml.auditing.copies import DUPLICATE_COSINE
from proxygml.auditing.evidence import Evidence
from proxygml.auditing.features import audited_features
from proxygml.auditing.mixed import mixed_classes
from proxygml.auditing.outliers import class_distances
from proxygml.auditing.page import MOST_ITEMS, Audited, page
from proxygml.auditing.summary import classes_summary, copies_summary, summary
from proxygml.auditing.table import LIKELY, alike_table, audit_table, duplicates_table, mixed_table
from proxygml.console import warn
from proxygml.data.catalog import Catalog
from proxygml.errors import MOST_WORKERS, OverwriteError, check_setting, check_whole
from proxygml.files import PathLike, atomic_folder, check_overwrite, local_path, remove_leftovers
from proxygml.models.run_files import local_run
from proxygml.spreadsheet import without_formulas
from proxygml.urls import as_place

TABLE, DUPLICATES, ALIKE, MIXED, PAGE = "audit.csv", "duplicates.csv", "alike.csv", "mixed.csv", "audit.html"

MOST_PAGE = 2000
"""Images of a page: some 20 KiB each, examples included."""


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit has found.

    Attributes:
        table: one row an image, the most contradicted label first; see `audit_table`.
        share: the share of labels that are wrong, in 0..1.
        low, high: of its 95% interval.
        summary: the findings, a sentence each.
    """

    table: pd.DataFrame
    share: float
    low: float
    high: float
    summary: tuple[str, ...]


@check_arguments
def audit(
    run: PathLike | None,
    catalog: PathLike,
    out: PathLike,
    *,
    split: str = "all",
    seed: int = 0,
    force: bool = False,
    workers: int = 2,
    page_images: int = MOST_ITEMS,
    duplicate_cosine: float = DUPLICATE_COSINE,
) -> Audit:
    """Rank the images of a catalog by how much their proxies and neighbours contradict their labels.

    Every image is judged by a model that has not seen its label: proxies and neighbours from the other folds, on
    features that were not trained on the labels. docs/guide/audit.md describes how.

    Args:
        run: the run folder whose backbone gives the features; None for a catalog of vectors, which are used as given.
        catalog: a table of images, or of vectors.
        out: the folder to make: audit.csv, duplicates.csv (near-duplicates), alike.csv (classes that are probably one),
            mixed.csv (classes that are probably two) and audit.html, a page on which labels can be corrected.
        split: the part of the catalog to audit: train, val, test, or all.
        seed: of the folds.
        force: replace the result of an earlier audit.
        workers: processes that decode images; 0 decodes in this one.
        page_images: how many images the page shows, at most.
        duplicate_cosine: cosine, -1..1, from which two images are near-duplicates.

    Returns:
        The table, and the share of labels that are wrong.

    Raises:
        UserError: the run or the catalog is missing or of no use, or something is at `out` already.
    """
    place = None if run is None else local_run(as_place(run, "run"))
    folder, table = local_path(out, "out"), as_place(catalog, "catalog")
    check_whole("seed", seed, 0, 2**32 - 1)
    check_whole("workers", workers, 0, MOST_WORKERS)
    check_whole("page_images", page_images, 1, MOST_PAGE)
    check_setting(-1 <= duplicate_cosine <= 1, "duplicate_cosine", duplicate_cosine, "-1 to 1")
    check_audit_folder(folder, force)
    whole = Catalog.read(table)
    images = whole if split == "all" else whole.split(split)
    rows = np.arange(len(whole)) if split == "all" else np.flatnonzero(whole.table["split"] == split)
    found = _audited(place, images, rows, table.name, seed, workers, duplicate_cosine)
    with atomic_folder(folder) as temporary:
        without_formulas(found.table).to_csv(temporary / TABLE, index=False)
        without_formulas(duplicates_table(images, rows, found.evidence)).to_csv(temporary / DUPLICATES, index=False)
        without_formulas(alike_table(found.alike, found.classes)).to_csv(temporary / ALIKE, index=False)
        without_formulas(mixed_table(images, rows, found.mixed, found.classes)).to_csv(temporary / MIXED, index=False)
        (temporary / PAGE).write_text(page(found, page_images), encoding="utf-8")
    noise = found.evidence.noise
    return Audit(found.table, noise.share, noise.low, noise.high, found.sentences)


def _audited(
    run: Path | None, images: Catalog, rows: Rows, file: str, seed: int, workers: int, duplicate_cosine: float
) -> Audited:
    features = audited_features(run, images, workers)
    if features.warning:
        warn(features.warning)
    classes = images.classes
    labels = images.class_numbers
    evidence = Evidence.of(features.rows, labels, len(classes), seed, duplicate_cosine)
    distances = class_distances(
        features.rows, labels, evidence.found.classes, evidence.found.kept_scores, evidence.groups, seed
    )
    alike = tuple(alike_classes(evidence))
    doubtful = np.nan_to_num(evidence.probability) >= LIKELY
    mixed = tuple(mixed_classes(features.rows, labels, evidence.groups, doubtful, seed))
    item = "vector" if images.vectors is not None else "image"
    sentences = summary(evidence, classes, item) + copies_summary(images, evidence)
    sentences += classes_summary(len(distances.outliers), len(alike), len(mixed), item)
    table = audit_table(images, rows, classes, evidence, distances)
    return Audited(images, rows, classes, evidence, distances, table, sentences, file, alike, mixed)


def check_audit_folder(out: Path, force: bool) -> None:
    """Raise OverwriteError when an audit may not be put there."""
    remove_leftovers(out.parent)  # which also moves back what a command that was killed has moved away
    if out.exists() and not (out / TABLE).is_file():
        raise OverwriteError(f"{out} holds something that is no result of `proxygml audit`: choose another name")
    check_overwrite(out, force)
