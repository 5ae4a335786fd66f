"""What the values of a filter cover: ranges of a column's values, each written as what can be compared at once.

Whole numbers, days and times become ranges of integers (days and units of time since 1970), floats ranges of floats,
text and decimals ranges of themselves. A date covers all of its day, `2021-02` all of the month.
"""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from proxygml.errors import GalleryError
from proxygml.gallery.filters.values import UNITS, Span, decimal_of, span_of, truth_of
from proxygml.gallery.items.column_types import ColumnType

NO_ORDER = ("bool", "other", "null")

INTEGERS = {
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
    "date": (-(2**63), 2**63 - 1),
    "time": (-(2**63) + 1, 2**63 - 1),  # the least one stands for a missing time
}
"""The least and the largest integer that stands for a value, of the types whose values integers stand for."""


@dataclass(frozen=True)
class Range:
    """The values from `low` to `high`; None where there is no bound."""

    low: Any
    high: Any
    low_open: bool = False
    """Whether `low` itself is left out."""

    high_open: bool = False

    @property
    def is_point(self) -> bool:
        """Whether it is one value."""
        return self.low is not None and self.low == self.high and not (self.low_open or self.high_open)


def ranges_of(column: str, kind: ColumnType, operator: str, value: Any) -> list[Range]:
    """The values that `column operator value` covers, one range; none where the column can hold no such value.

    Args:
        column: its name, for messages.
        kind: its type; of a list, the elements are compared.
        operator: =, <, <=, > or >=.
        value: text, or an object of Python, NumPy or pandas.

    Raises:
        GalleryError: the value is none of the column's.
    """
    kind = kind.element
    if kind.name == "str" and operator != "=" and isinstance(decimal_of(value), Decimal):
        raise GalleryError(
            f"the column {column!r} holds text, among which {value} has no place as a number: make it a column of "
            "numbers, in Parquet (all columns of a CSV file are text)"
        )
    named = _named(kind, value)
    if named is None:
        example = f": give one such as {kind.example}" if kind.example else ""
        raise GalleryError(f"the column {column!r} holds {kind.words}, but {str(value)!r} is none{example}")
    found = _compared(named, operator)
    if kind.name in INTEGERS:
        return _whole(found, *INTEGERS[kind.name])
    if kind.name in ("float32", "float64"):
        return [_as_floats(found, kind.name)]
    return [found]


def _named(kind: ColumnType, value: Any) -> Range | None:
    """The values that a value names, exactly; None where it is none of the column's."""
    if kind.name in ("date", "time"):
        return _named_time(kind, value)
    found: Any
    if kind.name == "bool":
        found = truth_of(value)
    elif kind.name in ("int64", "uint64", "float32", "float64", "decimal"):
        found = decimal_of(value)
    else:
        found = str(value)
    return None if found is None else Range(found, found)


def _named_time(kind: ColumnType, value: Any) -> Range | None:
    span = span_of(value, kind.zone)
    if span is None or (span.zoned and not kind.zone) or (kind.name == "date" and not _is_days(span)):
        return None
    unit = UNITS[kind.unit or "D"]
    return Range(Decimal(span.start) / unit, Decimal(span.end) / unit, high_open=True)


def _is_days(span: Span) -> bool:
    """Whether it names days and no time of day, midnight aside."""
    return not span.timed or not span.start % UNITS["D"]


def _compared(named: Range, operator: str) -> Range:
    if operator == "<":
        return Range(None, named.low, high_open=True)
    if operator == "<=":
        return Range(None, named.high, high_open=named.high_open)
    if operator == ">":
        return Range(named.high, None, low_open=not named.high_open)
    return Range(named.low, None) if operator == ">=" else named


def _whole(found: Range, least: int, most: int) -> list[Range]:
    """The whole numbers in a range, with bounds that belong to it."""
    low, high = found.low, found.high
    if low is None or low < least:
        low = least
    elif low > most:
        return []
    else:
        low = math.floor(low) + 1 if found.low_open else math.ceil(low)
    if high is None or high > most:
        high = most
    elif high < least:
        return []
    else:
        high = math.ceil(high) - 1 if found.high_open else math.floor(high)
    return [Range(low, high)] if low <= high else []


def _as_floats(found: Range, name: str) -> Range:
    """The floats in a range: fractions mean the nearest float, whole numbers that no float holds mean themselves."""
    low, low_open = found.low, found.low_open
    if low is not None:
        low, beyond = _nearest(low, name)
        low_open = low_open if not beyond else beyond < 0
    high, high_open = found.high, found.high_open
    if high is not None:
        high, beyond = _nearest(high, name)
        high_open = high_open if not beyond else beyond > 0
    return Range(low, high, low_open, high_open)


def _nearest(number: Decimal | float, name: str) -> tuple[float, int]:
    """The nearest float of that type; 1 where it is larger than a whole number that no float holds, -1 for smaller."""
    with np.errstate(over="ignore"):
        nearest = float(np.dtype(name).type(float(number)))
    if not isinstance(number, Decimal) or number != number.to_integral_value():
        return nearest, 0
    return nearest, int(nearest > number) - int(nearest < number)
