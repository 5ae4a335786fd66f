"""Near-duplicates among the images that are audited: exact for some ten thousand, by cells for more."""

import numpy as np
import numpy.typing as npt

from proxygml.arrays import Rows
from proxygml.auditing.feature_rows import FeatureRows, parts_of
from proxygml.console import track
from proxygml.evaluation.duplicates import near_duplicates

DUPLICATE_COSINE = 0.97
"""From which two images are near-duplicates; as in `proxygml cluster`."""

MOST_EXACT = 20_000
"""Images of which all pairs are compared."""

CELL = 1000
"""Images, on average, for each cell of a larger set."""

CELLS_EACH = 2
"""Nearest cells that an image belongs to: copies that lie on both sides of a border share one of them."""


def copy_groups(features: FeatureRows, least_cosine: float, seed: int) -> list[Rows]:
    """Groups of images that are linked by pairs of at least that cosine, each ordered; ours.

    In more than `MOST_EXACT` images, pairs are compared within cells around images that are drawn at random. Nearly all
    pairs of such a cosine share a cell.

    Args:
        features: of n images.
        least_cosine: in -1..1.
        seed: of the images around which the cells lie.
    """
    if len(features) <= MOST_EXACT:
        return near_duplicates(features.take(np.arange(len(features))), least_cosine)
    groups = np.arange(len(features))
    for members in track(_cells(features, seed), "Looking for near-duplicates"):
        for group in near_duplicates(features.take(members), least_cosine):
            _join(groups, members[group])
    groups = _roots(groups)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    return [group for group in np.split(order, starts[1:]) if len(group) > 1]


def _cells(features: FeatureRows, seed: int) -> list[Rows]:
    """The members of each cell, rising."""
    count = -(-len(features) // CELL)
    centres = features.take(np.sort(np.random.default_rng(seed).choice(len(features), count, replace=False)))
    nearest = np.empty((len(features), CELLS_EACH), np.int32)
    for part in parts_of(np.arange(len(features))):
        similarity = features.take(part) @ centres.T
        nearest[part] = np.argpartition(-similarity, CELLS_EACH - 1, axis=1)[:, :CELLS_EACH]
    cells = nearest.ravel()
    order = np.argsort(cells, kind="stable")
    ends = np.cumsum(np.bincount(cells, minlength=count))[:-1]
    return [members // CELLS_EACH for members in np.split(order, ends)]


def _join(groups: Rows, members: Rows) -> None:
    """Link these images: each points to an image of its group that is not after it."""
    roots = {_root(groups, int(member)) for member in members}
    first = min(roots)
    for root in roots:
        groups[root] = first


def _root(groups: Rows, member: int) -> int:
    while groups[member] != member:
        groups[member] = groups[groups[member]]  # which shortens the way for the next
        member = int(groups[member])
    return member


def _roots(groups: Rows) -> Rows:
    """The first image of each image's group."""
    while not np.array_equal(groups, further := groups[groups]):
        groups = further
    return groups


def units_of(labels: Rows, groups: list[Rows]) -> Rows:
    """Numbers, int64 (n,), that images share which may not judge each other: near-duplicates of one label.

    Where all images of a class are near-duplicates of each other, they may: nothing else could judge them.

    Args:
        labels: int64 (n,).
        groups: of near-duplicates.
    """
    units = np.arange(len(labels))
    for group in groups:
        for label in np.unique(labels[group]):
            same = group[labels[group] == label]
            units[same] = same[0]
    counts = np.bincount(labels)
    kept = np.unique(units)
    alone = np.bincount(labels[kept], minlength=len(counts)) == 1
    separate = alone[labels]
    units[separate] = np.flatnonzero(separate)
    return units


def copy_weights(count: int, groups: list[Rows]) -> npt.NDArray[np.float64]:
    """How much each image counts, float64 (count,): a group of near-duplicates as much as one other image.

    Args:
        count: how many images there are.
        groups: of near-duplicates.
    """
    weights = np.ones(count)
    for group in groups:
        weights[group] = 1 / len(group)
    return weights
