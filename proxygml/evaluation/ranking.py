"""Exact retrieval in bounded memory: the ranks of every query's positives, and lists of nearest images.

Similarities are the entries of a matrix product. A query ranks the gallery as a stable descending sort of its row
would, but no row is sorted and the matrix is never in memory as a whole. With small classes, it is computed a tile at a
time (tiles.py), and only half of it where every image queries all others. With large classes, it is computed in blocks
of whole rows (lists.py).
"""

import numpy as np
import torch
from torch import Tensor

from proxygml.evaluation.lists import Rows, largest_entries, row_blocks, score_by_lists
from proxygml.evaluation.retrieval import Array, QueryScores, Retrieval, tracked
from proxygml.evaluation.tiles import score_by_tiles, tile_size

_PAIR_BYTES = 80  # taken by a query and an image of its class: value, column, count, and their sorted copies
_LARGEST_CLASS = 50  # from about here on, ranking the positives costs more than listing the nearest


def score(task: Retrieval, memory_limit: int, progress: bool) -> QueryScores:
    """The scores of all queries that have a positive; there must be one."""
    positives = task.num_positives()
    queries = np.flatnonzero(task.is_query & (positives > 0))
    whole = np.array_equal(task.gallery, np.flatnonzero(task.is_query))
    rows = task.gallery if whole else queries
    shape = tile_size(len(rows), task, memory_limit), tile_size(task.num_gallery, task, memory_limit)
    largest = max(np.bincount(task.codes[rows]).max(), positives[queries].max() + 1)
    num_pairs = int((positives[queries] + 1).sum())
    if largest <= min(_LARGEST_CLASS, *shape) and num_pairs * _PAIR_BYTES <= memory_limit // 2:
        return score_by_tiles(task, rows, whole, shape, queries, positives[queries], progress)
    return score_by_lists(task, queries, positives, memory_limit, progress)


def nearest(task: Retrieval, images: Array, k: int, memory_limit: int, progress: bool) -> tuple[Tensor, Tensor]:
    """Similarities and columns (q, k) of the k gallery images nearest to each of the images, nearest first."""
    rows = Rows(task)
    blocks = row_blocks(np.full(len(images), k), rows.row_bytes, memory_limit)
    found = [largest_entries(rows.similarities(images[block]), k) for block in tracked(blocks, "Searching", progress)]
    return torch.cat([values for values, _ in found]), torch.cat([columns for _, columns in found])
