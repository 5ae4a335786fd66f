"""Item tables in Milvus: columns as fields of a collection, and rows of a table as rows of Milvus and back."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from proxygml.arrays import Rows, Vectors
from proxygml.errors import GalleryError
from proxygml.gallery.filters import Value

ColumnKind = Literal["int64", "float64", "bool", "str"]
Columns = Mapping[str, ColumnKind]

OTHERS = "other_columns"
"""The JSON field for columns whose names no field can have, and for those that came after the gallery was made."""

TEXT_BYTES = 65_535
"""Of a text field, at most."""

FIELD_TYPES = {"int64": "INT64", "float64": "DOUBLE", "bool": "BOOL", "str": "VARCHAR"}

_KEYWORDS = ("and", "or", "not", "in", "like", "is", "null", "exists", "iso", "interval", "true", "false", OTHERS)


def fields_of(columns: Columns) -> list[str]:
    """The columns that become fields of their own; the others share the field OTHERS."""
    return [
        name for name in columns if re.fullmatch(r"[A-Za-z_]\w{0,254}", name, re.A) and name.lower() not in _KEYWORDS
    ]


def columns_of(items: pd.DataFrame) -> dict[str, ColumnKind]:
    """What each column of an item table holds; all but numbers and truth values is kept as text."""
    types = pd.api.types
    tests: tuple[tuple[Callable[[object], bool], ColumnKind], ...] = (
        (types.is_bool_dtype, "bool"),
        (types.is_integer_dtype, "int64"),
        (types.is_float_dtype, "float64"),
    )
    return {
        str(name): next((kind for test, kind in tests if test(cells.dtype)), "str") for name, cells in items.items()
    }


def rows_of(
    ids: Rows, vectors: Vectors, items: pd.DataFrame, columns: Columns, fields: Sequence[str]
) -> list[dict[str, object]]:
    """The rows of an item table as Milvus inserts them.

    Args:
        ids: (n,).
        vectors: (n, D).
        items: n rows.
        columns: of the gallery; all columns of the items are among them.
        fields: which of them have a field of their own.

    Raises:
        GalleryError: a cell that the column cannot hold.
    """
    cells = {str(name): _cells(str(name), items[name], columns[str(name)]) for name in items.columns}
    typed, others = [name for name in cells if name in fields], [name for name in cells if name not in fields]
    rows = []
    for place, number in enumerate(ids.tolist()):
        more = {name: cells[name][place] for name in others if cells[name][place] is not None}
        row: dict[str, object] = {"id": number, "embedding": vectors[place], OTHERS: more or None}
        rows.append(row | {name: cells[name][place] for name in typed})
    return rows


def _cells(column: str, cells: pd.Series, kind: ColumnKind) -> list[Value | None]:
    missing = cells.isna().to_numpy()
    try:
        return [None if gone else _cell(value, kind) for value, gone in zip(cells.tolist(), missing, strict=True)]
    except ValueError as error:
        raise GalleryError(f"the gallery's column {column!r} holds {kind}, but an item has {error}") from None


def _cell(value: Any, kind: ColumnKind) -> Value:
    """The value as that kind; a ValueError that shows it where it is none."""
    if kind == "str":
        if len((text := str(value)).encode()) > TEXT_BYTES:
            raise ValueError(f"a text of more than {TEXT_BYTES:,} bytes")
        return text
    kinds: dict[str, Callable[[Any], Value]] = {"bool": bool, "int64": int, "float64": float}
    fits = {
        "bool": isinstance(value, bool),
        "int64": isinstance(value, int | float),
        "float64": not isinstance(value, str),
    }
    if not fits[kind] or not math.isfinite(value):
        raise ValueError(repr(value))
    if kind == "int64" and (value != int(value) or not -(2**63) <= value < 2**63):
        raise ValueError(repr(value))
    return kinds[kind](value)


def table_of(rows: Sequence[Mapping[str, Any]], columns: Columns) -> pd.DataFrame:
    """The item table, by id, of rows that Milvus returned."""
    ids = pd.Index([row["id"] for row in rows], dtype=np.int64, name="id")
    flat = [{**(row.get(OTHERS) or {}), **row} for row in rows]
    series = {name: _series([row.get(name) for row in flat], kind, ids) for name, kind in columns.items()}
    return pd.DataFrame(series, index=ids, columns=list(columns))


def _series(cells: list[Any], kind: ColumnKind, ids: pd.Index) -> pd.Series:
    """Where a cell is missing, whole numbers and truth values take pandas' nullable types, which keep them exact."""
    if kind in ("int64", "bool") and any(cell is None for cell in cells):
        return pd.Series(cells, ids, "Int64" if kind == "int64" else "boolean")
    return pd.Series(cells, ids, kind)
