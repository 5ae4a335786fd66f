"""Classes that are probably one: a large part of the images of each is more like the other."""

from typing import NamedTuple

import numpy as np

from proxygml.auditing.evidence import Evidence

LEAST_SHARE = 0.4
"""Of the images of a pair, as the mean of both classes, that are more like the other one; of two halves of one class,
half are. Chance moves the border between two halves, so that one of them may have fewer."""

LEAST_OF_EACH = 0.15
"""Of the images of either class; else one class has many wrong labels rather than being the other."""

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
    found = evidence.found
    judged = ~np.isnan(found.margin)
    count = int(evidence.labels.max(initial=-1)) + 1
    sizes = np.bincount(evidence.labels[judged], minlength=count)
    ahead = judged[:, None] & (found.kept_scores[:, 1:] > found.kept_scores[:, :1]) & (found.classes[:, 1:] >= 0)
    images, columns = np.nonzero(ahead)
    keys = evidence.labels[images] * count + found.classes[images, 1 + columns]
    pairs, numbers = np.unique(keys, return_counts=True)
    enough = numbers >= LEAST_IMAGES
    shares = {
        divmod(int(key), count): int(number) / int(sizes[int(key) // count])
        for key, number in zip(pairs[enough], numbers[enough], strict=True)
    }
    alike = [
        AlikeClasses(one, other, share, shares[other, one])
        for (one, other), share in shares.items()
        if one < other and (other, one) in shares
    ]
    alike = [pair for pair in alike if min(pair.share, pair.other_share) >= LEAST_OF_EACH]
    alike = [pair for pair in alike if pair.share + pair.other_share >= 2 * LEAST_SHARE]
    return sorted(alike, key=lambda pair: -(pair.share + pair.other_share))
