"""Auditing the labels of a catalog: the function behind `proxygml audit`."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from proxygml.arguments import check_arguments
from proxygml.auditing.evidence import Evidence
from proxygml.auditing.features import audited_features
from proxygml.auditing.summary import summary
from proxygml.auditing.table import audit_table
from proxygml.console import console
from proxygml.data.catalog import Catalog
from proxygml.errors import MOST_WORKERS, OverwriteError, check_whole
from proxygml.files import PathLike, atomic_folder, check_overwrite, local_path, remove_leftovers
from proxygml.models.run_files import local_run
from proxygml.spreadsheet import without_formulas
from proxygml.urls import as_place

TABLE = "audit.csv"


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
) -> Audit:
    """Rank the images of a catalog by how much their proxies and neighbours contradict their labels.

    Every image is judged by a model that has not seen its label: proxies and neighbours from the other folds, on
    features that were not trained on the labels. docs/guide/audit.md describes how.

    Args:
        run: the run folder whose backbone gives the features; None for a catalog of vectors, which are used as given.
        catalog: a table of images, or of vectors.
        out: the folder to make: audit.csv.
        split: the part of the catalog to audit: train, val, test, or all.
        seed: of the folds.
        force: replace the result of an earlier audit.
        workers: processes that decode images; 0 decodes in this one.

    Returns:
        The table, and the share of labels that are wrong.

    Raises:
        UserError: the run or the catalog is missing or of no use, or something is at `out` already.
    """
    place = None if run is None else local_run(as_place(run, "run"))
    folder, table = local_path(out, "out"), as_place(catalog, "catalog")
    check_whole("seed", seed, 0, 2**32 - 1)
    check_whole("workers", workers, 0, MOST_WORKERS)
    check_audit_folder(folder, force)
    whole = Catalog.read(table)
    images = whole if split == "all" else whole.split(split)
    result = audited(place, images, seed=seed, workers=workers)
    if split != "all":  # `row` counts in the whole catalog
        rows = np.flatnonzero(whole.table["split"] == split)
        result = replace(result, table=result.table.assign(row=rows[result.table["row"]]))
    with atomic_folder(folder) as temporary:
        without_formulas(result.table).to_csv(temporary / TABLE, index=False)
    return result


def audited(run: Path | None, images: Catalog, *, seed: int, workers: int) -> Audit:
    """The audit of a catalog, not written anywhere; see `audit`."""
    features = audited_features(run, images, workers)
    if features.warning:
        console.print(features.warning, style="yellow", markup=False)
    classes = images.classes
    numbers = {label: number for number, label in enumerate(classes)}
    labels = np.array([numbers[label] for label in images.labels], np.int64)
    evidence = Evidence.of(features.rows, labels, len(classes), seed)
    noise = evidence.noise
    sentences = summary(evidence, classes, "vector" if images.vectors is not None else "image")
    return Audit(audit_table(images, classes, evidence), noise.share, noise.low, noise.high, sentences)


def check_audit_folder(out: Path, force: bool) -> None:
    """Raise OverwriteError when an audit may not be put there."""
    remove_leftovers(out.parent)  # which also moves back what a command that was killed has moved away
    if out.exists() and not (out / TABLE).is_file():
        raise OverwriteError(f"{out} holds something that is no result of `proxygml audit`: choose another name")
    check_overwrite(out, force)
