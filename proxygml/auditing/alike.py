"""Classes that are probably one: a large part of the images of each is more like the other."""

from typing import NamedTuple

import numpy as np

from proxygml.auditing.evidence import Evidence

LEAST_SHARE = 0.25
"""Of the images of both classes that are more like the other one; of two halves of one class, about half are."""

LEAST_IMAGES = 3
"""Of each class that are more like the other one."""


class AlikeClasses(NamedTuple):
    """Two classes, as numbers, and the share of the images of each that is more like the other, in 0..1."""

    one: int
    other: int
    share: float
    other_share: float


def alike_classes(evidence: Evidence) -> list[AlikeClasses]:
    """Pairs of classes that are probably one, or that the features cannot tell apart; the most alike first. Ours."""
    margin = evidence.margin
    judged = ~np.isnan(margin)
    count = int(evidence.labels.max(initial=-1)) + 1
    sizes = np.bincount(evidence.labels[judged], minlength=count)
    taken = np.flatnonzero(judged & (np.nan_to_num(margin, nan=-1) > 0))
    keys = evidence.labels[taken] * count + evidence.found.other[taken]
    pairs, numbers = np.unique(keys, return_counts=True)
    enough = numbers >= LEAST_IMAGES
    shares = {
        divmod(int(key), count): int(number) / int(sizes[int(key) // count])
        for key, number in zip(pairs[enough], numbers[enough], strict=True)
    }
    found = [
        AlikeClasses(one, other, share, shares[other, one])
        for (one, other), share in shares.items()
        if one < other and min(share, shares.get((other, one), 0.0)) >= LEAST_SHARE
    ]
    return sorted(found, key=lambda pair: -min(pair.share, pair.other_share))
