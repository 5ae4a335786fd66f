"""Items that are to join a table: their cells as its columns hold them, numbers, truth values or text."""

import contextlib
import math
from typing import Any

import numpy as np
import pandas as pd

from proxygml.errors import GalleryError
from proxygml.filters import numbers


def fitted(items: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The items, n rows, with cells of the kinds that the columns of the table have; those it lacks stay as they are.

    Text is read as what the column holds: `3` in a column of numbers is a number, as a form or a CSV file has it.

    Raises:
        GalleryError: a cell that its column cannot hold.
    """
    cells = {}
    for name in items.columns.intersection(table.columns):
        present = table[name].dropna()
        if len(present) and (items[name].dtype == object or items[name].dtype != table[name].dtype):
            cells[name] = _fitted_column(str(name), items[name], present)
    return items.assign(**cells)


def _fitted_column(name: str, cells: pd.Series, present: pd.Series) -> pd.Series:
    kind = pd.api.types.infer_dtype(present)
    missing = cells.isna()
    fitting: list[Any]
    if kind == "boolean":
        fitting = [_truth(name, value) for value in cells[~missing]]
    elif pd.api.types.is_numeric_dtype(present):
        fitting = [_number(name, value, exact=kind == "integer") for value in cells[~missing]]
        if kind == "integer" and not missing.any() and all(number == int(number) for number in fitting):
            fitting = [int(number) for number in fitting]
    else:
        fitting = [str(value) for value in cells[~missing]]
    whole = pd.Series(np.full(len(cells), None, dtype=object), index=cells.index)
    whole[~missing] = fitting
    return whole.infer_objects()


def _number(name: str, value: Any, *, exact: bool) -> float:
    """A cell as a number; exact: a whole one as it is written, which a float cannot hold beyond 2**53."""
    (number,) = numbers(name, [value])
    if not math.isfinite(number):
        raise GalleryError(f"the column {name!r} holds numbers, but an item has {value!r}: give a finite one")
    if not exact or number != int(number):
        return number
    with contextlib.suppress(ValueError):  # 3.0 and 1e3 are whole too
        number = int(str(value))
    if not -(2**63) <= number < 2**63:
        raise GalleryError(f"the column {name!r} holds whole numbers of 64 bits, but an item has {value!r}, beyond")
    return number


def _truth(name: str, value: object) -> bool:
    if str(value) not in ("True", "False"):
        raise GalleryError(f"the column {name!r} holds True and False, but an item has {value!r}")
    return str(value) == "True"
