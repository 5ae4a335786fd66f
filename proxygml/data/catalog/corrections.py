"""Corrected labels: applied to a catalog, whose classes stay whole in their splits. Ours.

The page of `proxygml audit` saves such a table; a person may write one too.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from proxygml.arguments import check_arguments
from proxygml.data.catalog.catalog import Catalog, check_splits, check_suffix
from proxygml.data.catalog.row_list import read_row_list, rows_named
from proxygml.data.columns import MARK_COLUMNS, ROLE_COLUMNS
from proxygml.errors import CatalogError, did_you_mean, first_few
from proxygml.files import PathLike, check_overwrite, local_path
from proxygml.spreadsheet import without_formulas
from proxygml.urls import as_place

DECISIONS = ("keep", "correct", "remove")
CORRECTIONS = "a table of corrections"


class Corrected(NamedTuple):
    """What corrections have done.

    Attributes:
        catalog: as it was written.
        changed: rows with another label.
        moved: of these, rows that went to another split, that of their new class.
        removed: rows that were left out.
        warnings: what the user should know of the new catalog.
    """

    catalog: Catalog
    changed: int
    moved: int
    removed: int
    warnings: list[str]


@check_arguments
def correct_labels(
    corrections: PathLike, catalog: PathLike, out: PathLike, *, new_classes: bool = False, force: bool = False
) -> Corrected:
    """Write a catalog with corrected labels, and without the images that were removed.

    The table of corrections is a .csv file with the columns `row` (of the catalog, from 0), `decision` (keep, correct
    or remove) and `corrected` (the right label, for correct); where it has `path`, `id` or `label`, they are compared
    with those of the catalog. Rows that it does not name stay as they are.

    An image goes to the split of its new class, so that every class stays whole in one split. Where the catalog has
    queries and a gallery, an image that moves to val or test is both.

    Args:
        corrections: the table.
        catalog: the catalog that was audited.
        out: the catalog to write; with `force`, it may be the same.
        new_classes: whether a corrected label may be one that the catalog does not have; its images stay in their
            split.
        force: replace what is at `out`.

    Raises:
        CatalogError: a table is missing or wrong, a row is unknown or of another catalog, a label is unknown, no row is
            left, or a class would be in two splits.
        OverwriteError: something is at `out`, and `force` is False.
    """
    place, target, source = (
        local_path(corrections, "labels"),
        local_path(out, "out"),
        as_place(catalog, "catalog", CatalogError),
    )
    check_suffix(target)
    check_overwrite(target, force)
    before = Catalog.read(source)
    table = read_row_list(place, CORRECTIONS, ("row", "decision", "corrected"))
    rows = rows_named(table, before, place, CORRECTIONS)
    decisions = _decisions(table["decision"], rows, place)
    correct = decisions == "correct"
    labels = _labels(table["corrected"][correct], rows[correct], before, place, new_classes)
    whole = _splits_whole(before)
    after, moved = _relabelled(before, rows[correct], labels)
    removed = rows[decisions == "remove"]
    if len(removed) == len(before):
        raise CatalogError(f"{place} removes every row of {source}: no catalog was written")
    after = after.with_table(after.table.drop(index=removed))
    warnings = check_splits(after) if whole else []
    warnings += _vanished(before, after)
    after.write(target, force)
    changed = int(np.count_nonzero(before.table["label"].to_numpy()[rows[correct]] != labels))
    return Corrected(Catalog.read(target), changed, moved, len(removed), warnings)


def _decisions(column: pd.Series, rows: npt.NDArray[np.int64], path: Path) -> npt.NDArray[np.object_]:
    spelled = column.str.strip().str.lower()
    if (wrong := ~spelled.isin(DECISIONS)).any():
        at = int(np.flatnonzero(wrong)[0])
        raise CatalogError(
            f"{path} has the decision {column.iloc[at]!r} for row {rows[at]}: "
            f"{did_you_mean(spelled.iloc[at], DECISIONS)}"
        )
    decisions: npt.NDArray[np.object_] = spelled.to_numpy(dtype=object)
    return decisions


def _labels(
    column: pd.Series, rows: npt.NDArray[np.int64], catalog: Catalog, path: Path, new_classes: bool
) -> npt.NDArray[np.object_]:
    """The corrected labels as the catalog writes them."""
    known = pd.Series(catalog.classes, dtype=object)
    quoted = without_formulas(known.to_frame("label"))["label"]
    as_written = dict(zip(quoted, known, strict=True)) | {label: label for label in known}
    labels = column.str.strip().where(~column.isin(list(as_written)), column)
    for label, row in zip(labels, rows, strict=True):
        if not label:
            raise CatalogError(f"{path} corrects row {row} but says no label: fill in `corrected`, or write remove")
        if label not in as_written and not new_classes:
            raise CatalogError(
                f"{path} gives row {row} the label {label!r}, a class that the catalog does not have (if it is new, "
                f"give --new_classes): {did_you_mean(label, known)}"
            )
    return np.array([as_written.get(label, label) for label in labels], dtype=object)


def _splits_whole(catalog: Catalog) -> bool:
    """Whether the catalog follows the rules for splits already; where it does not, it need not afterwards."""
    try:
        check_splits(catalog)
    except CatalogError:
        return False
    return True


def _relabelled(catalog: Catalog, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.object_]) -> tuple[Catalog, int]:
    """The catalog with these labels, and how many rows went to another split."""
    table = catalog.table.copy()
    splits = table.groupby("label")["split"].agg(lambda values: values.value_counts().index[0]).to_dict()
    there = table.groupby("label")["split"].agg(set).to_dict()
    old = table["split"].to_numpy(dtype=object)[rows]
    new = np.array(
        [
            split if split in there.get(label, {split}) else splits[label]
            for label, split in zip(labels, old, strict=True)
        ],
        dtype=object,
    )
    table.loc[rows, "label"] = labels
    table.loc[rows, "split"] = new
    to_train, to_others = rows[(new != old) & (new == "train")], rows[(new != old) & (new != "train")]
    for column in ROLE_COLUMNS:
        if column in table:
            table.loc[to_others, column] = True
    for column in MARK_COLUMNS:
        if column in table:
            table.loc[to_train, column] = False
    return catalog.with_table(table), len(to_train) + len(to_others)


def _vanished(before: Catalog, after: Catalog) -> list[str]:
    gone = sorted(set(before.classes) - set(after.classes))
    if not gone:
        return []
    verb = "class has no image any more" if len(gone) == 1 else "classes have no images any more"
    return [f"{len(gone):,} {verb}: {first_few(gone)}"]
