"""audit.html: a page that shows the most doubtful labels, and in which a person decides about each of them.

The page is one file that loads nothing. What it shows is bounded: the first images of the ranking, as small pictures.
"""

import base64
import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL import Image

from proxygml.arrays import Rows
from proxygml.auditing.alike import AlikeClasses
from proxygml.auditing.evidence import Evidence
from proxygml.auditing.mixed import MixedClass
from proxygml.auditing.outliers import Distances
from proxygml.auditing.table import NAMES
from proxygml.console import track
from proxygml.data.catalog import Catalog
from proxygml.data.images.tensors import decode_image, small_picture
from proxygml.errors import ImageError, counted
from proxygml.reports.html import content_policy

SCRIPT = Path(__file__).with_name("templates") / "audit.js"

MOST_ITEMS = 200
"""Images that a page shows unless it is told otherwise."""

PICTURE, SMALL, QUALITY = 240, 112, 80
"""Pixels on the longer side of a picture and of an example, and their JPEG quality."""

EXAMPLES = 3
"""Of each class: its images that are least in doubt."""

MOST_IN_PART = 6
"""Images that it shows of each part of a class that is probably two."""

MOST_OUTLIERS = 30
"""Images of no class that it shows."""

MOST_GROUPS = 50
"""Groups of near-duplicates that a page shows."""


@dataclass(frozen=True, eq=False)
class Audited:
    """What a page is made of.

    Attributes:
        catalog: the n images that were audited.
        rows: int64 (n,), their rows in the whole catalog.
        classes: the C classes.
        evidence: on their labels.
        distances: from their most similar classes.
        table: audit.csv, in its order.
        sentences: the findings.
        file: the name of the whole catalog's file.
        alike: pairs of classes that are probably one.
        mixed: classes that are probably two.
    """

    catalog: Catalog
    rows: Rows
    classes: list[str]
    evidence: Evidence
    distances: Distances
    table: pd.DataFrame
    sentences: tuple[str, ...]
    file: str
    alike: tuple[AlikeClasses, ...] = ()
    mixed: tuple[MixedClass, ...] = ()

    @property
    def item(self) -> str:
        return "image" if self.catalog.vectors is None else "vector"

    @cached_property
    def named(self) -> str:
        """The column that names an image; empty where there is none."""
        return next((name for name in NAMES if name in self.catalog.table), "")

    def name(self, place: int) -> str:
        return str(self.catalog.table[self.named].iloc[place]) if self.named else f"row {self.rows[place]}"

    def label(self, place: int) -> str:
        return str(self.classes[self.evidence.labels[place]])

    @cached_property
    def two_labels(self) -> list[Rows]:
        """Groups of near-duplicates under more than one label."""
        return [group for group in self.evidence.groups if len(set(self.evidence.labels[group])) > 1]

    @cached_property
    def two_splits(self) -> list[Rows]:
        """Groups of near-duplicates in more than one split."""
        splits = self.catalog.table["split"].to_numpy()
        return [group for group in self.evidence.groups if len(set(splits[group])) > 1]

    @cached_property
    def examples(self) -> dict[int, list[int]]:
        """For each class, its images that are least in doubt."""
        order = self.evidence.order[::-1]
        order = order[~np.isnan(self.evidence.doubt[order])]
        labels = self.evidence.labels[order]
        found: dict[int, list[int]] = {}
        for place in np.argsort(labels, kind="stable"):
            chosen = found.setdefault(int(labels[place]), [])
            if len(chosen) < EXAMPLES:
                chosen.append(int(order[place]))
        return found


def page(audited: Audited, most: int) -> str:
    """The page, whole.

    Args:
        audited: the result of an audit.
        most: images to decide about, at most.
    """
    doubtful = audited.evidence.order
    doubtful = doubtful[np.nan_to_num(audited.evidence.margin[doubtful], nan=-1) > 0]
    copies = [place for group in audited.two_labels for place in group.tolist()]
    chosen = list(dict.fromkeys([*doubtful.tolist(), *copies, *audited.distances.outliers.tolist()]))
    shown = chosen[:most]
    items = [_item(audited, place) for place in shown]
    groups = _groups(audited)
    data = _data(audited, shown, items, groups)
    script = SCRIPT.read_text(encoding="utf-8")
    return (
        _environment()
        .get_template("audit.html")
        .render(
            policy=content_policy([script]),
            script=script,
            title=f"Labels of {Path(audited.file).stem}",
            sentences=audited.sentences,
            notes=_notes(audited, len(chosen), len(shown)),
            groups=groups,
            classes=audited.classes,
            catalog=audited.file,
            suffix=Path(audited.file).suffix,
            data=data,
        )
    )


def _groups(audited: Audited) -> list[dict[str, Any]]:
    """What is shown in strips beside the images to decide about: classes that are alike, and near-duplicates."""
    wrong = "One label is wrong, or more."
    leaked = "What was trained on is tested on: figures of the test split are too good."
    sections = [
        _alike_section(audited),
        _mixed_section(audited),
        _outliers_section(audited),
        _copies_section(audited, audited.two_labels, "Near-duplicates under two labels", wrong),
        _copies_section(audited, audited.two_splits, "Near-duplicates across splits", leaked),
    ]
    return [section for section in sections if section["rows"]]


def _data(
    audited: Audited, shown: list[int], items: list[dict[str, Any]], groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the script of the page reads. Places become the rows of the catalog, in the groups too."""
    strips = [strip for group in groups for pair in group["rows"] for strip in pair["strips"]]
    small = {place for item in items for place in (*item["own"], *item["other"])}
    small |= {place for strip in strips for place in strip["rows"]}
    row = {place: int(audited.rows[place]) for place in {*shown, *small}}
    for strip in strips:
        strip["rows"] = [row[place] for place in strip["rows"]]
    table = audited.table["row"].to_numpy()
    return {
        "key": hashlib.sha256(audited.catalog.fingerprint.encode() + table.tobytes()).hexdigest()[:16],
        "items": [
            item | {"row": row[item["row"]]} | {key: [row[place] for place in item[key]] for key in ("own", "other")}
            for item in items
        ],
        "pictures": {row[place]: text for place, text in _pictures(audited, set(shown), small).items()},
        "names": {row[place]: audited.name(place) for place in row},
        "labels": {row[place]: audited.label(place) for place in shown},
        "classes": audited.classes,
        "named": audited.named,
        "nothing": "No label is contradicted: every one is that of the most similar class.",
    }


def _notes(audited: Audited, chosen: int, shown: int) -> list[str]:
    if shown == chosen:
        return []
    return [
        f"This page shows the first {shown:,} of {counted(chosen, audited.item)} that are more like another class or "
        "have a copy under another label; audit.csv has all. Decide about these, apply the file of corrections, and "
        "audit again; or make a longer page with --page_images."
    ]


def _item(audited: Audited, place: int) -> dict[str, Any]:
    """A card: one image, what is known of its label, and examples of both classes."""
    evidence = audited.evidence
    other = int(evidence.found.other[place])
    label, suggestion = audited.label(place), audited.classes[other] if other >= 0 else ""
    probability = evidence.probability[place]
    sure = "" if np.isnan(probability) else f" ({min(probability, 0.99):.0%} sure)"
    contradicted = np.nan_to_num(evidence.margin[place], nan=-1) > 0
    title = f"{label}: probably {suggestion}{sure}" if contradicted else _other_title(audited, place, label)
    return {
        "row": place,
        "label": label,
        "suggestion": suggestion,
        "title": title,
        "evidence": _reason(audited, place),
        "own": [one for one in audited.examples.get(int(evidence.labels[place]), []) if one != place],
        "other": audited.examples.get(other, []),
    }


def _other_title(audited: Audited, place: int, label: str) -> str:
    """Of an image whose label nothing contradicts."""
    if place in audited.distances.outliers:
        return f"{label}: perhaps of no class"
    return f"{label}: a copy has another label"


def _reason(audited: Audited, place: int) -> str:
    rows = audited.table["row"].to_numpy()
    found = np.flatnonzero(rows == audited.rows[place])
    return str(audited.table["reasons"].iloc[found[0]])


def _alike_section(audited: Audited) -> dict[str, Any]:
    """A section of pairs of classes; without rows where there are none."""
    rows = []
    for pair in audited.alike[:MOST_GROUPS]:
        one, other = audited.classes[pair.one], audited.classes[pair.other]
        strips = [
            {"caption": f"{audited.classes[label]}:", "rows": audited.examples.get(label, [])}
            for label in (pair.one, pair.other)
        ]
        text = f"{one} and {other}: {pair.share:.0%} and {pair.other_share:.0%} of their images are more like the other"
        rows.append({"text": text, "strips": strips})
    text = "A large part of the images of each is more like the other class: one class under two names, or too alike."
    return {"title": "Classes that are probably one", "text": text, "rows": rows}


def _mixed_section(audited: Audited) -> dict[str, Any]:
    """A section of classes that are probably two; without rows where there are none."""
    rows = []
    for mixed in audited.mixed[:MOST_GROUPS]:
        strips = [
            {"caption": f"{counted(len(part), audited.item)}:", "rows": part[:MOST_IN_PART].tolist()}
            for part in mixed.parts
        ]
        rows.append({"text": audited.classes[mixed.label], "strips": strips})
    text = "The images of each fall into two parts that are as unlike as two classes; mixed.csv lists both."
    return {"title": "Classes that are probably two", "text": text, "rows": rows}


def _outliers_section(audited: Audited) -> dict[str, Any]:
    """A section of images that may belong to no class, the farthest first; without rows where there are none."""
    outliers = audited.distances.outliers
    strips = [{"caption": f"{audited.label(place)}:", "rows": [place]} for place in outliers[:MOST_OUTLIERS].tolist()]
    text = f"{counted(len(outliers), audited.item)}, the farthest first, under the labels that they have"
    rows = [{"text": text, "strips": strips}] if strips else []
    text = "No class has images like them; the column distance of audit.csv says how far they are from the nearest one."
    return {"title": "Images that may belong to no class", "text": text, "rows": rows}


def _copies_section(audited: Audited, groups: list[Rows], title: str, text: str) -> dict[str, Any]:
    """A section of groups of near-duplicates; without rows where there are none."""
    splits = audited.catalog.table["split"].to_numpy()
    rows = []
    for group in groups[:MOST_GROUPS]:
        members = group[:12].tolist()
        kinds = dict.fromkeys((audited.label(place), str(splits[place])) for place in members)
        strips = [
            {
                "caption": f"{label} ({split}):",
                "rows": [one for one in members if (audited.label(one), str(splits[one])) == (label, split)],
            }
            for label, split in kinds
        ]
        rows.append({"text": f"{counted(len(group), audited.item)} alike", "strips": strips})
    more = (
        f" The first {MOST_GROUPS} of {counted(len(groups), 'group')}; duplicates.csv has all."
        if len(groups) > MOST_GROUPS
        else ""
    )
    return {"title": title, "text": f"{counted(len(groups), 'group')}. {text}{more}", "rows": rows}


def _pictures(audited: Audited, large: set[int], small: set[int]) -> dict[int, str]:
    """JPEGs in base64, for each image that can be read."""
    if not audited.catalog.has_images:
        return {}
    paths, boxes = audited.catalog.paths, audited.catalog.boxes
    pictures = {}
    for place in track(sorted(large | small), "Drawing the page"):
        box = None if boxes is None or not boxes[place].any() else boxes[place].tolist()
        side, path = PICTURE if place in large else SMALL, paths[place]
        with suppress(ImageError):  # its name is shown then
            pictures[place] = _jpeg(small_picture(decode_image(path), box, side, str(path)))
    return pictures


def _jpeg(picture: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> str:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=QUALITY)
    return base64.b64encode(content.getvalue()).decode("ascii")


def _environment() -> Environment:
    """The templates of this page, and the style that all pages share. Whatever is filled in is escaped."""
    return Environment(
        loader=ChoiceLoader([PackageLoader("proxygml.auditing"), PackageLoader("proxygml.reports")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
