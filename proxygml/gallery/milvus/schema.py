"""Item tables in Milvus: columns as fields of a collection, and rows of a table as rows of Milvus and back."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pandas as pd

from proxygml.arrays import Rows, Vectors
from proxygml.errors import GalleryError
from proxygml.gallery.filters.matching import comparable
from proxygml.gallery.filters.values import point_in_time
from proxygml.gallery.items.cells import EPOCH, column_of
from proxygml.gallery.items.column_types import ColumnType, Schema

OTHERS = "other_columns"
"""The JSON field for columns whose names no field can have, and for those that came after the gallery was made."""

TEXT_BYTES = 65_535
"""Of a text field, at most."""

FIELD_TYPES = {
    "int64": "INT64", "float32": "DOUBLE", "float64": "DOUBLE", "bool": "BOOL", "date": "INT64", "time": "INT64",
    "str": "VARCHAR", "uint64": "VARCHAR", "decimal": "VARCHAR",
}  # fmt: skip
"""The fields of Milvus for the types of columns; the other types, and lists, share the field OTHERS."""

MISSING = "missing_columns"
"""The JSON field that lists, under NAMES, the columns with a field of their own whose cell is missing in this row."""

NAMES = "names"

DEFAULTS: Mapping[str, Any] = {
    "INT64": -(2**63), "DOUBLE": -1.7976931348623157e308, "BOOL": False, "VARCHAR": "",
}  # fmt: skip
"""What stands in the fields of missing cells: fields that may be empty came with Milvus 2.5. No value is less."""

_DIGITS = 40
"""Digits before and after the decimal point of the numbers that Milvus keeps as text."""

EMPTY_LIST = ""
"""What stands for a list without elements, so that a filter can find it."""

_KEYWORDS = (
    "and",
    "or",
    "not",
    "in",
    "like",
    "is",
    "null",
    "exists",
    "iso",
    "interval",
    "true",
    "false",
    OTHERS,
    MISSING,
)


def fields_of(schema: Schema) -> list[str]:
    """The columns that become fields of their own; the others share the field OTHERS."""
    return [
        name
        for name, kind in schema.items()
        if re.fullmatch(r"[A-Za-z_]\w{0,254}", name, re.A)
        and name.lower() not in _KEYWORDS
        and kind.name in FIELD_TYPES
        and not kind.listed
    ]


def stored_schema(schema: Schema) -> dict[str, ColumnType]:
    """The types as Milvus keeps them: values of which a filter sees only the text are kept as text."""
    return {name: ColumnType("str") if kind.name == "other" else kind for name, kind in schema.items()}


def rows_of(
    ids: Rows, vectors: Vectors, items: pd.DataFrame, schema: Schema, fields: Sequence[str]
) -> list[dict[str, object]]:
    """The rows of an item table as Milvus inserts them.

    Args:
        ids: (n,).
        vectors: (n, D).
        items: n rows, of the gallery's types.
        schema: these types; all columns of the items are among them.
        fields: which of them have a field of their own.

    Raises:
        GalleryError: a cell that Milvus cannot hold.
    """
    cells = {str(name): _encoded_column(str(name), items[name], schema[str(name)]) for name in items.columns}
    typed, others = [name for name in cells if name in fields], [name for name in cells if name not in fields]
    rows = []
    for place, number in enumerate(ids.tolist()):
        more = {name: cells[name][place] for name in others if cells[name][place] is not None}
        gone = [name for name in fields if name not in cells or cells[name][place] is None]
        row: dict[str, object] = {"id": number, "embedding": vectors[place], OTHERS: more, MISSING: {NAMES: gone}}
        row |= {name: DEFAULTS[FIELD_TYPES[schema[name].name]] for name in gone}
        rows.append(row | {name: cells[name][place] for name in typed if name not in gone})
    return rows


def _encoded_column(column: str, cells: pd.Series, kind: ColumnType) -> list[Any]:
    missing = cells.isna().to_numpy()
    try:
        return [None if gone else encoded(value, kind) for value, gone in zip(cells.tolist(), missing, strict=True)]
    except ValueError as error:
        raise GalleryError(f"the column {column!r} has {error}, which Milvus cannot hold") from error


def encoded(value: Any, kind: ColumnType) -> Any:
    """A cell, not missing, as Milvus keeps it: in an order that is that of the values.

    Raises:
        ValueError: Milvus cannot hold it.
    """
    if kind.listed:
        return [encoded(one, kind.element) for one in value if one is not None] or EMPTY_LIST
    if kind.name == "date":
        return (value - EPOCH).days
    if kind.name == "time":
        (count,) = comparable(pd.Series([value]), kind)
        return int(count)
    if kind.name in ("float32", "float64") and not math.isfinite(value):
        raise ValueError(str(value))
    if kind.name in ("uint64", "decimal"):
        return sortable(value)
    if kind.name in ("str", "other"):
        if len((text := str(value)).encode()) > TEXT_BYTES:
            raise ValueError(f"a text of more than {TEXT_BYTES:,} bytes")
        return text
    return value


def decoded(cell: Any, kind: ColumnType) -> Any:
    """What `encoded` was given; None for a missing cell."""
    if cell is None:
        return None
    if kind.listed:
        return [] if cell == EMPTY_LIST else [decoded(one, kind.element) for one in cell]
    if kind.name == "date":
        return EPOCH + timedelta(days=cell)
    if kind.name == "time":
        return point_in_time(cell, kind.unit, kind.zone)
    if kind.name in ("uint64", "decimal"):
        return int(number_of(cell)) if kind.name == "uint64" else number_of(cell)
    return cell


def sortable(number: int | Decimal) -> str:
    """A number as text of one length, in the order of the numbers.

    Raises:
        ValueError: it has more than 40 digits before or after the decimal point.
    """
    with localcontext(prec=4 * _DIGITS):
        whole = Decimal(number).scaleb(_DIGITS)
        if whole != whole.to_integral_value() or abs(whole) >= Decimal(10) ** (2 * _DIGITS):
            raise ValueError(f"{number}, of more than {_DIGITS} digits before or after the decimal point")
        digits = int(whole) if whole >= 0 else 10 ** (2 * _DIGITS) - 1 + int(whole)
    return f"{'1' if whole >= 0 else '0'}{digits:0{2 * _DIGITS}}"


def number_of(text: str) -> Decimal:
    """What `sortable` was given, without zeros at its end."""
    digits = int(text[1:])
    with localcontext(prec=4 * _DIGITS):
        whole = Decimal(digits if text[0] == "1" else digits + 1 - 10 ** (2 * _DIGITS)).scaleb(-_DIGITS).normalize()
        return whole if whole.as_tuple().exponent <= 0 else whole.quantize(Decimal(1))  # type: ignore[operator]


def table_of(rows: Sequence[Mapping[str, Any]], schema: Schema) -> pd.DataFrame:
    """The item table, by id, of rows that Milvus returned."""
    ids = pd.Index([row["id"] for row in rows], dtype=np.int64, name="id")
    flat = [
        {**(row.get(OTHERS) or {}), **row, **dict.fromkeys((row.get(MISSING) or {}).get(NAMES, ()))} for row in rows
    ]
    series = {
        name: column_of([decoded(row.get(name), kind) for row in flat], ids, kind) for name, kind in schema.items()
    }
    return pd.DataFrame(series, index=ids, columns=list(schema))
