"""The folds of a cross-fit: no image is judged by a model that has seen its label."""

import numpy as np

from proxygml.arrays import Rows

FOLDS = 5


def stratified_folds(labels: Rows, seed: int, folds: int = FOLDS, units: Rows | None = None) -> Rows:
    """The fold of each image: every class is spread over the folds as evenly as its number of images allows.

    Args:
        labels: int64 (n,), the class of each image.
        seed: of the order of the images of a class, and of the fold that its first image goes to.
        folds: how many.
        units: int64 (n,), the same number for images of one class that go into one fold together.

    Returns:
        int64 (n,) in 0..folds-1.
    """
    if units is not None:
        _, first, unit = np.unique(units, return_index=True, return_inverse=True)
        return stratified_folds(labels[first], seed, folds)[unit]
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = random.integers(0, folds, len(counts))
    fold = np.empty(len(labels), np.int64)
    fold[order] = (place + np.repeat(start, counts)) % folds
    return fold
