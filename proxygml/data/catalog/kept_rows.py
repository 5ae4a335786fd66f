"""Which rows of a catalog train: those that neither its column `keep` nor the table of an audit leaves out."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from proxygml.data.catalog import Catalog
from proxygml.data.catalog.row_list import flags_of, read_row_list, rows_named
from proxygml.data.columns import KEEP

AUDIT = "the audit.csv of `proxygml audit`"


def kept_rows(catalog: Catalog, drop: Path | None = None) -> npt.NDArray[np.bool_]:
    """Which rows stay, bool (n,); those that are not mentioned do.

    Args:
        catalog: where it has a column `keep`, rows with False there are left out.
        drop: a table of `proxygml audit`, or any .csv file with the columns `row` and `keep`; so are its rows with
            False.

    Raises:
        CatalogError: the table is missing, is about another catalog, or `keep` holds something else than True, False
            or nothing.
    """
    kept = np.ones(len(catalog), bool)
    if KEEP in catalog.table:
        kept &= flags_of(catalog.table[KEEP], "the catalog")
    if drop is not None:
        table = read_row_list(drop, AUDIT, ("row", KEEP))
        rows = rows_named(table, catalog, drop, AUDIT)
        kept[rows] &= flags_of(table[KEEP], str(drop))
    return kept
