"""Filters, `{column: value}` or `{column: [values]}`, as `--where column=value` gives them: which items pass.

Numbers are compared as numbers, everything else as text. A filter is parsed once; galleries in folders evaluate its
conditions here, those in Milvus turn them into an expression (milvus_expressions.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from proxygml.errors import GalleryError, did_you_mean

Value = str | float | bool
Where = Mapping[str, Value | Sequence[Value]]

_MOST_DIGITS = 400  # before the decimal point: no column holds larger numbers


def column_values(pairs: Sequence[str]) -> dict[str, list[str]]:
    """The values of each column, of texts like `label=sparrow`; several of one column are alternatives.

    Raises:
        GalleryError: one is no such pair.
    """
    found: dict[str, list[str]] = {}
    for pair in pairs:
        column, equals, value = pair.partition("=")
        if not equals:
            raise GalleryError(f"{pair!r} has no =: expected column=value, such as label=sparrow")
        found.setdefault(column, []).append(value)
    return found


@dataclass(frozen=True)
class Condition:
    """One column of a filter: an item passes when its cell has one of the values."""

    column: str
    values: tuple[Value, ...]


def parse_where(where: Where, columns: Sequence[str]) -> list[Condition]:
    """The conditions of a filter on an item table with these columns.

    Raises:
        GalleryError: there is no such column.
    """
    for column in where:
        if column not in columns:
            raise GalleryError(f"the item table has no column {column!r}: {did_you_mean(column, columns)}")
    return [Condition(column, _alternatives(values)) for column, values in where.items()]


def _alternatives(values: Value | Sequence[Value]) -> tuple[Value, ...]:
    return tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else (values,)


def numbers(column: str, wanted: Sequence[Value]) -> list[int | float]:
    """The values as numbers, whole ones exactly, however large: a float holds them only up to 2**53.

    Raises:
        GalleryError: one is no number.
    """
    return [_number(column, value) for value in wanted]


def _number(column: str, value: Value) -> int | float:
    text = str(value).strip()
    try:
        return int(text)
    except ValueError:  # 3.0 and 1e3 are whole too
        pass
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise GalleryError(f"the column {column!r} holds numbers, but {value!r} is none") from None
    small = number.is_finite() and number.adjusted() < _MOST_DIGITS
    return int(number) if small and number == number.to_integral_value() else float(number)


def matches(table: pd.DataFrame, condition: Condition) -> npt.NDArray[np.bool_]:
    """Which rows, bool (n,), meet a condition.

    Raises:
        GalleryError: the column holds numbers and a value is no number.
    """
    cells, wanted = table[condition.column], condition.values
    if pd.api.types.is_numeric_dtype(cells) and not pd.api.types.is_bool_dtype(cells):
        return _equal_numbers(cells, numbers(condition.column, wanted))
    return np.asarray(cells.astype("string").isin([str(value) for value in wanted]), dtype=bool)


def _equal_numbers(cells: pd.Series, wanted: Sequence[int | float]) -> npt.NDArray[np.bool_]:
    """Which cells, bool (n,), are one of the numbers, compared in the type of the cells."""
    present = cells.notna().to_numpy(dtype=bool)
    kind = np.dtype(getattr(cells.dtype, "numpy_dtype", cells.dtype))
    values: list[int | float]
    if kind.kind in "iu":
        values = [number for number in wanted if isinstance(number, int) and fits_integer(number, kind)]
    else:
        values = [number for number in wanted if same_as_float(number)]
    known = cells.to_numpy(dtype=kind, na_value=kind.type(0)) if not present.all() else cells.to_numpy(dtype=kind)
    return np.asarray(np.isin(known, np.array(values, dtype=kind)) & present, dtype=bool)


def fits_integer(number: int, kind: np.dtype[Any]) -> bool:
    """Whether an integer type can hold the number."""
    return int(np.iinfo(kind).min) <= number <= int(np.iinfo(kind).max)


def same_as_float(number: int | float) -> bool:
    """Whether a float can hold the number: not so for most whole numbers beyond 2**53."""
    return not isinstance(number, int) or (abs(number) < 2**1023 and float(number) == number)


def describe(where: Where | None) -> str:
    """The filter, for the end of a message that says that nothing passes it."""
    conditions = [
        f"{column}={' or '.join(map(str, _alternatives(values)))}" for column, values in (where or {}).items()
    ]
    return f": none has {', '.join(conditions)}" if conditions else ""
