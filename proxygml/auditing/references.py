"""The images of a class that stand for it where an image is compared with its nearest ones."""

import numpy as np

from proxygml.arrays import Rows

MOST_REFERENCES = 1000
"""Of a class, chosen at random where it has more images."""


def references_of_classes(labels: Rows, images: Rows, num_classes: int, seed: int) -> list[Rows]:
    """For each class its references, int64 (m,) rising; none for a class without images.

    Args:
        labels: int64 (n,) in 0..C-1, the classes of all images.
        images: int64 (k,), those that may be references.
        num_classes: C.
        seed: of the choice.
    """
    order = np.random.default_rng(seed).permutation(images)
    order = order[np.argsort(labels[order], kind="stable")]
    ends = np.cumsum(np.bincount(labels[order], minlength=num_classes))
    return [np.sort(rows[:MOST_REFERENCES]) for rows in np.split(order, ends[:-1])]
