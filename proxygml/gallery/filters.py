"""Filters, `{column: value}` or `{column: [values]}`, as `--where column=value` gives them: which items pass.

Numbers are compared as numbers, everything else as text. A filter is parsed once; galleries in folders evaluate its
conditions here, those in Milvus turn them into an expression (milvus_expressions.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from proxygml.errors import GalleryError, did_you_mean

Value = str | float | bool
Where = Mapping[str, Value | Sequence[Value]]


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


def numbers(column: str, wanted: Sequence[Value]) -> list[float]:
    """The values as numbers.

    Raises:
        GalleryError: one is no number.
    """
    return [_number(column, value) for value in wanted]


def _number(column: str, value: Value) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise GalleryError(f"the column {column!r} holds numbers, but {value!r} is none") from None


def matches(table: pd.DataFrame, condition: Condition) -> npt.NDArray[np.bool_]:
    """Which rows, bool (n,), meet a condition.

    Raises:
        GalleryError: the column holds numbers and a value is no number.
    """
    cells, wanted = table[condition.column], condition.values
    if pd.api.types.is_numeric_dtype(cells) and not pd.api.types.is_bool_dtype(cells):
        return np.asarray(cells.astype("float64").isin(numbers(condition.column, wanted)), dtype=bool)
    return np.asarray(cells.astype("string").isin([str(value) for value in wanted]), dtype=bool)


def describe(where: Where | None) -> str:
    """The filter, for the end of a message that says that nothing passes it."""
    conditions = [
        f"{column}={' or '.join(map(str, _alternatives(values)))}" for column, values in (where or {}).items()
    ]
    return f": none has {', '.join(conditions)}" if conditions else ""
