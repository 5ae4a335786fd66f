"""Exact retrieval in bounded memory: the ranks of every query's positives, and lists of nearest images.

Similarities are the entries of a matrix product. A query ranks the gallery as a stable descending sort of its row
would, but no row is sorted and the matrix is never in memory as a whole. With small classes, it is computed a tile at a
time (tiles.py), and only half of it where every image queries all others. With large classes, it is computed in blocks
of whole rows (lists.py), or, over several processes, of parts of rows (ring_lists.py).
"""

import numpy as np
import torch
from torch import Tensor

from proxygml.evaluation.lists import Rows, largest_entries, row_blocks, score_by_lists
from proxygml.evaluation.retrieval import NOT_FOUND, Array, QueryScores, Retrieval, tracked
from proxygml.evaluation.ring_lists import nearest_by_ring, score_by_ring_lists
from proxygml.evaluation.tiles import score_by_tiles, tile_size

_PAIR_BYTES = 80  # taken by a query and an image of its class: value, column, count, and their sorted copies
_LARGEST_CLASS = 50  # from about here on, ranking the positives costs more than listing the nearest


def score(task: Retrieval, memory_limit: int, progress: bool, whole_ranking: bool = False) -> QueryScores:
    """The scores of all queries that are scored; one of them must have a positive."""
    rules = task.rules
    queries = np.flatnonzero(rules.is_query & (rules.num_matches > 0))
    positives = rules.num_matches[queries]
    rows = task.gallery if np.array_equal(rules.is_gallery, rules.is_query) else queries
    shape = tile_size(len(rows), task, memory_limit), tile_size(task.num_gallery, task, memory_limit)
    num_pairs = int((positives + 1).sum()) + _num_pairs_of_groups(task, rows)
    in_gallery = np.bincount(task.codes[task.gallery], minlength=task.codes.max() + 1)
    largest = max(np.bincount(task.codes[rows]).max(), in_gallery[task.codes[rows]].max())
    held = num_pairs * _PAIR_BYTES // task.ring.size  # by each process
    small = largest <= min(_LARGEST_CLASS, *shape) and held <= memory_limit // 2
    if small and not whole_ranking:
        found = score_by_tiles(task, rows, rows is task.gallery, shape, queries, progress)
    elif task.ring.size > 1:
        found = score_by_ring_lists(task, queries, memory_limit, progress, whole_ranking)
    else:
        found = score_by_lists(task, queries, rules.num_matches, memory_limit, progress, whole_ranking)
    return with_unanswerable(found, np.flatnonzero(rules.scored & (rules.num_matches == 0)))


def _num_pairs_of_groups(task: Retrieval, rows: Array) -> int:
    """How many pairs of a row and a column exclude each other."""
    return sum(
        int(np.bincount(group[task.gallery], minlength=group.max() + 1)[group[rows]].sum())
        for group in task.rules.groups
    )


def with_unanswerable(scores: QueryScores, missed: Array) -> QueryScores:
    """The scores with those of queries (m,) that find nothing, because all their matches are of their own sequence."""
    if not len(missed):
        return scores
    order = np.argsort(np.concatenate([scores.index, missed]))

    def extended(found: Array, missing: float) -> Array:
        return np.concatenate([found, np.full(len(missed), missing, dtype=found.dtype)])[order]

    full = scores.full_average_precision
    return QueryScores(
        index=np.concatenate([scores.index, missed])[order],
        first_positive=extended(scores.first_positive, NOT_FOUND),
        average_precision=extended(scores.average_precision, 0.0),
        r_precision=extended(scores.r_precision, 0.0),
        full_average_precision=None if full is None else extended(full, 0.0),
    )


def nearest(task: Retrieval, images: Array, k: int, memory_limit: int, progress: bool) -> tuple[Tensor, Tensor]:
    """Similarities and columns (q, k) of the k gallery images nearest to each of the images, nearest first."""
    if task.ring.size > 1:
        return nearest_by_ring(task, images, k, memory_limit, progress)
    rows = Rows(task)
    blocks = row_blocks(np.full(len(images), k), rows.row_bytes, memory_limit)
    found = [largest_entries(rows.similarities(images[block]), k) for block in tracked(blocks, "Searching", progress)]
    return torch.cat([values for values, _ in found]), torch.cat([columns for _, columns in found])
