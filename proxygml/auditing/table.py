"""The table of an audit: one row an image, the most contradicted label first, with reasons in words."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from proxygml.arrays import Rows
from proxygml.auditing.alike import AlikeClasses
from proxygml.auditing.evidence import Evidence
from proxygml.auditing.mixed import MixedClass
from proxygml.auditing.outliers import Distances
from proxygml.data.catalog import Catalog

NAMES = ("path", "id")
"""Columns of a catalog that name an item."""

LIKELY = 0.5
"""From this probability on, a label is more likely wrong than right."""


def audit_table(
    catalog: Catalog, rows: Rows, classes: list[str], evidence: Evidence, distances: Distances
) -> pd.DataFrame:
    """All images, from the most to the least doubtful label.

    Args:
        catalog: the images that were audited.
        rows: int64 (n,), their rows in the whole catalog.
        classes: the C classes.
        evidence: on their labels.
        distances: from their most similar classes.

    Returns:
        Columns: `rank` from 1; `row` of the catalog; `path` and `id` where the catalog has them; `label`; `split`;
        `suggestion`, the best other class; `probability` that the label is wrong; `margin`, by how much the suggestion
        has the higher score; `own_proxy`, `own_neighbors`, `suggestion_proxy` and `suggestion_neighbors`, the cosines
        that the scores are sums of; `distance` from the most similar class, in standard deviations; `keep`, False where
        the label is more likely wrong than right; `reasons`.
    """
    found = evidence.found
    names = np.array([*classes, ""], dtype=object)
    table = pd.DataFrame({"row": rows})
    for name in NAMES:
        if name in catalog.table:
            table[name] = catalog.table[name].to_numpy()
    table = table.assign(
        label=catalog.table["label"].to_numpy(),
        split=catalog.table["split"].to_numpy(),
        suggestion=names[found.other],
        probability=evidence.probability.round(4),
        margin=found.margin.round(4),
        own_proxy=found.own_proxy.round(4),
        own_neighbors=found.own_neighbors.round(4),
        suggestion_proxy=found.other_proxy.round(4),
        suggestion_neighbors=found.other_neighbors.round(4),
        distance=distances.deviations.round(2),
        keep=~(evidence.probability >= LIKELY),
    )
    table["reasons"] = _reasons(evidence, table["label"].tolist(), table["suggestion"].tolist())
    for place in distances.outliers:
        _add_reason(table, place, "unlike all classes: it may belong to none")
    for group in evidence.groups:
        if len(set(evidence.labels[group])) > 1:
            for place in group:
                other = group[evidence.labels[group] != evidence.labels[place]][0]
                label = classes[evidence.labels[other]]
                _add_reason(table, place, f"nearly the same as row {rows[other]}, which is labelled {label}")
    ordered = table.iloc[evidence.order].reset_index(drop=True)
    ordered.insert(0, "rank", np.arange(1, len(table) + 1))
    return ordered


def _add_reason(table: pd.DataFrame, place: int, reason: str) -> None:
    table.loc[place, "reasons"] = "; ".join(filter(None, [table.loc[place, "reasons"], reason]))


def duplicates_table(catalog: Catalog, rows: Rows, evidence: Evidence) -> pd.DataFrame:
    """Near-duplicates, one row an image.

    Returns:
        Columns: `group` from 1; `row`; `path` and `id` where the catalog has them; `label`; `split`; `two_labels` and
        `two_splits`, whether the group has more than one.
    """
    places = np.concatenate([np.zeros(0, np.int64), *evidence.groups])
    sizes = [len(group) for group in evidence.groups]
    table = pd.DataFrame({"group": np.repeat(np.arange(1, len(sizes) + 1), sizes), "row": rows[places]})
    for name in (*(name for name in NAMES if name in catalog.table), "label", "split"):
        table[name] = catalog.table[name].to_numpy()[places]
    for name in ("label", "split"):
        table[f"two_{name}s"] = table.groupby("group")[name].transform("nunique").gt(1).astype(bool)
    return table


def alike_table(alike: Sequence[AlikeClasses], classes: list[str]) -> pd.DataFrame:
    """Pairs of classes that are probably one: `label`, `other`, and the shares of the images of each, in 0..1."""
    rows = [(classes[pair.one], classes[pair.other], pair.share, pair.other_share) for pair in alike]
    return pd.DataFrame(rows, columns=["label", "other", "share", "other_share"]).round(4)


def mixed_table(catalog: Catalog, rows: Rows, mixed: Sequence[MixedClass], classes: list[str]) -> pd.DataFrame:
    """The images of classes that are probably two, one row an image.

    Returns:
        Columns: `label`; `apart`, how unlike its two parts are, 0 to 2, around 1 for two classes; `part`, 1 or 2;
        `row`; `path` and `id` where the catalog has them.
    """
    parts = [(one, number, part) for one in mixed for number, part in enumerate(one.parts, 1)]
    sizes = [len(part) for _, _, part in parts]
    places = np.concatenate([np.zeros(0, np.int64), *(part for _, _, part in parts)])
    table = pd.DataFrame({"label": np.repeat(np.array([classes[one.label] for one, _, _ in parts], object), sizes)})
    table["apart"] = np.repeat([round(one.apart, 4) for one, _, _ in parts], sizes)
    table["part"] = np.repeat(np.array([number for _, number, _ in parts], np.int64), sizes)
    table["row"] = rows[places]
    for name in (name for name in NAMES if name in catalog.table):
        table[name] = catalog.table[name].to_numpy()[places]
    return table


def _reasons(evidence: Evidence, labels: list[str], suggestions: list[str]) -> list[str]:
    found = evidence.found
    columns = (found.margin, found.own_proxy, found.own_neighbors, found.other_proxy, found.other_neighbors)
    rows = zip(labels, suggestions, *(column.tolist() for column in columns), strict=True)
    return [_reason(*row) for row in rows]


def _reason(
    label: str, suggestion: str, margin: float, own_proxy: float, own_near: float, proxy: float, near: float
) -> str:
    if np.isnan(own_proxy):
        return f"no other image of {label} to compare it with"
    if np.isnan(margin):
        return "no other class to compare it with"
    if margin <= 0:
        return ""
    parts = []
    if proxy > own_proxy:
        parts.append(
            f"closer to the proxy of {suggestion} than to that of {label} ({proxy:.2f} against {own_proxy:.2f})"
        )
    if near > own_near:
        parts.append(f"its most similar images are of {suggestion}, not of {label} ({near:.2f} against {own_near:.2f})")
    return "; ".join(parts)
