"""Filters in the language of Milvus."""

import math
from collections.abc import Sequence
from typing import Any

from proxygml.arrays import Rows
from proxygml.gallery.filters.grammar import Condition
from proxygml.gallery.filters.ranges import Range
from proxygml.gallery.items.column_types import ColumnType
from proxygml.gallery.milvus.manifest import MilvusManifest
from proxygml.gallery.milvus.schema import DEFAULTS, EMPTY_LIST, FIELD_TYPES, MISSING, NAMES, OTHERS, sortable

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
_NOTHING = "(id < 0)"
_LEAST = -(2**63)  # which a server cannot read: it takes the sign and the digits apart


def expression(conditions: Sequence[Condition], fields: Sequence[str]) -> str:
    """The conditions as an expression of Milvus; a value cannot be taken for a part of the expression.

    Args:
        conditions: one or more.
        fields: the columns that have a field of their own.
    """
    return " and ".join(_one(condition, condition.column in ("id", *fields)) for condition in conditions)


def visible(manifest: MilvusManifest, removed: Rows, conditions: Sequence[Condition] = ()) -> str:
    """The expression for the items that count, are not among the removed ids, and meet the conditions."""
    parts = [f"id >= 0 and id < {manifest.next_id}"]
    parts += [f"not ({ids_between(first, end)})" for first, end in manifest.pending]
    if len(removed):
        parts.append(f"not ({ids_in(removed)})")
    if conditions:
        parts.append(expression(conditions, manifest.fields))
    return " and ".join(parts)


def _one(condition: Condition, own_field: bool) -> str:
    """One condition: a part is true or not, and never unknown, so that it can be negated."""
    if own_field:
        return _of_field(condition)
    kind = condition.kind
    cell = f"{OTHERS}[{quoted(condition.column)}]"
    missing, present = f"not (exists {cell})", f"(exists {cell})"  # without the brackets, `exists` takes what follows
    parts = [*_equal(cell, kind, condition.ranges, False), *_between(cell, kind, condition.ranges)]
    if condition.missing and (kind.listed or kind.name == "str"):
        parts.append(f"{cell} == {quoted(EMPTY_LIST)}")
    inside = " or ".join(parts)
    if condition.negated:
        outside = f"({present} and not ({inside}))" if inside else f"({present})"
        return outside if condition.missing else f"({missing} or {outside})"
    if condition.missing:
        return f"({missing} or ({present} and ({inside})))" if inside else f"({missing})"
    return f"({present} and ({inside}))" if inside else _NOTHING


def _of_field(condition: Condition) -> str:
    """A condition on a column with a field of its own, where a missing cell holds the least value of all."""
    column, kind = condition.column, condition.kind
    parts = [*_equal(column, kind, condition.ranges, True), *_between(column, kind, condition.ranges)]
    missing = f"json_contains({MISSING}[{quoted(NAMES)}], {quoted(column)})"
    inside = f"({' or '.join(parts)})" if parts else _NOTHING
    if any(_takes_least(one, kind) for one in condition.ranges):
        inside = f"({inside} and not {missing})"
    if condition.missing:
        empty = f"{column} == {quoted('')}" if kind.name == "str" else missing
        inside = f"({inside} or {empty})" if parts else f"({empty})"
    return f"(not {inside})" if condition.negated else inside


def _takes_least(one: Range, kind: ColumnType) -> bool:
    """Whether a range holds what stands in the field of a missing cell."""
    least = DEFAULTS[FIELD_TYPES[kind.name]]
    if one.low is None:
        return True
    if kind.name in ("uint64", "decimal"):
        return False
    return bool(one.low < least or (one.low == least and not one.low_open))


def _equal(cell: str, kind: ColumnType, ranges: Sequence[Range], own_field: bool) -> list[str]:
    points = [one.low for one in ranges if one.is_point]
    if kind.listed:
        return [f"json_contains({cell}, {text})" for one in points if (text := _literal(one, kind)) is not None]
    literals = [text for one in points if not _is_least(one) and (text := _literal(one, kind)) is not None]
    least = [f"{cell} < {_LEAST + 1}"] if any(map(_is_least, points)) else []
    if literals and own_field and kind.name != "bool":  # milvus-lite has no `in` for the others
        return [f"{cell} in [{', '.join(literals)}]", *least]
    return [*(f"{cell} == {literal}" for literal in literals), *least]


def _between(cell: str, kind: ColumnType, ranges: Sequence[Range]) -> list[str]:
    parts = []
    for one in ranges:
        if one.is_point:
            continue
        # Every whole number is at least the least one.
        low = None if one.low is None or _is_least(one.low) else _bound(one.low, kind)
        high = None if one.high is None else _bound(one.high, kind)
        bounds = [] if low is None else [f"{cell} {'>' if one.low_open else '>='} {low}"]
        bounds += [] if high is None else [f"{cell} {'<' if one.high_open else '<='} {high}"]
        parts.append(f"({' and '.join(bounds)})" if bounds else "id >= 0")
    return parts


def _is_least(value: Any) -> bool:
    return isinstance(value, int) and value == _LEAST


def _bound(value: Any, kind: ColumnType) -> str:
    literal = _literal(value, kind)
    if literal is not None:
        return literal
    if kind.name == "decimal":  # beyond what Milvus holds
        return quoted("2" if value > 0 else "")
    return "1.7976931348623157e308" if value > 0 else "-1.7976931348623157e308"


def _literal(value: Any, kind: ColumnType) -> str | None:
    """A value as Milvus writes it; None for one that no cell has."""
    if kind.name in ("uint64", "decimal"):
        try:
            return quoted(sortable(value))
        except (ValueError, ArithmeticError):
            return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, int) else quoted(str(value))


def quoted(text: str) -> str:
    """A text as a literal of Milvus's language."""
    return f'"{text.translate(_ESCAPES)}"'


def ids_between(first: int, end: int) -> str:
    """The expression for the items from one id to another, which is left out."""
    return f"id >= {first} and id < {end}"


def ids_in(ids: Sequence[int] | Rows) -> str:
    """The expression for these items."""
    return f"id in [{', '.join(map(str, ids))}]"
