"""The types of an item table's columns: found once, kept in the gallery's manifest, the same in every backend.

Their names are those of the manifest: `int64`, `time[us, Asia/Tokyo]`, `list of str`. How cells and values of filters
are read by type is values.py's.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal, get_args

import pandas as pd

from proxygml.data.images.image_list import FILE_STAMP
from proxygml.errors import GalleryError
from proxygml.gallery.filters.values import decimal_of

Name = Literal["null", "str", "int64", "uint64", "float32", "float64", "decimal", "bool", "date", "time", "other"]

TEXT: Any = pd.Series(["a"]).dtype
"""What pandas keeps text in: its own type from 3.0 on, objects before."""

_WORDS = {
    "null": "nothing so far",
    "str": "text",
    "int64": "whole numbers of 64 bits",
    "uint64": "whole numbers of 64 bits, 0 or more",
    "float32": "numbers",
    "float64": "numbers",
    "decimal": "decimal numbers",
    "bool": "true and false",
    "date": "dates",
    "time": "times",
    "other": "values that only text stands for",
}
_EXAMPLES = {
    "int64": "17",
    "uint64": "17",
    "float32": "0.5",
    "float64": "0.5",
    "decimal": "9.99",
    "bool": "true",
    "date": "2021-01-31",
    "time": "2021-01-31T12:00:00",
}
_NULLABLE = {"int64": pd.Int64Dtype(), "uint64": pd.UInt64Dtype(), "bool": pd.BooleanDtype()}
_OTHER = ("bytes", "timedelta", "timedelta64", "time", "period", "interval", "complex")
"""Kinds of pandas that are kept, but that filters know as text only."""


@dataclass(frozen=True)
class ColumnType:
    """What the cells of a column are."""

    name: Name
    """`null` where all are missing; `other` where a filter sees only their text."""

    unit: str = ""
    """Of times: s, ms, us or ns."""

    zone: str = ""
    """Of times: their time zone; empty for times without one."""

    listed: bool = False
    """Whether each cell is a list of such values."""

    def __str__(self) -> str:
        parts = ", ".join(part for part in (self.unit, self.zone) if part)
        return ("list of " if self.listed else "") + self.name + (f"[{parts}]" if parts else "")

    @classmethod
    def parse(cls, text: str) -> "ColumnType":
        """Read what `str` wrote.

        Raises:
            ValueError: it is no type.
        """
        found = re.fullmatch(r"(list of )?(\w+)(?:\[(s|ms|us|ns)(?:, ([\w/+:-]{1,64}))?\])?", text)
        name: Any = found[2] if found else ""
        if not found or name not in get_args(Name) or (name == "time") != bool(found[3]):
            raise ValueError(f"{text!r} is no type of a column")
        kind = cls(name, found[3] or "", found[4] or "", bool(found[1]))
        try:
            _ = kind.dtype
        except TypeError:
            raise ValueError(f"{text!r} has no known time zone") from None
        return kind

    @property
    def element(self) -> "ColumnType":
        """Of a list: what its values are; else the type itself."""
        return replace(self, listed=False)

    @property
    def dtype(self) -> Any:
        """What pandas keeps the column in: always the same type, whatever is missing."""
        if self.listed or self.name in ("null", "decimal", "date", "other"):
            return object
        if self.name == "time":
            return pd.Series([], dtype=f"datetime64[{self.unit}{', ' + self.zone if self.zone else ''}]").dtype
        return _NULLABLE.get(self.name) or (TEXT if self.name == "str" else self.name)

    @property
    def words(self) -> str:
        """For messages: what the column holds."""
        zone = f" of the time zone {self.zone}" if self.zone else ""
        return ("lists of " if self.listed else "") + _WORDS[self.name] + zone

    @property
    def example(self) -> str:
        """For messages: a value as one types it; empty where any text will do."""
        example = _EXAMPLES.get(self.name, "")
        if self.zone:
            return str(pd.Timestamp(example).tz_localize(self.zone).isoformat())
        return example


Schema = Mapping[str, ColumnType]

HIDDEN = (FILE_STAMP,)
"""Columns of the gallery's own, which users do not see."""


def column_texts(schema: Schema) -> dict[str, str]:
    """The types as the manifest writes them."""
    return {name: str(kind) for name, kind in schema.items()}


def shown_columns(schema: Schema) -> list[str]:
    """The columns that users see."""
    return [name for name in schema if name not in HIDDEN]


def type_of(name: str, cells: pd.Series) -> ColumnType:
    """The type of a column that is new to the gallery.

    Raises:
        GalleryError: its values are of several kinds, or beyond 64 bits.
    """
    dtype: Any = cells.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return type_of(name, pd.Series(dtype.categories))
    if pd.api.types.is_object_dtype(dtype) or isinstance(dtype, pd.ArrowDtype):
        return _type_of_objects(name, cells.dropna().astype(object))
    return _type_of_dtype(dtype, cells)


def _type_of_dtype(dtype: Any, cells: pd.Series) -> ColumnType:
    types = pd.api.types
    if types.is_bool_dtype(dtype):
        return ColumnType("bool")
    if types.is_integer_dtype(dtype):
        return ColumnType("uint64" if types.is_unsigned_integer_dtype(dtype) and dtype.itemsize == 8 else "int64")
    if types.is_float_dtype(dtype):
        if dtype.itemsize == 8 and cells.isna().all():
            return ColumnType("null")  # what pandas makes of a column of any type without values
        return ColumnType("float32" if dtype.itemsize <= 4 else "float64")
    if types.is_datetime64_any_dtype(dtype):
        zone = getattr(dtype, "tz", None)
        return ColumnType("time", str(getattr(dtype, "unit", None) or cells.dt.unit), "" if zone is None else str(zone))
    return ColumnType("str" if types.is_string_dtype(dtype) else "other")


def _type_of_objects(name: str, present: pd.Series) -> ColumnType:
    kind = pd.api.types.infer_dtype(present, skipna=True)
    simple: dict[str, Name] = {"string": "str", "boolean": "bool", "floating": "float64", "decimal": "decimal"}
    simple |= {"date": "date", "empty": "null"}
    if kind in simple:
        return ColumnType(simple[kind])
    if kind in ("integer", "mixed-integer-float"):
        return _type_of_numbers(name, present)
    if kind in ("datetime", "datetime64"):
        zoned = [getattr(value, "tzinfo", None) for value in present]
        if len({zone is None for zone in zoned}) > 1:
            raise GalleryError(f"the column {name!r} holds times with and without a time zone: give all of them one")
        same = len({str(zone) for zone in zoned}) == 1
        return type_of(name, pd.Series(pd.to_datetime(list(present), utc=None if same else True)))
    if all(isinstance(value, os.PathLike) for value in present):
        return ColumnType("str")
    if all(_is_list(value) for value in present):
        elements = pd.Series([element for value in present for element in value], dtype=object)
        inner = ColumnType("other") if elements.map(_is_list).any() else type_of(name, elements)
        return inner if inner.name == "other" else replace(inner, listed=True)
    if kind in _OTHER or all(isinstance(value, dict) for value in present):
        return ColumnType("other")
    kinds = {type(value).__name__: value for value in present}
    shown = " and ".join(f"{value!r} ({kind})" for kind, value in list(kinds.items())[:2])
    raise GalleryError(f"the column {name!r} holds values of several kinds, such as {shown}: make them one kind")


def _type_of_numbers(name: str, present: pd.Series) -> ColumnType:
    numbers = [decimal_of(value) for value in present]
    if any(not isinstance(value, Decimal) for value in numbers):
        raise GalleryError(f"the column {name!r} holds an infinite number: leave the cell empty")
    whole = all(number == number.to_integral_value() for number in numbers if isinstance(number, Decimal))
    if not whole or pd.api.types.infer_dtype(present) != "integer":
        return ColumnType("float64")
    least, most = min(map(int, present)), max(map(int, present))
    if least >= -(2**63) and most < 2**63:
        return ColumnType("int64")
    if least >= 0 and most < 2**64:
        return ColumnType("uint64")
    raise GalleryError(
        f"the column {name!r} holds {most if most >= 2**63 else least}, a whole number beyond 64 bits: give it as text"
    )


def _is_list(value: object) -> bool:
    return pd.api.types.is_list_like(value) and not isinstance(value, dict)
