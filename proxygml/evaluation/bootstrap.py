"""95% bootstrap intervals over classes, because images of one class are not independent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from proxygml.evaluation.estimates import Estimate
from proxygml.evaluation.retrieval import Array, QueryScores

RESAMPLES = 100  # drawn together: one matrix product for all of them


def information_by_class(classes: Array, clusters: Array) -> tuple[Array, Array]:
    """What each class's images add to the mutual information and to the mean entropy; NMI is the ratio of the sums.

    The frequencies inside the logarithms stay those of all images. The ratio is then, to first order, NMI as a function
    of how often each class is drawn, without the bias of counting the classes of a resample anew.
    """
    total = len(classes)
    class_sizes, cluster_sizes = np.bincount(classes), np.bincount(clusters)
    cells, counts = np.unique(classes * len(cluster_sizes) + clusters, return_counts=True)
    row, column = cells // len(cluster_sizes), cells % len(cluster_sizes)

    def by_class(terms: Array) -> Array:
        return np.bincount(row, weights=counts * terms)

    class_surprise = np.log(total / class_sizes[row])
    cluster_surprise = np.log(total / cluster_sizes[column])
    joint_surprise = np.log(total / counts)
    return (
        by_class(class_surprise + cluster_surprise - joint_surprise),
        by_class((class_surprise + cluster_surprise) / 2),
    )


def means_over_classes(
    scores: QueryScores, codes: Array, ks: Sequence[int], bootstrap: int, seed: int
) -> list[Estimate]:
    """Recall at each K, MAP@R and R-precision of queries of these classes, with intervals over the classes."""
    sums, counts = _sums_by_class(scores, codes, ks)
    values = sums.sum(axis=0) / len(codes)
    low, high = bootstrap_interval(sums, counts, bootstrap, seed)
    return [Estimate(*map(float, estimate)) for estimate in zip(values, low, high, strict=True)]


def gains_over_classes(
    after: QueryScores, before: QueryScores, codes: Array, ks: Sequence[int], bootstrap: int, seed: int
) -> list[Estimate]:
    """By how much the figures of `means_over_classes` differ for the same queries, with intervals over the classes."""
    sums, counts = _sums_by_class(after, codes, ks)
    sums = sums - _sums_by_class(before, codes, ks)[0]
    values = sums.sum(axis=0) / len(codes)
    low, high = bootstrap_interval(sums, counts, bootstrap, seed, lowest=-1.0)
    return [Estimate(*map(float, estimate)) for estimate in zip(values, low, high, strict=True)]


def _sums_by_class(scores: QueryScores, codes: Array, ks: Sequence[int]) -> tuple[Array, Array]:
    """(C, len(ks) + 2): how many queries of each class are found at each K, their sums of AP@R and R-precision; and
    (C, 1): how many queries it has.
    """
    _, codes, counts = np.unique(codes, return_inverse=True, return_counts=True)
    # The queries of a class by the first K that holds a positive: as many columns as there are K, and one for beyond.
    first_k = np.searchsorted(ks, scores.first_positive, side="right")
    cells = np.bincount(codes * (len(ks) + 1) + first_k, minlength=len(counts) * (len(ks) + 1))
    found = cells.reshape(len(counts), -1).cumsum(axis=1)[:, :-1]
    precisions = (np.bincount(codes, weights=each) for each in (scores.average_precision, scores.r_precision))
    return np.column_stack([found, *precisions]), counts[:, None].astype(np.float64)


def full_mean(scores: QueryScores, codes: Array, bootstrap: int, seed: int) -> Estimate:
    """MAP over whole rankings of queries of these classes, with its interval."""
    assert scores.full_average_precision is not None
    _, codes, counts = np.unique(codes, return_inverse=True, return_counts=True)
    sums = np.bincount(codes, weights=scores.full_average_precision)[:, None]
    low, high = bootstrap_interval(sums, counts[:, None].astype(np.float64), bootstrap, seed)
    return Estimate(float(sums.sum() / len(codes)), float(low[0]), float(high[0]))


def bootstrap_interval(
    numerators: Array, denominators: Array, resamples: int, seed: int, lowest: float = 0.0
) -> tuple[Array, Array]:
    """95% percentile interval of the ratio of sums over classes, (C, m) by (C, 1), with the classes drawn anew.

    Ratios are between `lowest` and 1; rounding takes none beyond.
    """
    generator = np.random.default_rng(seed)
    num_classes = len(numerators)
    ratios = np.empty((resamples, numerators.shape[1]))
    for batch in np.split(ratios, range(RESAMPLES, resamples, RESAMPLES)):
        drawn = np.stack(
            [np.bincount(generator.integers(num_classes, size=num_classes), minlength=num_classes) for _ in batch]
        ).astype(np.float64)
        batch[:] = (drawn @ numerators) / (drawn @ denominators)
    low, high = np.percentile(ratios, [2.5, 97.5], axis=0).clip(lowest, 1.0)
    return low, high
