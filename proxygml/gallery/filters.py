"""Which items a filter lets through: `{column: value}` or `{column: [values]}`, as `--where column=value` gives it.

Numbers are compared as numbers, all else as text. Galleries in folders evaluate a filter here; those in Milvus turn it
into an expression (milvus.py).
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import numpy.typing as npt
import pandas as pd

from proxygml.errors import GalleryError

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


def alternatives(values: Value | Sequence[Value]) -> list[Value]:
    """The values of which an item must have one."""
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]


def numbers(column: str, wanted: Sequence[Value]) -> list[float]:
    """The values as numbers.

    Raises:
        GalleryError: one is none.
    """
    return [_number(column, value) for value in wanted]


def _number(column: str, value: Value) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise GalleryError(f"the column {column!r} holds numbers, but {value!r} is none") from None


def check_column(column: str, columns: Sequence[str]) -> None:
    """Raise GalleryError where the item table has no such column."""
    if column not in columns:
        close = get_close_matches(column, columns, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"its columns are {', '.join(columns) or 'none'}"
        raise GalleryError(f"the item table has no column {column!r}: {hint}")


def matches(table: pd.DataFrame, column: str, values: Value | Sequence[Value]) -> npt.NDArray[np.bool_]:
    """Which rows, bool (n,), have one of the values in the column.

    Raises:
        GalleryError: there is no such column, or it holds numbers and a value is none.
    """
    check_column(column, list(table.columns))
    wanted, cells = alternatives(values), table[column]
    if pd.api.types.is_numeric_dtype(cells) and not pd.api.types.is_bool_dtype(cells):
        return np.asarray(cells.astype("float64").isin(numbers(column, wanted)), dtype=bool)
    return np.asarray(cells.astype("string").isin([str(value) for value in wanted]), dtype=bool)


def describe(where: Where | None) -> str:
    """The filter, for a message that says that nothing has passed it."""
    conditions = [f"{column}={' or '.join(map(str, alternatives(values)))}" for column, values in (where or {}).items()]
    return f": none has {', '.join(conditions)}" if conditions else ""
