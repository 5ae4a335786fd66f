"""Near-duplicates: groups of images so similar that they are probably copies of each other."""

import numpy as np

from proxygml.arrays import Rows, Vectors
from proxygml.console import track

_PAIRS_AT_A_TIME = 2**22


def near_duplicates(vectors: Vectors, least_cosine: float) -> list[Rows]:
    """Groups of rows that are linked by pairs of at least that cosine, directly or in chains, ordered by first row.

    Args:
        vectors: (n, D), of length 1.
        least_cosine: in -1..1.
    """
    from scipy.sparse import coo_array  # noqa: PLC0415
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    count = len(vectors)
    group = np.arange(count)
    height = max(1, _PAIRS_AT_A_TIME // max(count, 1))
    for start in track(range(0, count, height), "Looking for near-duplicates", disable=count < 5000):
        # Each pair is compared once, from its first row.
        row, column = np.nonzero(vectors[start : start + height] @ vectors[start:].T >= least_cosine)
        # Each row is linked to the first row of its group so far; the new pairs join groups.
        ends = np.concatenate([row + start, np.arange(count)]), np.concatenate([column + start, group])
        edges = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(count, count))
        labels = connected_components(edges, directed=False)[1]
        group = np.unique(labels, return_index=True)[1][labels]
    firsts, sizes = np.unique(group, return_counts=True)
    return [np.flatnonzero(group == first) for first in firsts[sizes > 1]]
