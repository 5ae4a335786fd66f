"""Filters: which items pass. `{"label": ["a", "b"]}`, or conditions as `--where` takes them, such as `price>=10`.

A condition is parsed once, by its column's type: then galleries in folders evaluate it (matching.py), and those in
Milvus turn it into an expression (milvus/expressions.py).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from torch import Tensor

from proxygml.errors import GalleryError, did_you_mean
from proxygml.gallery.filters.ranges import NO_ORDER, Range, ranges_of
from proxygml.gallery.items.column_types import ColumnType, Schema

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
Where: TypeAlias = Mapping[str, Any] | Sequence[str | tuple[str, str, Any]]
"""A value or values by column; or conditions, each a text such as `price>=10` or a tuple ("price", ">=", 10)."""

EXAMPLES = "such as label=sparrow, label!=sparrow, price>=10, taken<2021-02, or label= for a missing one"
_SHOWN = 5  # values of a condition in messages
ID = ColumnType("int64")
"""The type of the ids, which filters know under the name `id`."""


@dataclass(frozen=True)
class Condition:
    """One condition of a filter: an item passes when its cell is in one of the ranges; of a list, when an element is.

    Attributes:
        column: its name.
        kind: its type.
        ranges: of values as `ranges.py` writes them.
        missing: whether a missing cell is among what is looked for.
        negated: whether all other cells pass instead.
        text: the condition, for messages.
    """

    column: str
    kind: ColumnType
    ranges: tuple[Range, ...]
    missing: bool = False
    negated: bool = False
    text: str = ""


def parse_where(where: Where, schema: Schema) -> list[Condition]:
    """The conditions of a filter on items with these columns; all of them must hold.

    Values that a column may equal are alternatives; so an item passes `label=a label=b` when its label is one of them.

    Raises:
        GalleryError: an unknown column or operator, or a value that the column cannot hold.
    """
    types = {"id": ID, **schema}
    equal: dict[str, list[Any]] = {}
    different: dict[str, list[Any]] = {}
    conditions = []
    for column, operator, value in _parts(where, list(types)):
        if column not in types:
            raise GalleryError(f"the item table has no column {column!r}: {did_you_mean(column, types)}")
        if operator == "=":
            equal.setdefault(column, []).extend(_alternatives(value))
        elif operator == "!=":
            different.setdefault(column, []).extend(_alternatives(value))
        else:
            conditions.append(_compared(column, types[column], operator, value))
    conditions += [one_of(column, types[column], values) for column, values in equal.items()]
    return conditions + [one_of(column, types[column], values, negated=True) for column, values in different.items()]


def one_of(column: str, kind: ColumnType, values: Iterable[Any], negated: bool = False) -> Condition:
    """The condition that a cell is one of the values, or that it is none of them."""
    values = list(values)
    missing = any(_is_missing(value) for value in values)
    ranges: list[Range] = []
    for value in values:
        if not _is_missing(value):
            ranges += ranges_of(column, kind, "=", value)
    shown = " or ".join(map(str, values[:_SHOWN])) + (" or ..." if len(values) > _SHOWN else "")
    return Condition(column, kind, tuple(ranges), missing, negated, f"{column}{'!=' if negated else '='}{shown}")


def _compared(column: str, kind: ColumnType, operator: str, value: Any) -> Condition:
    if operator not in get_args(Operator):
        raise GalleryError(f"a condition has the operator {operator!r}: choose one of {', '.join(get_args(Operator))}")
    if kind.listed or kind.name in NO_ORDER:
        raise GalleryError(
            f"the column {column!r} holds {kind.words}, which have no order: use = or != instead of {operator}"
        )
    if _is_missing(value) or len(_alternatives(value)) != 1:
        raise GalleryError(f"{column}{operator} needs one value: {EXAMPLES}")
    ranges = ranges_of(column, kind, operator, value)
    return Condition(column, kind, tuple(ranges), text=f"{column}{operator}{value}")


def _is_missing(value: Any) -> bool:
    """Whether a value stands for missing cells: None, NaN, NaT, or an empty text."""
    return bool(pd.api.types.is_scalar(value) and pd.isna(value)) or (isinstance(value, str) and not value)


def _alternatives(values: Any) -> list[Any]:
    """One value, or all of a list, a set, an array, a Series and the like."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray) and values.ndim == 0:
        values = values[()]
    single = isinstance(values, str | bytes) or not isinstance(values, Iterable)
    return [values] if single else list(values)


def _parts(where: Where, columns: Sequence[str]) -> list[tuple[str, str, Any]]:
    """Column, operator and value of each condition."""
    if isinstance(where, Mapping):
        return [(str(column), "=", values) for column, values in where.items()]
    if isinstance(where, str):
        raise GalleryError(f"a filter is {where!r}: give a list of conditions, [{where!r}], or {{column: value}}")
    if not isinstance(where, Iterable):
        raise GalleryError(f"where is {where!r}, but must be a list of conditions or {{column: value}}, {EXAMPLES}")
    return [split(part, columns) if isinstance(part, str) else _checked(part) for part in where]


def _checked(part: Any) -> tuple[str, str, Any]:
    if not isinstance(part, tuple) or len(part) != 3:
        raise GalleryError(f"a condition is {part!r}: give a text or (column, operator, value), {EXAMPLES}")
    return part


def split(text: str, columns: Sequence[str]) -> tuple[str, str, str]:
    """Column, operator and value of a text such as `price>=10`; a column's name may hold operators itself.

    Raises:
        GalleryError: there is no operator.
    """
    places = list(re.finditer("!=|<=|>=|=|<|>", text))
    if not places:
        raise GalleryError(f"{text!r} has no =: expected column=value, {EXAMPLES}")
    place = next((one for one in places if text[: one.start()].strip() in columns), places[0])
    column, value = text[: place.start()], text[place.end() :]
    if column.strip() not in columns or column in columns:
        return column, place[0], value
    return column.strip(), place[0], value.strip()


def column_values(pairs: Sequence[str]) -> dict[str, list[str]]:
    """The values of each column, of texts like `label=sparrow`, as columns of new items are given.

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


def describe(conditions: Sequence[Condition]) -> str:
    """The filter, for the end of a message that says that nothing passes it."""
    return f": none has {', '.join(condition.text for condition in conditions)}" if conditions else ""
