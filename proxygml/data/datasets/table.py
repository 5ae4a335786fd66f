"""A table of images that exists already, ours or one made for open-metric-learning.

It only says where the images are; catalog/ reads and checks the table.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from proxygml.console import note
from proxygml.data.catalog import Catalog
from proxygml.data.csv_form import CsvForm
from proxygml.errors import DatasetError, did_you_mean
from proxygml.remote import exists, local_file
from proxygml.urls import Place

if TYPE_CHECKING:
    import pandas as pd


def read(
    root: Place, *, images: Place | None = None, junk_label: str | None = None, distractor_label: str | None = None
) -> Catalog:
    """An existing CSV or Parquet table with the columns path, label and split, as open-metric-learning has them.

    Args:
        root: The table, or its URL.
        images: The folder that the relative paths are relative to, or its URL; by default that of the table.
        junk_label: A label that marks images that no figure counts, such as -1: the column `is_junk` says which.
        distractor_label: A label that marks images that are searched and are always wrong, such as 0: the column
            `is_distractor` says which.

    Raises:
        CatalogError: The table is missing or wrong.
        DatasetError: `images` is no folder, or no image has the label that is named.
    """
    catalog = Catalog.read(root, check_boxes=False)
    if root.suffix.lower() != ".parquet" and (form := str(CsvForm.of(local_file(root, DatasetError)))):
        note(f"{root}: read with {form}")
    for column, label in (("is_junk", junk_label), ("is_distractor", distractor_label)):
        if label is not None:
            catalog = Catalog(_marked(catalog.table, column, label), catalog.folder)
    if isinstance(images, Path) and not images.is_dir():
        raise DatasetError(f"--images {images} is no folder: expected the one that the paths in {root} are relative to")
    return _with_slashes(Catalog(catalog.table, images or catalog.folder))


def _with_slashes(catalog: Catalog) -> Catalog:
    """The catalog with `/` between folders where Windows has written backslashes, and no file has such a name."""
    paths = catalog.table["path"]
    written = paths.str.contains("\\", regex=False).to_numpy(dtype=bool)
    if os.sep != "/" or not written.any():
        return catalog
    places = zip(paths, catalog.paths, written, strict=True)
    shown = [path.replace("\\", "/") if odd and not exists(place) else path for path, place, odd in places]
    return Catalog(catalog.table.assign(path=shown), catalog.folder)


def _marked(table: "pd.DataFrame", column: str, label: str) -> "pd.DataFrame":
    """The table with the images of that label marked, besides those that the column marks already."""
    marked = table["label"] == label
    if not marked.any():
        raise DatasetError(f"no image has the label {label!r}: {did_you_mean(label, table['label'].unique())}")
    return table.assign(**{column: marked | table[column] if column in table else marked})
