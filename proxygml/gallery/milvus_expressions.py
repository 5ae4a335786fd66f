"""Filters in the language of Milvus."""

import math
from collections.abc import Sequence

import numpy as np

from proxygml.arrays import Rows
from proxygml.gallery.filters import Condition, Value, fits_integer, numbers, same_as_float
from proxygml.gallery.milvus_schema import OTHERS, ColumnKind, Columns

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def expression(conditions: Sequence[Condition], columns: Columns, fields: Sequence[str]) -> str:
    """The conditions as an expression of Milvus; a value cannot be taken for a part of the expression.

    Args:
        conditions: one or more.
        columns: of the gallery.
        fields: those that have a field of their own.

    Raises:
        GalleryError: see filters.matches.
    """
    parts = []
    for condition in conditions:
        column, kind = condition.column, columns[condition.column]
        literals = _literals(condition, kind)
        if not literals:
            parts.append("id < 0")
        elif column in fields and kind != "bool":
            parts.append(f"{column} in [{', '.join(literals)}]")
        else:  # milvus-lite has no `in` for these
            cell = column if column in fields else f"{OTHERS}[{quoted(column)}]"
            parts.append("(" + " or ".join(f"{cell} == {literal}" for literal in literals) + ")")
    return " and ".join(parts)


def _literals(condition: Condition, kind: ColumnKind) -> list[str]:
    """Those of the values that the column can have at all, as Milvus writes them."""
    wanted: Sequence[Value] = condition.values
    if kind == "bool":
        return [str(value).lower() for value in wanted if str(value) in ("True", "False")]
    if kind == "str":
        return [quoted(str(value)) for value in wanted]
    parsed = numbers(condition.column, wanted)
    if kind == "float64":
        return [repr(float(value)) for value in parsed if same_as_float(value) and math.isfinite(value)]
    return [str(value) for value in parsed if isinstance(value, int) and fits_integer(value, np.dtype(np.int64))]


def quoted(text: str) -> str:
    """A text as a literal of Milvus's language."""
    return f'"{text.translate(_ESCAPES)}"'


def ids_in(ids: Sequence[int] | Rows) -> str:
    """The expression for these items."""
    return f"id in [{', '.join(map(str, ids))}]"
