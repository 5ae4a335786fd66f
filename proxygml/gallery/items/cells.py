"""Columns of items converted to the gallery's types, and tables joined and written without changing any value."""

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from proxygml.errors import GalleryError
from proxygml.gallery.filters.values import UNITS, decimal_of, point_in_time, span_of, truth_of
from proxygml.gallery.items.column_types import ColumnType, Schema

EPOCH = date(1970, 1, 1)


def converted(name: str, cells: pd.Series, kind: ColumnType) -> pd.Series:
    """A column's cells as its type; text is read as what the column holds: `3`, from a form, becomes a number.

    Raises:
        GalleryError: a cell that the column cannot hold as it is.
    """
    if isinstance(cells.dtype, pd.CategoricalDtype | pd.ArrowDtype):
        cells = cells.astype(object)
    if cells.dtype == kind.dtype and cells.dtype != object:
        return cells
    if (fast := _converted_at_once(cells, kind)) is not None:
        return fast
    read = _reader(kind)
    values: list[Any] = []
    for value, gone in zip(cells.tolist(), cells.isna(), strict=True):
        found = None if gone else read(value)
        if found is None and not gone:
            raise GalleryError(_refusal(name, value, kind))
        values.append(found)
    return column_of(values, cells.index, kind)


def _converted_at_once(cells: pd.Series, kind: ColumnType) -> pd.Series | None:
    """Cells of a related type of pandas; None where each has to be looked at."""
    types = pd.api.types
    if kind.listed:
        return None
    if types.is_bool_dtype(cells.dtype) and cells.dtype != object and kind.name == "bool":
        return cells.astype(kind.dtype)
    if types.is_integer_dtype(cells.dtype) and kind.name == "int64":
        unsigned = types.is_unsigned_integer_dtype(cells.dtype) and cells.dtype.itemsize == 8
        return None if unsigned else cells.astype(kind.dtype)
    if types.is_float_dtype(cells.dtype) and kind.name == "float64":
        return cells.astype(kind.dtype)
    return None


def column_of(values: list[Any], index: pd.Index, kind: ColumnType) -> pd.Series:
    """Canonical values, None for missing ones, as a column."""
    if kind.name in ("int64", "uint64") and not kind.listed:
        mask = np.array([value is None for value in values], dtype=bool)
        numbers = np.array([0 if value is None else value for value in values], dtype=kind.name)
        array = pd.arrays.IntegerArray(numbers, mask)
        return pd.Series(array, index)
    return pd.Series(values, index, dtype=kind.dtype)


def _reader(kind: ColumnType) -> Callable[[Any], Any]:
    """What turns one cell into a value of the type, or into None where it is none."""
    if kind.listed:
        read = _reader(kind.element)
        return lambda cell: _list_of(cell, read)
    readers: dict[str, Callable[[Any], Any]] = {
        "null": lambda value: None,
        "str": str,
        "other": lambda value: value,
        "int64": lambda value: _whole(value, -(2**63), 2**63),
        "uint64": lambda value: _whole(value, 0, 2**64),
        "float32": lambda value: _float(value, np.float32),
        "float64": lambda value: _float(value, np.float64),
        "decimal": _decimal,
        "bool": truth_of,
        "date": _date,
        "time": lambda value: _time(value, kind),
    }
    return readers[kind.name]


def _list_of(cell: Any, read: Callable[[Any], Any]) -> list[Any] | None:
    if not pd.api.types.is_list_like(cell) or isinstance(cell, dict):
        return None
    found = [None if _is_missing(value) else read(value) for value in cell]
    wrong = any(one is None and not _is_missing(value) for one, value in zip(found, cell, strict=True))
    return None if wrong else found


def _is_missing(value: Any) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _whole(value: Any, least: int, end: int) -> int | None:
    number = decimal_of(value)
    if not isinstance(number, Decimal) or number != number.to_integral_value() or not least <= number < end:
        return None
    return int(number)


def _float(value: Any, kind: Any) -> float | None:
    number = decimal_of(value)
    if not isinstance(number, Decimal):
        return None
    with np.errstate(over="ignore"):
        found = float(kind(float(number)))
    whole = number == number.to_integral_value()
    return found if np.isfinite(found) and (not whole or Decimal(found) == number) else None


def _decimal(value: Any) -> Decimal | None:
    number = decimal_of(value)
    return number if isinstance(number, Decimal) else None


def _date(value: Any) -> date | None:
    span = span_of(value)
    whole_day = span is not None and (span.exact or span.end - span.start == UNITS["D"]) and not span.start % UNITS["D"]
    if span is None or span.zoned or not (whole_day or (span.timed and not span.start % UNITS["D"])):
        return None
    return EPOCH + timedelta(days=span.start // UNITS["D"])


def _time(value: Any, kind: ColumnType) -> Any:
    span, unit = span_of(value), UNITS[kind.unit]
    if span is None or span.zoned != bool(kind.zone) or span.start % unit:
        return None
    count = span.start // unit
    if span.end - span.start > UNITS["D"] or not -(2**63) < count < 2**63:
        return None  # a month or a year is no point in time
    return point_in_time(count, kind.unit, kind.zone)


def _refusal(name: str, value: object, kind: ColumnType) -> str:
    shown = repr(value) if len(repr(value)) < 100 else f"{repr(value)[:100]}..."
    number = decimal_of(value) if not kind.listed else None
    beyond = ", beyond that" if isinstance(number, Decimal) and abs(number) > 2**53 and "int" in kind.name else ""
    example = f": give one such as {kind.example}" if kind.example and not kind.listed else ""
    if kind.listed:
        example = ": give a list"
    return f"the column {name!r} holds {kind.words}, but an item has {shown}{beyond}{example}"


def empty_column(index: pd.Index, kind: ColumnType) -> pd.Series:
    """A column in which all is missing."""
    return column_of([None] * len(index), index, kind)


def with_columns(table: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    """A table whose cells are of the gallery's types already, with all of its columns and in their order."""
    parts = {}
    for name, kind in schema.items():
        if name not in table.columns:
            parts[name] = empty_column(table.index, kind)
        elif table[name].dtype == kind.dtype:
            parts[name] = table[name]
        else:  # all is missing, and the type was not known yet
            parts[name] = converted(name, table[name], kind)
    return pd.DataFrame(parts, index=table.index, columns=list(schema))


def joined(tables: Sequence[pd.DataFrame], schema: Schema) -> pd.DataFrame:
    """Tables of the gallery's types one after the other; a column that one of them lacks is empty there."""
    return pd.concat([with_columns(table, schema) for table in tables])


# Files ----------------------------------------------------------------------------------------------------------------


def arrow_table(table: pd.DataFrame, schema: Schema) -> pa.Table:
    """Columns of the gallery's types as Arrow's.

    Raises:
        GalleryError: values that Arrow does not know.
    """
    columns = {}
    for name, kind in schema.items():
        try:
            columns[name] = pa.array(table[name], arrow_type(kind), from_pandas=True)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise GalleryError(f"the column {name!r} cannot be stored ({error}): convert it to text") from error
    return pa.table(columns)


def arrow_type(kind: ColumnType) -> pa.DataType | None:
    """The type of Arrow; None where it depends on the values."""
    simple = {"str": pa.string(), "int64": pa.int64(), "uint64": pa.uint64(), "bool": pa.bool_(), "null": pa.null()}
    simple |= {"float32": pa.float32(), "float64": pa.float64(), "date": pa.date32()}
    element = pa.timestamp(kind.unit, kind.zone or None) if kind.name == "time" else simple.get(kind.name)
    return pa.list_(element) if kind.listed and element is not None else element
