"""Clusters of images that nobody has labelled. The folder that shows them is written by folder.py."""

from typing import NamedTuple

import numpy as np

from proxygml.arrays import Rows, Vectors
from proxygml.errors import UserError, counted
from proxygml.evaluation.kmeans import kmeans
from proxygml.gallery.clusters.settings import ClusterSettings

MOST_AGGLOMERATIVE = 20_000
"""Images whose pairwise distances, 1.6 GB, are still computed."""

_STARTS = 3  # of k-means


class Clusters(NamedTuple):
    """What clustering n images gave."""

    codes: Rows
    """int64 (n,): the cluster of each image, the largest is 0; -1 for images in none."""
    duplicates: list[Rows]
    """Groups of near-duplicates, each the places of its images."""


def cluster_vectors(vectors: Vectors, settings: ClusterSettings) -> Rows:
    """The cluster of each vector: (n, D) of length 1 -> int64 (n,), the largest is 0; -1 for none (hdbscan only).

    Raises:
        UserError: fewer vectors than clusters, or too many for the method.
    """
    count = len(vectors)
    if settings.num_clusters is not None and settings.num_clusters > count:
        raise UserError(f"num_clusters is {settings.num_clusters}, more than the {counted(count, 'image')}")
    if settings.method == "agglomerative" and count > MOST_AGGLOMERATIVE:
        raise UserError(f"agglomerative takes at most {MOST_AGGLOMERATIVE:,} images, not {count:,}: choose kmeans")
    if count == 1:
        return np.zeros(1, dtype=np.int64)
    methods = {"kmeans": _kmeans, "hdbscan": _hdbscan, "agglomerative": _agglomerative}
    return _by_size(methods[settings.method](vectors, settings))


def _kmeans(vectors: Vectors, settings: ClusterSettings) -> Rows:
    return kmeans(vectors, settings.num_clusters or 1, settings.seed, plus_plus_starts=_STARTS)


def _hdbscan(vectors: Vectors, settings: ClusterSettings) -> Rows:
    from sklearn.cluster import HDBSCAN  # noqa: PLC0415

    # On vectors of length 1 the Euclidean distance orders pairs as the cosine does.
    model = HDBSCAN(min_cluster_size=min(settings.min_cluster_size, len(vectors)), copy=True)
    codes: Rows = model.fit_predict(vectors).astype(np.int64)
    return codes


def _agglomerative(vectors: Vectors, settings: ClusterSettings) -> Rows:
    from sklearn.cluster import AgglomerativeClustering  # noqa: PLC0415

    model = AgglomerativeClustering(
        n_clusters=settings.num_clusters,
        distance_threshold=settings.max_distance,
        metric="cosine",
        linkage="average",
    )
    codes: Rows = model.fit_predict(vectors).astype(np.int64)
    return codes


def _by_size(codes: Rows) -> Rows:
    """The same clusters numbered by falling size, those of equal size by their first image; -1 stays."""
    found, first, counts = np.unique(codes, return_index=True, return_counts=True)
    order = [place for place in np.lexsort((first, -counts)) if found[place] >= 0]
    renumbered = np.full(len(codes), -1, dtype=np.int64)
    for number, place in enumerate(order):
        renumbered[codes == found[place]] = number
    return renumbered
