"""Re-ranking by k-reciprocal neighbours: Zhong, Zheng, Cao and Li, CVPR 2017, among a query's nearest items only.

Two images are reciprocal neighbours when each is among the nearest of the other. Items that share such neighbours with
the query come first.
"""

import numpy as np
import numpy.typing as npt
import torch

from proxygml.arrays import Vectors

NEIGHBOURS, EXPANSION, WEIGHT = 20, 6, 0.3  # the paper's k1, k2 and lambda


def reranked(
    query: Vectors, items: Vectors, neighbours: int = NEIGHBOURS, expansion: int = EXPANSION, weight: float = WEIGHT
) -> npt.NDArray[np.int64]:
    """The new order, int64 (n,), of the items found for a query.

    Args:
        query: (D,), of length 1.
        items: (n, D), of length 1, its nearest items, best first; equals stay in this order.
        neighbours: how many nearest of an image may be its reciprocal neighbours (k1).
        expansion: over how many nearest an image's neighbourhood is averaged (k2).
        weight: of the original distance, 0..1, beside the Jaccard distance (lambda).
    """
    vectors = torch.from_numpy(np.concatenate([query[None], items])).double()
    distance = (2 - 2 * vectors @ vectors.T).clamp(min=0).numpy()
    distance /= max(distance.max(), 1e-12)
    nearest = np.argsort(distance, axis=1, kind="stable")
    among = _nearest_mask(nearest, neighbours + 1)
    np.fill_diagonal(among, True)  # among many copies of an image, one may not be among its own nearest
    reciprocal = _expanded(among & among.T, nearest, neighbours)
    fuzzy = np.where(reciprocal, np.exp(-distance), 0.0)
    fuzzy /= fuzzy.sum(axis=1, keepdims=True)
    if expansion > 1:
        fuzzy = fuzzy[nearest[:, :expansion]].mean(axis=1)
    overlap = np.minimum(fuzzy[0], fuzzy[1:]).sum(axis=1)
    jaccard = 1 - overlap / (2 - overlap)  # each row sums to 1
    order: npt.NDArray[np.int64] = np.argsort((1 - weight) * jaccard + weight * distance[0, 1:], kind="stable")
    return order


def _nearest_mask(nearest: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(nearest.shape, dtype=bool)
    np.put_along_axis(mask, nearest[:, :count], True, axis=1)
    return mask


def _expanded(
    reciprocal: npt.NDArray[np.bool_], nearest: npt.NDArray[np.int64], neighbours: int
) -> npt.NDArray[np.bool_]:
    """Each set of reciprocal neighbours, joined by the smaller sets of its members that overlap it by two thirds."""
    among = _nearest_mask(nearest, round(neighbours / 2) + 1)
    smaller = among & among.T
    shared = reciprocal.astype(np.int32) @ smaller.T.astype(np.int32)
    taken = reciprocal & (3 * shared > 2 * smaller.sum(axis=1))
    expanded: npt.NDArray[np.bool_] = reciprocal | (taken @ smaller)
    return expanded
