"""What a preparation reports: what is wrong, as a table and as a list beside the catalog, and the catalog's counts."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from rich.markup import escape
from rich.table import Column, Table

from proxygml.console import console
from proxygml.data.catalog import Catalog
from proxygml.data.preparing.findings import Finding
from proxygml.files import atomic_write, check_overwrite
from proxygml.spreadsheet import without_formulas

OnBad = Literal["fail", "drop"]

ROWS_SHOWN = 10
"""Of each kind of problem, in the printed table."""


def check_free(out: Path, dropped_list: Path, force: bool) -> None:
    """Raise OverwriteError where the catalog, or a file of another kind under the name of its list, is there."""
    check_overwrite(out, force)
    if not force and dropped_list.exists():
        with dropped_list.open("rb") as file:
            ours = (
                file.readline().strip() == b"path,problem"
            )  # of a command that was killed before it wrote the catalog
        check_overwrite(dropped_list, ours)


def print_findings(findings: Sequence[Finding], on_bad: OnBad) -> None:
    """A table of the problems, on the console: of each kind the first, and how many more there are."""
    if not findings:
        return
    table = Table(Column("image", overflow="fold"), Column("problem", overflow="fold"), "", title="Images to look at")
    shown: defaultdict[str, int] = defaultdict(int)
    for finding in findings:
        shown[finding.kind] += 1
        if shown[finding.kind] <= ROWS_SHOWN:
            fate = "kept" if not finding.bad else "dropped" if on_bad == "drop" else "bad"
            table.add_row(escape(finding.path), escape(finding.problem), fate)
    for kind, count in shown.items():
        if count > ROWS_SHOWN:
            table.add_row("...", f"{count - ROWS_SHOWN:,} more are {kind}", "")
    console.print(table)


def _write_dropped(dropped: Sequence[Finding], path: Path) -> None:
    """The list of what was left out, as CSV beside the catalog."""
    table = pd.DataFrame([(finding.path, finding.problem) for finding in dropped], columns=["path", "problem"])
    with atomic_write(path) as temporary:
        without_formulas(table).to_csv(temporary, index=False, errors="backslashreplace")


def publish(catalog: Catalog, out: Path, dropped: Sequence[Finding], dropped_list: Path, force: bool) -> None:
    """Write the list of dropped files, then the catalog: a catalog without its list would hide what was left out."""
    if dropped:
        _write_dropped(dropped, dropped_list)
    catalog.write(out, force)
    if not dropped:
        dropped_list.unlink(missing_ok=True)  # of an earlier run, which --force replaces


def print_counts(catalog: Catalog, out: Path) -> None:
    """A table of the splits, on the console."""
    items = "vectors" if catalog.vectors is not None else "images"
    table = Table("split", items, "classes", title=escape(str(out)))
    for part, count in catalog.counts.items():
        table.add_row(part, f"{count.images:,}", f"{count.classes:,}")
    console.print(table)
