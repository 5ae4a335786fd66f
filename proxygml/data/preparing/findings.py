"""What is wrong with the images of a catalog, found when all were opened: files, boxes, duplicates.

prepare.py has them opened, and says what follows from it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from proxygml.data.catalog import Catalog
from proxygml.data.columns import BOX_COLUMNS
from proxygml.data.images.inspection import Inspection

Box = tuple[int, int, int, int]


class Finding(NamedTuple):
    """A problem with one file that the user should know of."""

    path: str
    kind: str
    """`missing`, `unreadable`, `out of place`, `duplicated` or `wrongly boxed`."""
    problem: str
    row: int | None = None
    """Of the catalog; None for a file that is not in it."""
    bad: bool = True
    """False for what is reported, but stays as it is."""


def findings_of(catalog: Catalog, inspections: Sequence[Inspection], benchmark: bool) -> tuple[list[Finding], Catalog]:
    """What is wrong with the rows; and the catalog, with a benchmark's boxes cut to their images.

    Args:
        catalog: n rows.
        inspections: of the image of each.
        benchmark: whether duplicates, and boxes that reach beyond their image, are kept, as in published figures.
    """
    paths = catalog.table["path"].array
    boxes = _boxes(catalog)
    findings = []
    for row, (path, inspection, box) in enumerate(zip(paths, inspections, boxes, strict=True)):
        if inspection.problem:
            findings.append(Finding(path, inspection.kind, inspection.problem, row))
        elif box is not None and (problem := _box_problem(box, inspection)):
            cut = _cut(box, inspection)
            if benchmark and cut is not None:
                boxes[row] = cut
                problem += f"; cut to {cut}"
            findings.append(Finding(path, "wrongly boxed", problem, row, bad=not (benchmark and cut is not None)))
    bad = {finding.row for finding in findings if finding.bad}
    good = np.setdiff1d(np.arange(len(catalog)), np.array([*bad], np.int64))
    findings += _duplicates(catalog, inspections, boxes, good, benchmark)
    if BOX_COLUMNS[0] not in catalog.table:
        return findings, catalog
    edges = pd.DataFrame([box or (pd.NA,) * 4 for box in boxes], columns=list(BOX_COLUMNS))
    return findings, catalog.with_table(catalog.table.assign(**{name: edges[name] for name in BOX_COLUMNS}))


def _boxes(catalog: Catalog) -> list[Box | None]:
    if BOX_COLUMNS[0] not in catalog.table:
        return [None] * len(catalog)
    rows = catalog.table[list(BOX_COLUMNS)].itertuples(index=False, name=None)
    return [None if pd.isna(row[0]) else (int(row[0]), int(row[1]), int(row[2]), int(row[3])) for row in rows]


def _box_problem(box: Box, image: Inspection) -> str:
    x_1, y_1, x_2, y_2 = box
    if x_1 >= x_2 or y_1 >= y_2:
        return f"has the box {box}, which has no area"
    if x_1 < 0 or y_1 < 0 or x_2 > image.width or y_2 > image.height:
        return f"has the box {box}, which reaches beyond its {image.width} x {image.height} pixels"
    return ""


def _cut(box: Box, image: Inspection) -> Box | None:
    """The part of the box that lies in the image, None where there is none."""
    x_1, y_1, x_2, y_2 = max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height)
    return (x_1, y_1, x_2, y_2) if x_1 < x_2 and y_1 < y_2 else None


def _duplicates(
    catalog: Catalog,
    inspections: Sequence[Inspection],
    boxes: Sequence[Box | None],
    rows: npt.NDArray[np.int64],
    benchmark: bool,
) -> list[Finding]:
    """Rows that show the same content, byte for byte, in the same box."""
    paths, labels = catalog.table["path"].array, catalog.table["label"].array
    same: defaultdict[tuple[bytes, Box | None], list[int]] = defaultdict(list)
    hashes = np.fromiter((hash(inspections[row].digest) for row in rows), np.int64, len(rows))
    for row in rows[pd.Series(hashes).duplicated(keep=False)].tolist():  # few of many: the others are left out here
        same[inspections[row].digest, boxes[row]].append(row)
    findings = []
    for group in same.values():
        first, *others = group
        if len({labels[row] for row in group}) == 1:
            problems = [(row, f"is the same image as {paths[first]}") for row in others]
        else:
            partner = {row: next(other for other in group if labels[other] != labels[row]) for row in group}
            problems = [
                (row, f"is of class {labels[row]!r}, but the same image as {paths[other]} of class {labels[other]!r}")
                for row, other in partner.items()
            ]
        findings += [Finding(paths[row], "duplicated", problem, row, bad=not benchmark) for row, problem in problems]
    return findings
