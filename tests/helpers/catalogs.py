"""Catalogs of a few rows, whose images do not exist."""

from pathlib import Path

import pandas as pd

from proxygml.data.catalog import Catalog


def catalog_of(*rows: tuple[str, str], folder: Path = Path("pictures"), **columns: object) -> Catalog:
    """A catalog of (label, split) rows."""
    table = pd.DataFrame(rows, columns=["label", "split"])
    return Catalog(table.assign(path=[f"{row}.jpg" for row in range(len(rows))], **columns), folder)
