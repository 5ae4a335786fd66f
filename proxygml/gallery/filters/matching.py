"""Which rows of an item table meet a condition of a filter; see grammar.py."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from proxygml.gallery.filters.grammar import Condition
from proxygml.gallery.filters.ranges import INTEGERS, Range
from proxygml.gallery.items.cells import EPOCH
from proxygml.gallery.items.column_types import ColumnType

Mask = npt.NDArray[np.bool_]


def matches(cells: pd.Series, condition: Condition) -> Mask:
    """Which cells of the condition's column, of its type, meet the condition, bool (n,)."""
    kind = condition.kind
    if kind.listed:
        found = _elements_in_ranges(cells, kind.element, condition.ranges)
        empty = cells.map(lambda cell: not isinstance(cell, list) or not cell).to_numpy(dtype=bool)
    else:
        found = _in_ranges(cells, kind, condition.ranges)
        empty = cells.isna().to_numpy(dtype=bool)
        if kind.name == "str" and condition.missing:
            empty = empty | (cells == "").fillna(False).to_numpy(dtype=bool)
    if condition.missing:
        found = found | empty
    return ~found if condition.negated else found


def _elements_in_ranges(cells: pd.Series, kind: ColumnType, ranges: tuple[Range, ...]) -> Mask:
    """Which lists have an element in one of the ranges."""
    lists = [cell if isinstance(cell, list) else [] for cell in cells]
    rows = np.repeat(np.arange(len(lists)), [len(cell) for cell in lists])
    elements = pd.Series([element for cell in lists for element in cell], dtype=object)
    found = np.zeros(len(lists), dtype=bool)
    found[rows[_in_ranges(elements, kind, ranges)]] = True
    return found


def _in_ranges(cells: pd.Series, kind: ColumnType, ranges: tuple[Range, ...]) -> Mask:
    """Which values are in one of the ranges; missing ones are in none."""
    present = cells.notna().to_numpy(dtype=bool)
    if not ranges or kind.name == "null":
        return np.zeros(len(cells), dtype=bool)
    values = comparable(cells[present], kind)
    points = [one.low for one in ranges if one.is_point]
    inside = _isin(values, points)
    for one in ranges:
        if not one.is_point:
            inside = inside | _within(values, one)
    found = np.zeros(len(cells), dtype=bool)
    found[present] = inside
    return found


def comparable(cells: pd.Series, kind: ColumnType) -> npt.NDArray[Any]:
    """The cells, none of them missing, as the ranges of their type are written; see ranges.py."""
    if kind.name == "date":
        return np.array([(day - EPOCH).days for day in cells], dtype=np.int64)
    if kind.name == "time":
        times = cells.astype(kind.dtype)
        return _array((times.dt.tz_convert(None) if kind.zone else times).to_numpy().view(np.int64))
    if kind.name in INTEGERS:
        return _array(cells.to_numpy(dtype=kind.name))
    if kind.name in ("float32", "float64", "bool"):
        return _array(cells.to_numpy(dtype=kind.name))
    return _array((cells.map(str) if kind.name == "other" else cells).to_numpy(dtype=object))


def _array(cells: Any) -> npt.NDArray[Any]:
    return np.asarray(cells)


def _isin(values: npt.NDArray[Any], points: list[Any]) -> Mask:
    if values.dtype == object:
        return np.asarray(pd.Series(values, dtype=object).isin(points), dtype=bool)
    return np.isin(values, np.array(points, dtype=values.dtype))


def _within(values: npt.NDArray[Any], one: Range) -> Mask:
    inside = np.ones(len(values), dtype=bool)
    if one.low is not None:
        inside &= np.asarray(values > one.low if one.low_open else values >= one.low, dtype=bool)
    if one.high is not None:
        inside &= np.asarray(values < one.high if one.high_open else values <= one.high, dtype=bool)
    return inside
