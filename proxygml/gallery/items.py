"""Items that are added to a gallery: checks, and cells converted to what the columns hold."""

import math
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

from proxygml.arrays import Rows
from proxygml.errors import GalleryError
from proxygml.gallery.filters import fits_integer, numbers

RESERVED = ("id", "removed", "query", "rank", "score", "embedding")
"""Names of columns that search results and the gallery's own files use."""


def check_items(items: pd.DataFrame, count: int) -> None:
    """Raise GalleryError where an item table does not fit `count` vectors, or has a column with a reserved name."""
    if len(items) != count:
        raise GalleryError(f"there are {len(items)} items, but {count} embeddings: give one row for each")
    taken = [name for name in items.columns if name in RESERVED]
    if taken:
        raise GalleryError(f"the items have a column {taken[0]!r}, a name that search results use: rename it")


def first_equal_ids(wanted: pd.DataFrame, items: pd.DataFrame, columns: Sequence[str]) -> Rows:
    """See Backend.ids_of; `items` are by id."""
    keys = list(columns)
    known = items.reindex(columns=keys).reset_index().drop_duplicates(keys)
    given = wanted.reindex(columns=keys)
    if empty := [key for key in keys if known[key].isna().all() or given[key].isna().all()]:
        known, given = (part.astype(dict.fromkeys(empty, object)) for part in (known, given))
    ids: Rows = given.merge(known, "left", on=keys)["id"].fillna(-1).to_numpy(dtype=np.int64)
    return ids


def joined_tables(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Item tables one after the other. A column that one of them lacks is empty there.

    Whole numbers and truth values then take pandas' nullable types: without them pandas turns whole numbers into
    floats, which are exact only up to 2**53, and truth values into objects.
    """
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    lacking = {column for column in columns if any(column not in table.columns for table in tables)}
    return pd.concat([table.astype(_nullable_types(table, lacking)) for table in tables])


def _nullable_types(table: pd.DataFrame, columns: set[str]) -> dict[str, Any]:
    kinds = {name: nullable_type(table[name].dtype) for name in table.columns if name in columns}
    return {name: kind for name, kind in kinds.items() if kind != table[name].dtype}


def nullable_type(dtype: Any) -> Any:
    """The type that holds the same values and missing ones; the type itself where it does so already."""
    if isinstance(dtype, np.dtype) and dtype.kind in "iub":
        return pd.array([], dtype=dtype.name.capitalize().replace("Ui", "UI") if dtype.kind != "b" else "boolean").dtype
    return dtype


def coerce_items(items: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The items, n rows, with their cells converted to the types of the table's columns; new columns stay as they are.

    Text is parsed as what the column holds: `3`, from a form or a CSV file, becomes a number in a column of numbers.
    Values that no text stands for, such as lists, must be given as they are.

    Raises:
        GalleryError: a cell that its column cannot hold.
    """
    cells = {}
    for name in items.columns.intersection(table.columns):
        present = table[name].dropna()
        if len(present) and (items[name].dtype == object or items[name].dtype != table[name].dtype):
            cells[name] = _coerced_column(str(name), items[name], present)
    return items.assign(**cells)


def _coerced_column(name: str, cells: pd.Series, present: pd.Series) -> pd.Series:
    if isinstance(present.dtype, pd.CategoricalDtype):
        present = present.astype(present.dtype.categories.dtype)
    kind = pd.api.types.infer_dtype(present)
    missing = cells.isna()
    given = cells[~missing].astype(object)
    fitting: list[Any]
    if kind == "boolean":
        return _series([_truth(name, value) for value in given], cells, missing, np.dtype(bool))
    if pd.api.types.is_numeric_dtype(present):
        integers = np.dtype(getattr(present.dtype, "numpy_dtype", present.dtype)) if kind == "integer" else None
        fitting = [_number(name, value, integers) for value in given]
        if integers is not None and all(isinstance(number, int) for number in fitting):
            return _series(fitting, cells, missing, integers)
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


def _series(values: list[Any], cells: pd.Series, missing: pd.Series, kind: np.dtype[Any]) -> pd.Series:
    """The values in the places of the cells that are not missing, in that type or its nullable form."""
    whole = pd.Series(pd.NA, index=cells.index, dtype=nullable_type(kind))
    whole[~missing] = pd.array(values, dtype=nullable_type(kind))
    return whole if missing.any() else whole.astype(kind)


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


def _number(name: str, value: Any, integers: np.dtype[Any] | None) -> int | float:
    """A cell as a number; whole ones exactly, and where the column holds whole numbers, of its type."""
    (number,) = numbers(name, [value])
    if not math.isfinite(number):
        raise GalleryError(f"the column {name!r} holds numbers, but an item has {value!r}: give a finite one")
    if integers is None:
        return float(number)
    if isinstance(number, int) and not fits_integer(number, integers):
        bits = 8 * integers.itemsize
        raise GalleryError(f"the column {name!r} holds whole numbers of {bits} bits, but an item has {value!r}, beyond")
    return number


def _truth(name: str, value: object) -> bool:
    if str(value) not in ("True", "False"):
        raise GalleryError(f"the column {name!r} holds True and False, but an item has {value!r}")
    return str(value) == "True"
