"""Nearest neighbours by inner product: exact, or by a FAISS index that finds most of them faster.

Both only propose candidates. `ranked` computes the similarities again, in one way for all candidates, so that a score
never depends on the kind of index, the batch or the item's row, and equal scores rank in the order of the gallery. Only
where a gallery of codes is not to look at the exact vectors, the similarities are those of the codes.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from proxygml.arrays import Rows, Vectors
from proxygml.gallery.approximate import ApproximateIndex, FoundRows
from proxygml.gallery.index_kinds import REFINED
from proxygml.gallery.rounded import RoundedVectors
from proxygml.gallery.vectors import VectorRows

_BLOCK_BYTES = 64 * 2**20
_COMPARED_AT_A_TIME = 4096
_GROUP, _GROUPS_FOR_EACH = 64, 4  # similarities in a group; groups for each neighbour, so that groups are worth it


def exact_candidates(
    vectors: VectorRows,
    queries: Vectors,
    k: int,
    allowed: npt.NDArray[np.bool_] | None,
    first: int = 0,
    rounded: RoundedVectors | None = None,
) -> list[Rows]:
    """For each query rows that are sure to hold its k nearest.

    Args:
        vectors: n, of length 1.
        queries: (q, D), of length 1.
        k: at most the number of allowed rows.
        allowed: (n,), the rows that may be found; None for all.
        first: the row from which on to look.
        rounded: a copy of the first vectors, for one query.
    """
    rows: Rows | None = None
    if allowed is not None and 4 * np.count_nonzero(allowed[first:]) < len(allowed) - first:
        rows = first + np.flatnonzero(allowed[first:])  # few rows: fetching them costs less than comparing all
    elif rounded is not None and len(queries) == 1 and not first:
        some = _near_by_rounded(vectors, rounded, queries, k, allowed)
        if len(some) <= max(2 * k, _COMPARED_AT_A_TIME):
            return [some[_nearest(vectors.take(some) @ queries[0], k, 2.0**-22 * vectors.size)]]
    count = len(vectors) - first if rows is None else len(rows)
    height = max(1, _BLOCK_BYTES // (4 * max(count, 1)))
    found: list[Rows] = []
    for start in range(0, len(queries), height):
        similarity = _products(vectors, queries[start : start + height], rows, first)
        if allowed is not None and rows is None:
            similarity[:, ~allowed[first:]] = -np.inf
        # Rounding may have put a row that belongs in just below the k-th: the bound of a float32 inner product.
        slack = 2.0**-22 * vectors.size
        near = [_nearest(row, k, slack) for row in similarity]
        found += [first + places if rows is None else rows[places] for places in near]
    return found


def _near_by_rounded(
    vectors: VectorRows, rounded: RoundedVectors, query: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None
) -> Rows:
    """Rows that are sure to hold the k nearest of one query (1, D): what is rounded away may have hidden them."""
    similarity = np.empty(len(vectors), np.float32)
    similarity[: len(rounded)] = rounded.products(query[0])
    if len(rounded) < len(vectors):
        similarity[len(rounded) :] = _products(vectors, query, None, len(rounded))[0]
    if allowed is not None:
        similarity[~allowed] = -np.inf
    return _nearest(similarity, k, 2 * rounded.error)


def _nearest(similarity: Vectors, k: int, slack: float) -> Rows:
    """The places, rising, of the k largest of n similarities, and of all that are at most `slack` below the k-th.

    Most are ruled out by the maxima of groups, which one quick pass gives: k groups have a maximum of at least the k-th
    largest maximum, so the k-th largest similarity is no less.
    """
    groups = len(similarity) // _GROUP
    near: Rows = np.arange(len(similarity))
    in_groups = groups > _GROUPS_FOR_EACH * k
    maxima = similarity[: _GROUP * groups].reshape(_GROUP, groups).max(axis=0) if in_groups else similarity
    if np.isnan(maxima).any():  # of a vector that is damaged, which must not hide the others
        return _nearest(np.nan_to_num(similarity, nan=-np.inf, posinf=np.inf, neginf=-np.inf), k, slack)
    if in_groups:
        near = np.flatnonzero(similarity >= np.partition(maxima, -k)[-k] - slack)
    values = similarity[near]
    nearest: Rows = near[values >= np.partition(values, -k)[-k] - slack]
    return nearest


def _products(vectors: VectorRows, queries: Vectors, rows: Rows | None, first: int) -> Vectors:
    """The inner products (q, n) of queries (q, D) and these rows, or all from `first` on; a block of rows at a time."""
    count = len(vectors) - first if rows is None else len(rows)
    height = max(1, _BLOCK_BYTES // (4 * vectors.size))
    result = np.empty((len(queries), count), np.float32)
    for start in range(0, count, height):
        end = min(start + height, count)
        part = vectors.part(first + start, first + end) if rows is None else vectors.take(rows[start:end])
        # One query as a plain vector: BLAS then reads the gallery once, at the memory's speed.
        result[:, start:end] = part @ queries[0] if len(queries) == 1 else queries @ part.T
    return result


def ranked(vectors: VectorRows, query: Vectors, rows: Rows, k: int) -> tuple[Vectors, Rows]:
    """The similarities of the k best candidates, and which they are, best first, equal ones in the order of the rows.

    Args:
        vectors: n of them.
        query: (D,).
        rows: (c,), rising.
        k: how many; fewer where there are fewer candidates.

    Returns:
        float32 (k,) in -1..1, and int64 (k,), places in `rows`.
    """
    return best_first(np.concatenate([_similarity(vectors.take(part), query) for part in _parts(rows)]), k)


def best_first(scores: Vectors, k: int) -> tuple[Vectors, Rows]:
    """The k highest of the scores (c,), and int64 (k,) where they stand; equal ones in the order that they have."""
    order = np.argsort(-scores, kind="stable")[:k]
    return scores[order], order


def _parts(rows: Rows) -> Iterator[Rows]:
    for start in range(0, max(len(rows), 1), _COMPARED_AT_A_TIME):
        yield rows[start : start + _COMPARED_AT_A_TIME]


def _similarity(vectors: Vectors, query: Vectors) -> Vectors:
    """Summed in float64 row by row: equal vectors are equally similar, which a matrix product does not promise."""
    similarity = (vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=1)
    clipped: Vectors = similarity.clip(-1, 1).astype(np.float32)
    return clipped


def candidates_among(
    vectors: VectorRows,
    index: ApproximateIndex | None,
    queries: Vectors,
    k: int,
    allowed: npt.NDArray[np.bool_] | None,
    refine: int = REFINED,
    rounded: RoundedVectors | None = None,
) -> list[FoundRows]:
    """For each query rows among which its k nearest are, or all where fewer may be found.

    Args:
        vectors: n, of length 1.
        index: over the first of the vectors; those after them are searched exactly. None searches all of them exactly.
        queries: (q, D), of length 1.
        k: 1 or more.
        allowed: bool (n,), the rows that may be found; None for all.
        refine: see ApproximateIndex.candidates.
        rounded: see exact_candidates.
    """
    count = len(vectors) if allowed is None else int(np.count_nonzero(allowed))
    k = min(k, count)
    if not count:
        return [FoundRows(np.empty(0, np.int64))] * len(queries)
    # Where few items may be found, an approximate index would spend its search on those that may not.
    if index is None or 20 * count < len(vectors):
        return [FoundRows(rows) for rows in exact_candidates(vectors, queries, k, allowed, rounded=rounded)]
    found, first = index.candidates(queries, k, allowed, refine), len(index)
    tail = len(vectors) - first if allowed is None else int(np.count_nonzero(allowed[first:]))
    if tail:
        newest = exact_candidates(vectors, queries, min(k, tail), allowed, first)
        found = [_joined(*parts, vectors) for parts in zip(found, newest, queries, strict=True)]
    for number, some in enumerate(found):
        if len(some.rows) < k:
            found[number] = FoundRows(exact_candidates(vectors, queries[number : number + 1], k, allowed)[0])
    return found


def _joined(found: FoundRows, newest: Rows, query: Vectors, vectors: VectorRows) -> FoundRows:
    """What an index found for a query, and rows after those that it holds."""
    rows = np.concatenate([found.rows, newest])
    if found.scores is None:
        return FoundRows(rows)
    return FoundRows(rows, np.concatenate([found.scores, _similarity(vectors.take(newest), query)]))


def recall_against_exact(found: Rows, exact: Rows) -> float:
    """The share, 0..1, of the exact neighbours (q, k) that are among the found ones (q, k)."""
    hits = sum(len(np.intersect1d(one, other)) for one, other in zip(found, exact, strict=True))
    return hits / exact.size
