"""Tables that name rows of a catalog, such as audit.csv: read, and checked against the catalog that they are about."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from proxygml.data.catalog import Catalog
from proxygml.data.catalog.table import read_csv_as_text, text_cells
from proxygml.data.csv_form import CsvForm
from proxygml.errors import CatalogError, did_you_mean, first_few
from proxygml.spreadsheet import without_formulas

NAMES = ("path", "id")
"""Columns of a catalog that name an item; where a list has one, it is compared."""


def read_row_list(path: Path, what: str, needed: tuple[str, ...]) -> pd.DataFrame:
    """A .csv file with these columns, all cells text, as it is.

    Args:
        path: the file.
        what: what it is called in messages.
        needed: columns that it must have.

    Raises:
        CatalogError: it is missing, is no table, or lacks a column.
    """
    if not path.is_file():
        raise CatalogError(f"there is no {path}: give {what}")
    try:
        table = read_csv_as_text(path, CsvForm.of(path)).rename(columns=lambda name: str(name).strip())
    except (ValueError, OSError) as error:  # pandas' errors are ValueErrors, and so is a CatalogError
        raise CatalogError(f"{path} cannot be read as {what}: {error}") from error
    for column in needed:
        if column not in table:
            raise CatalogError(
                f"{path} has no column {column!r}, which {what} has: {did_you_mean(column, list(table.columns))}"
            )
    return table


def rows_named(table: pd.DataFrame, catalog: Catalog, path: Path, what: str) -> npt.NDArray[np.int64]:
    """The row of the catalog, int64 (m,), for each row of a list; `row` counts from 0.

    Raises:
        CatalogError: a row is no number, is not in the catalog or comes twice, or its path, id or label is another.
    """
    numbers = pd.to_numeric(table["row"], errors="coerce")
    wrong = ~(numbers.ge(0) & numbers.lt(len(catalog)) & (numbers % 1 == 0))
    if wrong.any():
        raise CatalogError(
            f"{path} names row {first_few(list(table.loc[wrong, 'row'].map(repr)))}, but the catalog has rows 0 to "
            f"{len(catalog) - 1}: give {what} of this catalog"
        )
    rows: npt.NDArray[np.int64] = numbers.to_numpy(dtype=np.int64)
    values, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        raise CatalogError(f"{path} names row {first_few([str(row) for row in values[counts > 1]])} twice: keep one")
    for column in (*NAMES, "label"):
        if column in table and column in catalog.table:
            _check_same(table[column], catalog.table[column].iloc[rows], rows, path, what)
    return rows


def _check_same(given: pd.Series, known: pd.Series, rows: npt.NDArray[np.int64], path: Path, what: str) -> None:
    """Raise CatalogError where a list has another value in a column than its catalog."""
    there = text_cells(known).fillna("")
    quoted = without_formulas(there.to_frame())[known.name]
    found = given.to_numpy(dtype=object)
    wrong = (found != there.to_numpy(dtype=object)) & (found != quoted.to_numpy(dtype=object))
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        raise CatalogError(
            f"{path} has the {known.name} {given.iloc[place]!r} for row {rows[place]}, but the catalog has "
            f"{there.iloc[place]!r}: give {what} of this catalog as it is now"
        )


def flags_of(column: pd.Series, where: str) -> npt.NDArray[np.bool_]:
    """True and False, however a file spells them; an empty cell means True.

    Raises:
        CatalogError: a cell holds something else.
    """
    spelled = text_cells(column).fillna("true").map(lambda value: str(value).strip().lower())
    flags = spelled.map({"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False})
    if (wrong := flags.isna()).any():
        row = int(np.flatnonzero(wrong)[0])
        raise CatalogError(
            f"{where} has {column.name} {str(column.iloc[row])!r} in row {row}, but must have True or False there"
        )
    kept: npt.NDArray[np.bool_] = flags.to_numpy(dtype=bool)
    return kept
