"""Ranks for small classes: images that rank ahead of each query's positives are counted in tiles of the similarities.

The first pass computes only tiles that hold whole classes, a small part of the matrix. It gives the similarity of each
positive, and the R-th best similarity within the tile. A positive that ranks behind that one is not among the R best of
all images. So MAP@R and R-precision need only the ranks of the other positives, and Recall@K only that of the nearest.

The second pass computes all tiles and looks for images ahead of the last positive that matters (ranks.py).

Where all images query all others, each tile is read by rows and by columns, so only half of the tiles are computed.
Several processes hold a share of the rows and columns each; shares are passed around a ring, and tiles are divided.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proxygml.evaluation.ranks import Positives, Ranks, empty_tensors, is_before, starts_of
from proxygml.evaluation.retrieval import SMALLEST_PRODUCT, Array, QueryScores, Retrieval, padded_rows, tracked
from proxygml.evaluation.ring import share_bounds

_CPU_TILE = 1024  # rows and columns of a tile that stays in the cache while it is compared
_TILE_BYTES = 24  # taken by one entry of a tile: its value, and what is derived from it


def score_by_tiles(
    task: Retrieval, rows: Array, symmetric: bool, shape: tuple[int, int], queries: Array, progress: bool
) -> QueryScores:
    """The scores of the queries.

    Args:
        task: embeddings and classes.
        rows: (r,) int64: the images that are the matrix's rows; its columns are the gallery.
        symmetric: whether the rows are the gallery too.
        shape: rows and columns of a tile.
        queries: (Q,) int64: those of the rows that are scored; each has a positive.
        progress: whether to show a progress bar.
    """
    matrix, ring = _Matrix(task, rows, symmetric, shape, queries), task.ring
    row_unit = task.unit_of(rows, matrix.row_bounds)
    column_unit = row_unit if symmetric else task.unit_of(task.gallery, matrix.column_bounds)
    first_pass = _FirstPass(matrix, row_unit)
    for owner, (unit,) in ring.pass_around([column_unit], matrix.empty_columns, ring.size):
        first_pass.look_at(owner, unit)
    ranks, behind = first_pass.ranks()
    progress = progress and ring.rank == 0
    if symmetric:
        _count_both_ways(matrix, row_unit, ranks, progress)
    else:
        _count_by_rows(matrix, row_unit, column_unit, ranks, progress)
    figures = [ring.share(part) for part in _figures(ranks, behind, matrix.counts_of(ring.rank))]
    scored = np.searchsorted(rows, queries)
    return QueryScores(queries, *(each[scored] for each in figures))


def tile_size(count: int, task: Retrieval, memory_limit: int) -> int:
    """Rows (or columns) of a tile, a multiple of 16, such that few are wasted in the last one.

    All tiles have one shape, so that the same product is rounded alike everywhere.
    """
    largest = math.isqrt(memory_limit // 2 // _TILE_BYTES)
    if task.unit.device.type == "cpu":
        largest = min(largest, _CPU_TILE)
    largest = max(SMALLEST_PRODUCT, largest // SMALLEST_PRODUCT * SMALLEST_PRODUCT)
    tiles = -(-count // largest)
    return -(-count // tiles // SMALLEST_PRODUCT) * SMALLEST_PRODUCT


class _Matrix:
    """The similarities of some rows to the gallery, their tiles, and the shares of the processes: whole tiles each."""

    def __init__(self, task: Retrieval, rows: Array, symmetric: bool, shape: tuple[int, int], queries: Array) -> None:
        self.task, self.rows, self.symmetric = task, rows, symmetric
        self.height, self.width = shape
        self.row_bounds = share_bounds(len(rows), self.height, task.ring.size)
        self.column_bounds = share_bounds(task.num_gallery, self.width, task.ring.size)
        self.counts = np.zeros(len(rows), dtype=np.int64)  # positives of each row that is scored
        self.counts[np.searchsorted(rows, queries)] = task.rules.num_matches[queries]
        self._tile = task.unit.new_empty(shape)  # overwritten by each product

    def rows_of(self, owner: int) -> Array:
        """The images that are a process's rows."""
        return self.rows[self.row_bounds[owner] : self.row_bounds[owner + 1]]

    def columns_of(self, owner: int) -> Array:
        """The images that are a process's columns."""
        return self.task.gallery[self.column_bounds[owner] : self.column_bounds[owner + 1]]

    def counts_of(self, owner: int) -> Array:
        """How many positives each of a process's rows has."""
        return self.counts[self.row_bounds[owner] : self.row_bounds[owner + 1]]

    def padded(self, owner: int) -> int:
        """A process's rows, in whole tiles."""
        return -(-len(self.rows_of(owner)) // self.height) * self.height

    def empty_columns(self, owner: int) -> list[Tensor]:
        """A tensor to receive a process's columns into."""
        return [self.task.unit.new_empty(len(self.columns_of(owner)), self.task.unit.shape[1])]

    def empty_share(self, owner: int) -> list[Tensor]:
        """Tensors to receive a process's vectors and Ranks into, where its rows are its columns."""
        ranks = empty_tensors(self.task.unit, self.counts_of(owner), self.padded(owner))
        return [*self.empty_columns(owner), *ranks]

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """The tile of these vectors, (height, width); -inf beyond the right ones. The next call overwrites it."""
        tile = self.task.product(padded_rows(left, self.height), padded_rows(right, self.width), self._tile)
        tile[:, len(right) :] = -torch.inf
        return tile


class _FirstPass:
    """The similarities of the positives of this process's rows, from tiles of whole classes."""

    def __init__(self, matrix: _Matrix, unit: Tensor) -> None:
        self.matrix, self.unit = matrix, unit
        self.images = matrix.rows_of(matrix.task.ring.rank)
        self.counts = matrix.counts_of(matrix.task.ring.rank)
        self.relevant = matrix.task.tensor(self.counts)
        # The similarity on place R and its column, as far as one tile shows it.
        self.best = unit.new_full((len(self.images),), -torch.inf)
        self.best_column = torch.zeros(len(self.images), dtype=torch.int64, device=unit.device)
        self.found: list[tuple[Tensor, Tensor, Tensor]] = [(self.best_column[:0], self.best_column[:0], self.best[:0])]

    def look_at(self, owner: int, unit: Tensor) -> None:
        """Find the positives among the columns of a process, whose vectors these are."""
        matrix, task = self.matrix, self.matrix.task
        images, begin = matrix.columns_of(owner), int(matrix.column_bounds[owner])
        for rows, columns in _whole_classes(task.codes[self.images], task.codes[images], matrix.height, matrix.width):
            row_index, column_index = task.tensor(rows), task.tensor(columns)
            tile = matrix.product(self.unit[row_index], unit[column_index])[: len(rows), : len(columns)]
            row_images, column_images = self.images[rows], images[columns]
            task.exclude(tile, row_images, column_images)
            same = task.tensor(task.codes[row_images])[:, None] == task.tensor(task.codes[column_images])
            row, column = (same & (tile > -torch.inf)).nonzero(as_tuple=True)
            self.found.append((row_index[row], column_index[column] + begin, tile[row, column]))
            if len(place := np.flatnonzero(self.counts[rows])):
                self._keep_best(task.tensor(rows[place]), tile[task.tensor(place)], column_index + begin)

    def _keep_best(self, rows: Tensor, similarity: Tensor, columns: Tensor) -> None:
        values, kth = _kth_best(similarity, self.relevant[rows])
        better = is_before(values, columns[kth], self.best[rows], self.best_column[rows])
        self.best[rows[better]] = values[better]
        self.best_column[rows[better]] = columns[kth][better]

    def ranks(self) -> tuple[Ranks, Tensor]:
        """The bounds for the second pass, and which pairs are not among the R best, (P,) booleans."""
        positives = self._positives()
        rows, padded = positives.rows(), self.matrix.padded(self.matrix.task.ring.rank)
        behind = is_before(self.best[rows], self.best_column[rows], positives.values, positives.columns)
        reached = torch.zeros(padded, dtype=torch.int64, device=rows.device).index_add_(0, rows, (~behind).long())
        scored = self.relevant.nonzero().squeeze(1)
        last = positives.starts[scored] + (reached[scored] - 1).clamp(min=0)
        # Rows without a positive, and those beyond the last: nothing is ahead of an infinite bound.
        bound = self.best.new_full((padded,), torch.inf)
        bound[scored] = positives.values[last]
        bound_column = torch.zeros_like(reached)
        bound_column[scored] = positives.columns[last]
        return Ranks(positives, bound, bound_column, reached > 1), behind

    def _positives(self) -> Positives:
        row, column, value = (torch.cat(parts) for parts in zip(*self.found, strict=True))
        scored = self.relevant[row] > 0
        row, column, value = row[scored], column[scored], value[scored]
        # Stable sorts, the least important key first.
        order = column.argsort(stable=True)
        order = order[value[order].argsort(descending=True, stable=True)]
        order = order[row[order].argsort(stable=True)]
        longest = int(self.counts.max(initial=0))
        return Positives(value[order], column[order], starts_of(self.relevant), longest)


def _whole_classes(row_codes: Array, column_codes: Array, height: int, width: int) -> Iterator[tuple[Array, Array]]:
    """Rows and columns, each rising, of some classes that both have, whole, that fit in a tile."""
    classes = np.intersect1d(row_codes, column_codes)
    row_order, column_order = (_in_classes(codes, classes) for codes in (row_codes, column_codes))
    row_ends, column_ends = (
        np.searchsorted(codes[order], classes, side="right")
        for codes, order in ((row_codes, row_order), (column_codes, column_order))
    )
    first, row, column = 0, 0, 0
    while first < len(classes):
        last = min(
            int(np.searchsorted(row_ends, row + height, side="right")),
            int(np.searchsorted(column_ends, column + width, side="right")),
        )
        row_end, column_end = int(row_ends[last - 1]), int(column_ends[last - 1])
        yield np.sort(row_order[row:row_end]), np.sort(column_order[column:column_end])
        first, row, column = last, row_end, column_end


def _in_classes(codes: Array, classes: Array) -> Array:
    """The places of these classes, class after class."""
    order = np.argsort(codes, kind="stable")
    return order[np.isin(codes[order], classes)]


@dataclass(frozen=True)
class _Side:
    """A share that is the rows or the columns of tiles, and its Ranks where it searches."""

    images: Array
    unit: Tensor
    begin: int  # its first row or column in the matrix
    ranks: Ranks | None


class _Tiles:
    """The tiles of one share's rows with one share's columns."""

    def __init__(self, matrix: _Matrix, left: _Side, right: _Side) -> None:
        self.matrix, self.left, self.right = matrix, left, right
        self.count = -(-len(left.images) // matrix.height), -(-len(right.images) // matrix.width)
        self.places, self.starts = self._excluded()

    def _excluded(self) -> tuple[Tensor, list[int]]:
        """Where in its tile each pair lies that is of one class or excludes each other; where each tile's begin.

        Images of one class are not counted: a positive's place among the positives is known.
        """
        matrix, task = self.matrix, self.matrix.task
        keys = [task.codes, *task.rules.groups]
        pairs = [_pairs_alike(key[self.left.images], key[self.right.images]) for key in keys]
        row, column = (task.tensor(np.concatenate(parts)) for parts in zip(*pairs, strict=True))
        number = row // matrix.height * self.count[1] + column // matrix.width
        number, order = number.sort()
        place = (row % matrix.height * matrix.width + column % matrix.width)[order]
        numbers = torch.arange(self.count[0] * self.count[1] + 1, device=number.device)
        return place, torch.searchsorted(number, numbers).tolist()

    def look_at(self, row: int, column: int) -> None:
        """Count what a tile holds ahead of the positives of its rows, and of its columns where they search too."""
        matrix, left, right = self.matrix, self.left, self.right
        rows, columns = (
            slice(number * size, (number + 1) * size) for number, size in ((row, matrix.height), (column, matrix.width))
        )
        tile = matrix.product(left.unit[rows], right.unit[columns])
        number = row * self.count[1] + column
        tile.view(-1)[self.places[self.starts[number] : self.starts[number + 1]]] = -torch.inf
        if left.ranks is not None:
            left.ranks.compare(tile, rows, right.begin + columns.start, by_rows=True)
        if right.ranks is not None and not (left is right and row == column):
            right.ranks.compare(tile, columns, left.begin + rows.start, by_rows=False)


def _pairs_alike(rows: Array, columns: Array) -> tuple[Array, Array]:
    """Row and column of every pair with the same number."""
    order = np.argsort(columns, kind="stable")
    first, last = (np.searchsorted(columns[order], rows, side=side) for side in ("left", "right"))
    counts = last - first
    row = np.repeat(np.arange(len(rows)), counts)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return row, order[np.repeat(first, counts) + place]


def _count_by_rows(matrix: _Matrix, unit: Tensor, column_unit: Tensor, ranks: Ranks, progress: bool) -> None:
    """The second pass where queries and gallery differ: the gallery is passed around, this process's rows search."""
    ring = matrix.task.ring
    left = _Side(matrix.rows_of(ring.rank), unit, int(matrix.row_bounds[ring.rank]), ranks)
    for owner, (visiting,) in ring.pass_around([column_unit], matrix.empty_columns, ring.size):
        right = _Side(matrix.columns_of(owner), visiting, int(matrix.column_bounds[owner]), None)
        tiles = _Tiles(matrix, left, right)
        numbers = [(row, column) for row in range(tiles.count[0]) for column in range(tiles.count[1])]
        for row, column in tracked(numbers, "Comparing embeddings", progress):
            tiles.look_at(row, column)


def _count_both_ways(matrix: _Matrix, unit: Tensor, ranks: Ranks, progress: bool) -> None:
    """The second pass where all search all: shares are passed half the way around, and both sides of a tile search."""
    ring = matrix.task.ring

    def side(owner: int, vectors: Tensor, its_ranks: Ranks) -> _Side:
        return _Side(matrix.columns_of(owner), vectors, int(matrix.column_bounds[owner]), its_ranks)

    own = side(ring.rank, unit, ranks)
    travelling = ring.pass_around([unit, *ranks.tensors()], matrix.empty_share, ring.size // 2 + 1)
    for step, (owner, (vectors, *tensors)) in enumerate(travelling):
        if not step:
            visitor = own
        else:
            counts = matrix.task.tensor(matrix.counts_of(owner))
            visitor = side(owner, vectors, Ranks.from_tensors(tensors, counts))
        # The earlier share is always the left factor, as with one process.
        left, right = (own, visitor) if ring.rank <= owner else (visitor, own)
        tiles = _Tiles(matrix, left, right)
        numbers = [
            (row, column)
            for row in range(tiles.count[0])
            for column in range(row if left is right else 0, tiles.count[1])
            # Half the way around, two processes meet each other: each takes every other tile.
            if not step or 2 * step < ring.size or (row + column) % 2 == (ring.rank < owner)
        ]
        for row, column in tracked(numbers, "Comparing embeddings", progress):
            tiles.look_at(row, column)
        if step:
            _deliver(matrix, visitor, ranks, step)


def _deliver(matrix: _Matrix, visitor: _Side, ranks: Ranks, step: int) -> None:
    """Send what was counted for the visitor to its owner, and add what was counted for this process's rows."""
    assert visitor.ranks is not None
    counted = [visitor.ranks.ahead, visitor.ranks.beats]
    empty = [torch.empty_like(ranks.ahead), torch.empty_like(ranks.beats)]
    ahead, beats = matrix.task.ring.deliver(counted, step, empty)
    ranks.ahead += ahead
    ranks.beats += beats


def _figures(ranks: Ranks, behind: Tensor, counts: Array) -> tuple[Array, Array, Array]:
    """First positive, average precision and R-precision of each row; anything where it has no positive."""
    rows, place, rank = ranks.found(counts)
    first = np.append(rank, 0)[ranks.positives.starts[:-1].cpu().numpy()]
    hits = (rank < counts[rows]) & ~behind.cpu().numpy()
    relevant = np.maximum(counts, 1)
    average = np.bincount(rows, weights=hits * (place + 1) / (rank + 1), minlength=len(counts)) / relevant
    return first, average, np.bincount(rows, weights=hits, minlength=len(counts)) / relevant


def _kth_best(similarity: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The value and the column of the entry on place k (b,) of each row, as a stable descending sort has them.

    Where a row has fewer entries, -inf and any column.
    """
    width = similarity.shape[1]
    values, columns = similarity.topk(min(int(k.max()) + 1, width), dim=1)
    place = (k - 1).clamp(max=values.shape[1] - 1)[:, None]
    value, column = values.gather(1, place), columns.gather(1, place)
    value = value.masked_fill_((k > width)[:, None], -torch.inf)
    tied = (((values == value).sum(dim=1) > 1) & (value.squeeze(1) > -torch.inf)).nonzero().squeeze(1)
    if len(tied):
        rows = similarity[tied]
        equal = rows == value[tied]
        missing = k[tied, None] - (rows > value[tied]).sum(dim=1, keepdim=True)
        column[tied] = (equal.cumsum(dim=1, dtype=torch.int32) < missing).sum(dim=1, keepdim=True)
    return value.squeeze(1), column.squeeze(1)
