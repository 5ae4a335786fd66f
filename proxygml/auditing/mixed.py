"""Classes that are probably two: the images of such a class fall into two parts that are as unlike as two classes."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from proxygml.arrays import Rows
from proxygml.auditing.feature_rows import FeatureRows
from proxygml.auditing.probability import Doubles
from proxygml.auditing.whitening import Whitening

LEAST_APART = 0.65
"""Of two parts, 1 minus the cosine of their directions. Around 0 where a class is one, around 1 where it is two."""

LEAST_PART = 0.15
"""Share of a class's images in the smaller part; a few odd images are not a class."""

LEAST_IMAGES = 10
"""Of a class, without near-duplicates; parts of fewer are chance."""

MOST_IMAGES = 200
"""Of a class, at random, that are compared with each other."""

DIVISIONS = 5
"""Random divisions of a class into images that choose its parts and images that judge them."""

ROUNDS = 10
"""Of 2-means, at most."""


@dataclass(frozen=True, eq=False)
class MixedClass:
    """A class that is probably two.

    Attributes:
        label: its number.
        apart: how unlike its two parts are, in 0..2; see `LEAST_APART`.
        parts: the images of the two parts, the larger one first, each int64 (m,) rising.
    """

    label: int
    apart: float
    parts: tuple[Rows, Rows]


def mixed_classes(
    features: FeatureRows, labels: Rows, groups: tuple[Rows, ...], doubtful: npt.NDArray[np.bool_], seed: int = 0
) -> list[MixedClass]:
    """Classes that are probably two, the surest first. Ours.

    A class is divided in two by 2-means on one half of its images, in the whitened space in which classes are
    compared. The other half judges the division: the cosine between the directions of both parts, estimated from
    products of different images, so that neither chance nor the choice of the parts makes them look unlike.

    Args:
        features: of n images.
        labels: int64 (n,), their classes.
        groups: of near-duplicates, of which the first image stands for all: a series is not a part.
        doubtful: bool (n,), images whose label is probably wrong, which are left out.
        seed: of the divisions.
    """
    random = np.random.default_rng(seed)
    usable = ~doubtful
    for group in groups:
        usable[group[1:]] = False
    places = np.flatnonzero(usable)
    if not len(places):
        return []
    whitening = Whitening.of(features, places, labels)
    places = places[np.argsort(labels[places], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[places], prepend=-1))
    found = []
    for members in np.split(places, starts[1:]):
        if len(members) < LEAST_IMAGES:
            continue
        chosen = np.sort(random.choice(members, min(len(members), MOST_IMAGES), replace=False))
        vectors = whitening(features.take(chosen)).astype(float)
        products = vectors @ vectors.T
        apart = float(np.mean([_apart(products, random) for _ in range(DIVISIONS)]))
        if apart < LEAST_APART:
            continue
        second = _halves(products)
        parts = sorted((chosen[~second], chosen[second]), key=lambda part: -len(part))
        if len(parts[1]) >= LEAST_PART * len(chosen):
            found.append(MixedClass(int(labels[chosen[0]]), apart, (parts[0], parts[1])))
    return sorted(found, key=lambda mixed: -mixed.apart)


def _apart(products: Doubles, random: np.random.Generator) -> float:
    """1 minus the cosine of the two parts, judged by images that did not choose them; 0 where a part is too small.

    Args:
        products: (m, m), of all images of the class.
        random: that divides them.
    """
    order = random.permutation(len(products))
    values = []
    for chose, judged in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        second = _halves(products[np.ix_(chose, chose)])
        closer = _closer_to_second(products[np.ix_(judged, chose)], products[np.ix_(chose, chose)], second)
        values.append(1 - _cosine(products[np.ix_(judged, judged)], closer))
    return float(np.mean(values))


def _halves(products: Doubles) -> npt.NDArray[np.bool_]:
    """Which images (m,) are in the second of two parts: 2-means by products, from the direction of most variance."""
    centred = products - products.mean(axis=0) - products.mean(axis=1, keepdims=True) + products.mean()
    second = np.linalg.eigh(centred)[1][:, -1] > 0
    for _ in range(ROUNDS):
        if second.all() or not second.any():
            break
        closer = _closer_to_second(products, products, second)
        if np.array_equal(closer, second):
            break
        second = closer
    return second


def _closer_to_second(to_members: Doubles, products: Doubles, second: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether images, (k,), by their products with the members (k, m), lie nearer to the direction of the second part.

    Args:
        to_members: (k, m).
        products: (m, m), of the members.
        second: (m,), which of them are in the second part.
    """
    if second.all() or not second.any():
        return np.full(len(to_members), bool(second.all()))
    cosines = [
        to_members[:, part].sum(axis=1) / math.sqrt(max(products[np.ix_(part, part)].sum(), 1e-12))
        for part in (~second, second)
    ]
    closer: npt.NDArray[np.bool_] = cosines[1] > cosines[0]
    return closer


def _cosine(products: Doubles, second: npt.NDArray[np.bool_]) -> float:
    """That of the true directions of two parts, from products of different images alone; 1 for parts of one image."""
    sizes = np.count_nonzero(~second), np.count_nonzero(second)
    if min(sizes) < 2:
        return 1.0
    between = products[np.ix_(~second, second)].mean()
    within = [
        (products[np.ix_(part, part)].sum() - products[part, part].sum()) / (size * (size - 1))
        for part, size in zip((~second, second), sizes, strict=True)
    ]
    if min(within) <= 0:
        return 1.0
    return float(np.clip(between / math.sqrt(within[0] * within[1]), -1, 1))
