"""Filters in the language of Milvus."""

import math
from collections.abc import Sequence
from typing import Any

from proxygml.arrays import Rows
from proxygml.gallery.filters.grammar import Condition
from proxygml.gallery.filters.ranges import Range
from proxygml.gallery.items.column_types import ColumnType
from proxygml.gallery.milvus.manifest import MilvusManifest
from proxygml.gallery.milvus.schema import EMPTY_LIST, OTHERS, sortable

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
_NOTHING = "id < 0"


def expression(conditions: Sequence[Condition], fields: Sequence[str]) -> str:
    """The conditions as an expression of Milvus; a value cannot be taken for a part of the expression.

    Args:
        conditions: one or more.
        fields: the columns that have a field of their own.
    """
    return " and ".join(_one(condition, condition.column in ("id", *fields)) for condition in conditions)


def visible(manifest: MilvusManifest, removed: Rows, conditions: Sequence[Condition] = ()) -> str:
    """The expression for the items that count, are not among the removed ids, and meet the conditions."""
    parts = [f"id < {manifest.next_id}"]
    parts += [f"not (id >= {first} and id < {end})" for first, end in manifest.pending]
    if len(removed):
        parts.append(f"not ({ids_in(removed)})")
    if conditions:
        parts.append(expression(conditions, manifest.fields))
    return " and ".join(parts)


def _one(condition: Condition, own_field: bool) -> str:
    """One condition: a part is true or not, and never unknown, so that it can be negated."""
    kind = condition.kind
    cell = condition.column if own_field else f"{OTHERS}[{quoted(condition.column)}]"
    missing = f"{cell} is null" if own_field else f"not exists {cell}"
    present = f"{cell} is not null" if own_field else f"exists {cell}"
    parts = [*_equal(cell, kind, condition.ranges, own_field), *_between(cell, kind, condition.ranges)]
    if condition.missing and (kind.listed or kind.name == "str"):
        parts.append(f"{cell} == {quoted(EMPTY_LIST)}")
    inside = " or ".join(parts)
    if condition.negated:
        outside = f"({present} and not ({inside}))" if inside else f"({present})"
        return outside if condition.missing else f"({missing} or {outside})"
    if condition.missing:
        return f"({missing} or ({present} and ({inside})))" if inside else f"({missing})"
    return f"({present} and ({inside}))" if inside else _NOTHING


def _equal(cell: str, kind: ColumnType, ranges: Sequence[Range], own_field: bool) -> list[str]:
    literals = [text for one in ranges if one.is_point and (text := _literal(one.low, kind)) is not None]
    if kind.listed:
        return [f"json_contains({cell}, {literal})" for literal in literals]
    if literals and own_field and kind.name != "bool":  # milvus-lite has no `in` for the others
        return [f"{cell} in [{', '.join(literals)}]"]
    return [f"{cell} == {literal}" for literal in literals]


def _between(cell: str, kind: ColumnType, ranges: Sequence[Range]) -> list[str]:
    parts = []
    for one in ranges:
        if one.is_point:
            continue
        low, high = (None if bound is None else _bound(bound, kind) for bound in (one.low, one.high))
        bounds = [] if low is None else [f"{cell} {'>' if one.low_open else '>='} {low}"]
        bounds += [] if high is None else [f"{cell} {'<' if one.high_open else '<='} {high}"]
        parts.append(f"({' and '.join(bounds)})" if bounds else "id >= 0")
    return parts


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


def ids_in(ids: Sequence[int] | Rows) -> str:
    """The expression for these items."""
    return f"id in [{', '.join(map(str, ids))}]"
