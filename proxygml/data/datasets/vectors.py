"""Vectors of your own with their labels: a Parquet file with a column of vectors, or a .npy file and a table.

The vectors are not read here; preparing/prepare_vectors.py checks them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxygml.data.columns import EMBEDDING, EMBEDDING_ROW
from proxygml.data.datasets.layout import choose_test_classes
from proxygml.errors import CatalogError, DatasetError, counted, did_you_mean
from proxygml.remote import local_file
from proxygml.urls import Place

if TYPE_CHECKING:
    import pandas as pd

    from proxygml.data.vectors.source import VectorSource


@dataclass(frozen=True)
class VectorTable:
    """Vectors, and a table with `label`, `split` and the columns of your own, a row for each of them.

    Rows without a label have None, and no split.
    """

    table: "pd.DataFrame"
    vectors: "VectorSource"
    folder: Place


def read(
    root: Place,
    *,
    label: str = "label",
    vectors: Place | None = None,
    column: str = EMBEDDING,
    test_classes: str | None = None,
) -> VectorTable:
    """Vectors that you have: a Parquet file with a column of them and one of labels; or a .npy file and a table.

    All other columns are kept. A column `path` names the images that reports and searches show; `id` names a row in
    messages.

    Args:
        root: The Parquet file; or the table, .parquet or .csv, whose rows belong to those of `vectors`. Or a URL.
        label: The column that says which class a row is of.
        vectors: A .npy file or its URL, (n, F) floats; then `root` needs no column of vectors.
        column: The column of vectors in `root`: lists of floats of one length.
        test_classes: Which classes are for testing: `half`, a number (the last ones by name), or a text file with one
            class name per line. Not for a table that has a column `split` (train, val, test) already.

    Raises:
        CatalogError: A file is missing or cannot be read, or there is no such column of vectors.
        DatasetError: There are no labels, `test_classes` is wrong or missing, or the files have unequal lengths.
    """
    from proxygml.data.catalog.table import load_table, text_cells  # noqa: PLC0415  (the command's help does without)
    from proxygml.data.vectors.source import VectorSource  # noqa: PLC0415

    if root.suffix.lower() == ".npy":
        raise DatasetError(f"{root} has no labels: give the table that has them as --root, and this file as --vectors")
    if vectors is None and root.suffix.lower() != ".parquet":
        raise DatasetError(
            f"{root} is no .parquet file with a column of vectors: give the vectors with --vectors FILE.npy"
        )
    source = VectorSource(root, column) if vectors is None else VectorSource(vectors)
    table = load_table(local_file(root, CatalogError), source if vectors is None else None)
    if len(table) != source.rows:
        raise DatasetError(
            f"{root} has {counted(len(table), 'row')}, but {source.path} {counted(source.rows, 'vector')}: "
            "give one for each"
        )
    table = table.drop(columns=EMBEDDING, errors="ignore").assign(**{EMBEDDING_ROW: range(len(table))})
    if label not in table:
        raise DatasetError(
            f"{root} has no column {label!r} of labels; name the one that holds them with --label: "
            f"{did_you_mean(label, [str(name) for name in table.columns if name != EMBEDDING_ROW])}"
        )
    if not len(table):
        raise DatasetError(f"{root} has no rows: give a table of vectors with their labels")
    table["label"] = text_cells(table[label])
    if table["label"].isna().all():
        raise DatasetError(f"{root} has no label at all in its column {label!r}: name another one with --label")
    return VectorTable(_with_splits(table, root, test_classes), source, root.parent)


def _with_splits(table: "pd.DataFrame", root: Place, test_classes: str | None) -> "pd.DataFrame":
    classes = sorted(set(table["label"].dropna()))
    if "split" in table and test_classes is not None:
        raise DatasetError(f"{root} has a column split already: leave out --test_classes, or that column")
    if "split" in table:
        return table
    if test_classes is None:
        raise DatasetError(
            f"{root} has {counted(len(classes), 'class')}: say which are for testing: "
            "--test_classes half, NUMBER or FILE"
        )
    tested = choose_test_classes(classes, test_classes)
    return table.assign(split=table["label"].isin(tested).map({True: "test", False: "train"}))
