"""k-means with FAISS: for NMI, and for sorting images into clusters."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from proxygml.errors import counted

if TYPE_CHECKING:
    from proxygml.arrays import Rows, Vectors

_ITERATIONS = 25


def kmeans(
    vectors: Vectors, num_clusters: int, seed: int = 0, *, plus_plus_starts: int = 0, progress: bool = False
) -> Rows:
    """The cluster of each vector, int64 (n,); every vector takes part in every iteration.

    Args:
        vectors: (n, D).
        num_clusters: at most n.
        seed: of the first centroids.
        plus_plus_starts: 0 starts once, from vectors chosen at random, as the published evaluation protocols do. A
            larger number is how often to start with k-means++ (Arthur and Vassilvitskii, SODA 2007); the best result is
            kept, which separates clusters better.
        progress: say on the console what is being done.
    """
    if progress:
        from proxygml.console import console  # noqa: PLC0415  (with Rich; only needed here)

        with console.status(f"Clustering {counted(len(vectors), 'embedding')} into {counted(num_clusters, 'cluster')}"):
            return kmeans(vectors, num_clusters, seed, plus_plus_starts=plus_plus_starts)
    faiss: Any = import_module("faiss")  # slow to load
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    best, least = np.zeros(len(vectors), np.int64), np.inf
    for start in _first_centroids(vectors, num_clusters, seed, plus_plus_starts):
        model = faiss.Kmeans(
            vectors.shape[1],
            num_clusters,
            niter=_ITERATIONS,
            nredo=1,
            seed=seed % 2**31,  # all that FAISS takes
            min_points_per_centroid=1,
            max_points_per_centroid=len(vectors),
        )
        model.train(vectors, init_centroids=start)
        distances, clusters = model.assign(vectors)
        if (total := float(distances.sum())) < least:
            best, least = clusters, total
    return best


def _first_centroids(vectors: Vectors, num_clusters: int, seed: int, starts: int) -> Iterator[Vectors | None]:
    """Centroids (num_clusters, D) to start from; None for FAISS's own choice, vectors at random."""
    if not starts:
        yield None
        return
    from sklearn.cluster import kmeans_plusplus  # noqa: PLC0415  (slow to load)

    random = np.random.RandomState(seed)
    for _ in range(starts):
        yield kmeans_plusplus(vectors, num_clusters, random_state=random)[0].astype(np.float32)
