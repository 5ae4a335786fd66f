"""Images that probably belong to no class: even the class that is most like them has hardly an image like them."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from proxygml.arrays import Rows, Vectors
from proxygml.auditing.feature_rows import FeatureRows, parts_of
from proxygml.auditing.probability import Doubles
from proxygml.auditing.references import references_of_classes

BEST_CLASSES = 5
"""Of the classes that an image keeps, those with the best scores, among which its most similar one is."""

NEIGHBORS = 3
"""An image of a class has so many others of that class like it."""

OUTLIER = 3.0
"""Standard deviations from which an image probably belongs to no class; one in 700 of a normal distribution."""

SIMILARITIES_AT_A_TIME = 2**24


class Distances(NamedTuple):
    """How far images are from their most similar class.

    Attributes:
        deviations: float64 (n,), how much farther than the median image, in robust standard deviations of the angle;
            NaN where no class has another image.
        nearest: int64 (n,), that class; -1 likewise.
    """

    deviations: Doubles
    nearest: Rows

    @property
    def outliers(self) -> Rows:
        """Images that probably belong to no class, the farthest first."""
        far = np.nan_to_num(self.deviations, nan=-np.inf)
        order = np.argsort(-far, kind="stable")
        return order[far[order] >= OUTLIER]


def class_distances(
    features: FeatureRows,
    labels: Rows,
    classes: npt.NDArray[np.int32],
    scores: Vectors,
    groups: tuple[Rows, ...],
    seed: int = 0,
) -> Distances:
    """How far images are from the class that is most like them, by its third most similar image. Ours.

    The features are compared as they are. Whitened by the covariance within the classes, they show what tells those
    classes apart, and less of what none of them has. Near-duplicates of an image do not count,
    unless they are half of its class.

    Args:
        features: of n images.
        labels: int64 (n,) in 0..C-1.
        classes: int (n, K), those that each image keeps, -1 for none.
        scores: float (n, K), of those.
        groups: of near-duplicates.
        seed: of the references of large classes.
    """
    copies = _copies(labels, groups)
    kept = np.empty((len(labels), min(BEST_CLASSES, classes.shape[1])), np.int32)
    for part in parts_of(np.arange(len(labels))):  # a part at a time: the order of all would take much memory
        best = np.argsort(-scores[part], axis=1, kind="stable")[:, :BEST_CLASSES]
        kept[part] = np.take_along_axis(classes[part], best, axis=1)
    places, columns = np.nonzero(kept >= 0)
    flat = kept[places, columns]
    order = np.argsort(flat, kind="stable")
    starts = np.flatnonzero(np.diff(flat[order], prepend=-1))
    members = references_of_classes(labels, np.arange(len(labels)), int(labels.max(initial=-1)) + 1, seed)
    cosine, nearest = np.full(len(labels), -np.inf, np.float32), np.full(len(labels), -1)
    for pairs in np.split(order, starts[1:]) if len(order) else ():
        label = int(flat[pairs[0]])
        references = members[label]
        vectors = features.take(references)
        for part in parts_of(places[pairs], max(1, SIMILARITIES_AT_A_TIME // len(references))):
            similarity = features.take(part) @ vectors.T
            similarity[copies[part, None] == copies[references]] = -np.inf
            found = _third(similarity)
            closer = found > cosine[part]
            cosine[part[closer]], nearest[part[closer]] = found[closer], label
    return Distances(_deviations(cosine, nearest, labels), nearest)


def _copies(labels: Rows, groups: tuple[Rows, ...]) -> Rows:
    """Numbers, int64 (n,), that images share which do not count for each other: near-duplicates.

    Where they are half of a class or more, they are what the class looks like, and count.
    """
    copies = np.arange(len(labels))
    sizes = np.bincount(labels)
    for group in groups:
        counts = np.bincount(labels[group], minlength=len(sizes))
        few = group[2 * counts[labels[group]] < sizes[labels[group]]]
        if len(few):
            copies[few] = few[0]
    return copies


def _third(similarity: Vectors) -> Vectors:
    """The third largest of each row, (m,); the smallest there is where fewer are finite."""
    count = min(NEIGHBORS, similarity.shape[1])
    largest = -np.partition(-similarity, count - 1, axis=1)[:, :count]
    finite = np.isfinite(largest)
    least: Vectors = np.where(finite, largest, np.inf).min(axis=1)
    return np.where(finite.any(axis=1), least, -np.inf).astype(np.float32)


def _deviations(cosine: Vectors, nearest: Rows, labels: Rows) -> Doubles:
    """Of the angles from their median, by the median absolute deviation; NaN where there is no angle.

    Of both, the larger one counts: that of all images, or that of the nearest class, by the images that have its label.
    Some classes vary more than others.
    """
    known = np.isfinite(cosine)
    result = np.full(len(cosine), np.nan)
    if not known.any():
        return result
    angles = np.arccos(np.clip(cosine.astype(float), -1, 1))
    typical = np.flatnonzero(known & (nearest == labels))
    middle, spread = _center_and_spread(angles[known])
    middles, spreads = np.full(labels.max() + 1, middle), np.full(labels.max() + 1, spread)
    typical = typical[np.argsort(labels[typical], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[typical], prepend=-1))
    for members in np.split(typical, starts[1:]) if len(typical) else ():
        label = labels[members[0]]
        of_class = _center_and_spread(angles[members])
        middles[label], spreads[label] = max(middle, of_class[0]), max(spread, of_class[1])
    result[known] = (angles[known] - middles[nearest[known]]) / spreads[nearest[known]]
    return result


def _center_and_spread(angles: Doubles) -> tuple[float, float]:
    """The median, and the standard deviation by the median absolute deviation, as of a normal distribution."""
    middle = float(np.median(angles))
    return middle, max(1.4826 * float(np.median(np.abs(angles - middle))), 1e-6)
