"""A table of images that exists already, ours or one made for open-metric-learning.

It only says where the images are; catalog.py reads and checks the table.
"""

from pathlib import Path

from proxygml.data.catalog import Catalog
from proxygml.errors import DatasetError


def read(root: Path, *, images: Path | None = None) -> Catalog:
    """An existing CSV or Parquet table with the columns path, label and split, as open-metric-learning has them.

    Args:
        root: The table.
        images: The folder that the relative paths are relative to; by default that of the table.

    Raises:
        CatalogError: The table is missing or wrong.
        DatasetError: `images` is no folder.
    """
    catalog = Catalog.read(root, check_boxes=False)
    if images is None:
        return catalog
    if not images.is_dir():
        raise DatasetError(f"--images {images} is no folder: expected the one that the paths in {root} are relative to")
    return Catalog(catalog.table, images)
