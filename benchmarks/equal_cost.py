"""Our recipe for birds beside the other methods at equal cost to embed an image, from kept rows alone.

`python -m benchmarks.equal_cost` prints the table of docs/notebook.md: once all methods embed by one view of the usual
map, and once all that have such rows by the finer map and the mirror image. The differences are paired by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from proxygml.comparison.row import Row, read_rows
from proxygml.comparison.tables import Summary

RESULTS = Path(__file__).parents[1] / "docs" / "results"
METHODS = RESULTS / "cub200_2010_crops.csv"
PARTS = RESULTS / "cub200_2010_own.csv"
OURS = "Our recipe"
COLUMNS = {
    "one view of the usual map": ("The usual map and no mirror image", ""),
    "finer map and mirror image": (OURS, ", finer map and mirror image"),
}
"""For each way to embed: the row of our recipe among PARTS, and what the other methods' names end with there."""


def summary(way: str) -> Summary:
    """All methods that are embedded in this way; ours is the first, under its own name."""
    ours, suffix = COLUMNS[way]
    parts = [row for row in read_rows([PARTS]) if row.trial is None]
    others = parts if suffix else [row for row in read_rows([METHODS]) if row.trial is None]
    rows = [replace(row, method=OURS) for row in parts if row.method == ours]
    return Summary(rows + _named([row for row in others if row.method.endswith(suffix) and row.method != OURS], suffix))


def _named(rows: Sequence[Row], suffix: str) -> list[Row]:
    return [replace(row, method=row.method.removesuffix(suffix)) for row in rows]


def table() -> str:
    """The table in Markdown: how far our recipe is ahead of each method, in points."""
    lines = ["| how all are embedded | our recipe ahead of | Recall@1 | MAP@R |", "|---|---|---|---|"]
    for way in COLUMNS:
        found = summary(way)
        for method in found.methods[1:]:
            gaps = (found.difference(method, name) for name in ("recall_at_1", "map_at_r"))
            ahead = (f"{-gap.value:+.1f} ({-gap.high:+.1f} to {-gap.low:+.1f})" for gap in gaps)
            lines.append("| " + " | ".join([way, method, *ahead]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
