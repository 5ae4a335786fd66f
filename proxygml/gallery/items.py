"""Items that are to join a table: their cells as its columns hold them, numbers, truth values, dates, times or text."""

import contextlib
import math
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

from proxygml.errors import GalleryError
from proxygml.gallery.filters import numbers


def coerce_items(items: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The items, n rows, with cells of the kinds that the columns of the table have; those it lacks stay as they are.

    Text is read as what the column holds: `3` in a column of numbers is a number, as a form or a CSV file has it. What
    no text can be read as, such as a list, must come as what it is.

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
    if isinstance(present.dtype, pd.CategoricalDtype):
        present = present.astype(present.dtype.categories.dtype)
    kind = pd.api.types.infer_dtype(present)
    missing = cells.isna()
    given = cells[~missing].astype(object)
    fitting: list[Any]
    if kind == "boolean":
        fitting = [_truth(name, value) for value in given]
    elif pd.api.types.is_numeric_dtype(present):
        fitting = [_number(name, value, exact=kind == "integer") for value in given]
        if kind == "integer" and not missing.any() and all(number == int(number) for number in fitting):
            fitting = [int(number) for number in fitting]
    elif kind == "date":
        fitting = [_date(name, value) for value in given]
    elif kind == "datetime64":
        fitting = [_time(name, value, present.dtype) for value in given]
    elif kind == "string":
        fitting = [str(value) for value in given]
    else:
        fitting = given.tolist()
        if len(given) and (found := pd.api.types.infer_dtype(given)) != kind:
            raise GalleryError(
                f"the column {name!r} holds values of the kind {kind}, but an item has {fitting[0]!r}, of the kind "
                f"{found}: leave it empty, or add the items from a table whose column is of that kind"
            )
    whole = pd.Series(np.full(len(cells), None, dtype=object), index=cells.index)
    whole[~missing] = pd.Series(fitting, index=given.index, dtype=object)
    return whole.astype(present.dtype) if kind == "datetime64" else whole.infer_objects()


def _date(name: str, value: object) -> date:
    time = _parsed(value)
    if pd.isna(time) or time != time.normalize():
        raise GalleryError(f"the column {name!r} holds dates, but an item has {value!r}: give one such as 2021-01-31")
    found: date = time.date()
    return found


def _time(name: str, value: object, dtype: Any) -> object:
    try:
        (time,) = pd.Series([_parsed(value)]).astype(dtype)
    except (ValueError, TypeError):  # with a time zone where the column has none, or the other way round
        time = pd.NaT
    if pd.isna(time):
        example = pd.Series(["2021-01-31T12:00:00"]).astype("datetime64[ns]")
        example = example.dt.tz_localize(getattr(dtype, "tz", None))
        raise GalleryError(
            f"the column {name!r} holds times, but an item has {value!r}: give one such as {example[0].isoformat()}"
        )
    return time


def _parsed(value: object) -> Any:
    """A point in time as ISO 8601 writes it, or NaT."""
    return pd.to_datetime(str(value), format="ISO8601", errors="coerce")


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
