"""Ranks for small classes: images that rank ahead of each query's positives are counted in tiles of the similarities.

The first pass computes only tiles that hold whole classes, a small part of the matrix. It gives the similarity of each
positive, and the R-th best similarity within the tile. A positive that ranks behind that one is not among the R best of
all images. So MAP@R and R-precision need only the ranks of the other positives, and Recall@K only that of the nearest.

The second pass computes all tiles and looks for images ahead of the last positive that matters. If that is the nearest
positive, counting is enough. Otherwise each image found (there are few) is counted under the first positive that it
ranks ahead of.

Where all images query all others, each tile is read by rows and by columns, so only half of the tiles are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proxygml.evaluation.retrieval import SMALLEST_PRODUCT, Array, QueryScores, Retrieval, padded_rows, tracked

_CPU_TILE = 1024  # rows and columns of a tile that stays in the cache while it is compared
_TILE_BYTES = 24  # taken by one entry of a tile: its value, and what is derived from it


def score_by_tiles(
    task: Retrieval,
    rows: Array,
    symmetric: bool,
    shape: tuple[int, int],
    queries: Array,
    relevant: Array,
    progress: bool,
) -> QueryScores:
    """The scores of the queries.

    Args:
        task: embeddings and classes.
        rows: (r,) int64: the images that are the matrix's rows; its columns are the gallery.
        symmetric: whether the rows are the gallery too.
        shape: rows and columns of a tile.
        queries: (Q,) int64: those of the rows that are scored.
        relevant: (Q,) int64: how many positives each query has, at least 1.
        progress: whether to show a progress bar.
    """
    grid = _Grid(task, rows, symmetric, shape)
    counts = np.zeros(len(rows), dtype=np.int64)
    scored = np.searchsorted(rows, queries)
    counts[scored] = relevant
    ranks = _Ranks(grid, _positives_of(grid, counts), counts)
    for row, column in tracked(grid.tiles(), "Comparing", progress):
        ranks.look_at(row, column)
    first, average, r_precision = ranks.figures(counts)
    return QueryScores(queries, first[scored], average[scored], r_precision[scored])


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


@dataclass(frozen=True)
class _Positives:
    """Every query with each of its positives, best first within a query; P pairs, Q rows."""

    values: Tensor  # (P,)
    columns: Tensor  # (P,) int64
    queries: Tensor  # (P,) int64: the row
    starts: Tensor  # (Q + 1,) int64: where a row's positives begin
    longest: int

    def first_beaten(self, queries: Tensor, values: Tensor, columns: Tensor) -> Tensor:
        """The first positive of the query that an image comes before, by bisection; P where it comes before none."""
        low, end = self.starts[queries], self.starts[queries + 1]
        high = end
        for _ in range(self.longest.bit_length()):
            middle = (low + high) // 2
            place = middle.clamp(max=len(self.values) - 1)
            before = _is_before(values, columns, self.values[place], self.columns[place])
            searching = low < high
            high = torch.where(searching & before, middle, high)
            low = torch.where(searching & ~before, middle + 1, low)
        return torch.where(low < end, low, len(self.values))


def _is_before(values: Tensor, columns: Tensor, other_values: Tensor, other_columns: Tensor) -> Tensor:
    """The order of a ranking: by falling similarity, equals by their place in the gallery."""
    return (values > other_values) | ((values == other_values) & (columns < other_columns))


class _Grid:
    """The similarity matrix of some rows to the gallery, and its division into tiles."""

    def __init__(self, task: Retrieval, rows: Array, symmetric: bool, shape: tuple[int, int]) -> None:
        self.task = task
        self.rows = rows
        self.symmetric = symmetric
        self.height, self.width = shape
        self.row_unit = task.gallery_unit if symmetric else task.unit[task.tensor(rows)]
        self.tile = task.unit.new_empty(shape)  # overwritten by each product
        self.count = -(-len(rows) // self.height), -(-task.num_gallery // self.width)

    def tiles(self) -> list[tuple[int, int]]:
        """Row and column of each tile that has to be looked at."""
        return [
            (row, column)
            for row in range(self.count[0])
            for column in range(row if self.symmetric else 0, self.count[1])
        ]

    def similarity(self, row: int, column: int) -> Tensor:
        """The tile at that row and column, (height, width); -inf beyond the gallery."""
        left = self.row_unit[row * self.height : (row + 1) * self.height]
        right = self.task.gallery_unit[column * self.width : (column + 1) * self.width]
        tile = self.task.product(padded_rows(left, self.height), padded_rows(right, self.width), self.tile)
        tile[:, len(right) :] = -torch.inf
        return tile

    def whole_classes(self) -> Iterator[tuple[Array, Array]]:
        """Rows and columns, each rising, that hold some classes whole and fit in a tile."""
        row_codes, column_codes = (self.task.codes[images] for images in (self.rows, self.task.gallery))
        row_order, column_order = (np.argsort(codes, kind="stable") for codes in (row_codes, column_codes))
        classes = np.unique(row_codes)
        row_ends = np.searchsorted(row_codes[row_order], classes, side="right")
        column_starts = np.searchsorted(column_codes[column_order], classes, side="left")
        column_ends = np.searchsorted(column_codes[column_order], classes, side="right")
        held = np.cumsum(column_ends - column_starts)  # columns of the classes so far: other classes lie between
        first, row, column = 0, 0, 0
        while first < len(classes):
            last = min(
                int(np.searchsorted(row_ends, row + self.height, side="right")),
                int(np.searchsorted(held, column + self.width, side="right")),
            )
            own = [column_order[a:b] for a, b in zip(column_starts[first:last], column_ends[first:last], strict=True)]
            yield np.sort(row_order[row : row_ends[last - 1]]), np.sort(np.concatenate(own))
            first, row, column = last, int(row_ends[last - 1]), int(held[last - 1])

    def class_tile(self, rows: Array, columns: Array) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The tile of these rows and columns, -inf where excluded, and its pairs of a class: row, column, value."""
        task = self.task
        row_index, column_index = task.tensor(rows), task.tensor(columns)
        left, right = self.row_unit[row_index], task.gallery_unit[column_index]
        tile = task.product(padded_rows(left, self.height), padded_rows(right, self.width), self.tile)
        tile = tile[: len(rows), : len(columns)]
        row_images, column_images = self.rows[rows], task.gallery[columns]
        same = task.tensor(task.codes[row_images])[:, None] == task.tensor(task.codes[column_images])
        task.exclude(tile, row_images, column_images)
        row, column = same.nonzero(as_tuple=True)
        return tile, (row_index[row], column_index[column], tile[row, column])

    def places_by_tile(self, row: Tensor, column: Tensor) -> tuple[Tensor, list[int]]:
        """Where in its tile each pair of one class lies, tile after tile, and where each tile's pairs begin."""
        number = row // self.height * self.count[1] + column // self.width
        number, order = number.sort()
        place = (row % self.height * self.width + column % self.width)[order]
        numbers = torch.arange(self.count[0] * self.count[1] + 1, device=number.device)
        return place, torch.searchsorted(number, numbers).tolist()


@dataclass(frozen=True)
class _Found:
    """What the first pass finds; Q rows, padded to whole tiles."""

    positives: _Positives
    pairs: Tensor  # where in its tile each pair of one class, or that excludes each other, lies, tile after tile
    pair_starts: list[int]  # where each tile's pairs begin
    best: Tensor  # (Q,): the similarity on place R, as far as the tile of the row's class shows it
    best_column: Tensor  # (Q,) int64: its column


def _positives_of(grid: _Grid, counts: Array) -> _Found:
    """The first pass, over the tiles of whole classes; `counts` (rows,) says how many positives each row has."""
    padding = grid.count[0] * grid.height - len(grid.rows)
    best = grid.tile.new_zeros(len(counts) + padding)
    best_column = torch.zeros(len(best), dtype=torch.int64, device=best.device)
    found, task = [], grid.task
    relevant = task.tensor(counts)
    for rows, columns in grid.whole_classes():
        tile, pairs = grid.class_tile(rows, columns)
        found.append(pairs)
        place = np.flatnonzero(counts[rows])
        if len(place):
            scored = task.tensor(rows[place])
            best[scored], kth = _kth_best(tile[task.tensor(place)], relevant[scored])
            best_column[scored] = task.tensor(columns)[kth]
    row, column, value = (torch.cat(parts) for parts in zip(*found, strict=True))
    others = map(task.tensor, pairs_across_classes(task, grid.rows))
    places, pair_starts = grid.places_by_tile(*(torch.cat(pair) for pair in zip((row, column), others, strict=True)))
    return _Found(_sorted_positives(row, column, value, task.tensor(counts)), places, pair_starts, best, best_column)


def pairs_across_classes(task: Retrieval, rows: Array) -> tuple[Array, Array]:
    """Places among `rows`, and columns, of images of different classes that exclude each other: row and column."""
    found = [(np.empty(0, np.int64),) * 2]
    for group in task.rules.groups:
        column_order = np.argsort(group[task.gallery], kind="stable")
        sorted_groups = group[task.gallery][column_order]
        first, last = (np.searchsorted(sorted_groups, group[rows], side=side) for side in ("left", "right"))
        row = np.repeat(np.arange(len(rows)), last - first)
        place = np.arange(len(row)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
        column = column_order[np.repeat(first, last - first) + place]
        across = task.codes[rows[row]] != task.codes[task.gallery[column]]
        found.append((row[across], column[across]))
    row, column = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return row, column


def _sorted_positives(row: Tensor, column: Tensor, value: Tensor, counts: Tensor) -> _Positives:
    positive = value > -torch.inf
    row, column, value = row[positive], column[positive], value[positive]
    # Stable sorts, the least important key first; columns rise within a row already.
    order = value.argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return _Positives(value[order], column[order], row[order], starts, int(counts.max()))


class _Ranks:
    """The second pass: what is ahead of each row's positives.

    Each row looks for what is ahead of its last positive that may be among the R best, or of the nearest.
    """

    def __init__(self, grid: _Grid, first_pass: _Found, counts: Array) -> None:
        self.grid = grid
        self.positives, self.pairs, self.pair_starts = first_pass.positives, first_pass.pairs, first_pass.pair_starts
        best, best_column, found = first_pass.best, first_pass.best_column, first_pass.positives
        self.behind = _is_before(best[found.queries], best_column[found.queries], found.values, found.columns)
        reached = torch.zeros_like(best_column).index_add_(0, found.queries, (~self.behind).long())
        scored = grid.task.tensor(np.flatnonzero(counts))
        last = found.starts[scored] + (reached[scored] - 1).clamp(min=0)
        # Rows without a positive, and those beyond the last: nothing is ahead of an infinite bound.
        self.bound = torch.full_like(best, torch.inf)
        self.bound[scored] = found.values[last]
        self.bound_included = self.bound.nextafter(-self.bound.new_tensor(torch.inf))
        self.bound_column = torch.zeros_like(best_column)
        self.bound_column[scored] = found.columns[last]
        self.listed = reached > 1
        self.ahead = torch.zeros_like(best_column)
        self.beats = best_column.new_zeros(len(found.values) + 1)

    def look_at(self, row: int, column: int) -> None:
        """Count what a tile holds ahead of the positives of its rows, and of its columns where they are rows too."""
        grid = self.grid
        tile = grid.similarity(row, column)
        # Images of one class are not counted: a positive's place among the positives is known.
        number = row * grid.count[1] + column
        tile.view(-1)[self.pairs[self.pair_starts[number] : self.pair_starts[number + 1]]] = -torch.inf
        self._compare(tile, slice(row * grid.height, (row + 1) * grid.height), column * grid.width, by_rows=True)
        if grid.symmetric and row != column:
            self._compare(tile, slice(column * grid.width, (column + 1) * grid.width), row * grid.height, by_rows=False)

    def _compare(self, tile: Tensor, queries: slice, first_column: int, by_rows: bool) -> None:
        """Let the rows of a tile, or its columns, search in it."""
        # Equals are ahead of the bound where they come before it in the gallery.
        included = self.bound_column[queries] >= first_column
        bound = torch.where(included, self.bound_included[queries], self.bound[queries])
        mask = tile > (bound[:, None] if by_rows else bound)
        self.ahead[queries] += _count(mask, dim=1 if by_rows else 0)
        self._take_back_equals(tile if by_rows else tile.T, queries, first_column)
        chosen = self.listed[queries]
        # Booleans are handled eight at a time, as one integer.
        words = mask.view(torch.int64)
        words &= -chosen.long()[:, None] if by_rows else chosen.to(torch.uint8).mul_(255).view(torch.int64)
        for part in torch.split(words.nonzero(), max(1, words.numel() // 8)):
            self._count_beaten(tile, mask, part, queries.start, first_column, by_rows)

    def _take_back_equals(self, similarity: Tensor, queries: slice, first_column: int) -> None:
        """Uncount what equals the bound and comes after it within the same tile."""
        place = self.bound_column[queries] - first_column
        here = (~self.listed[queries] & (place >= 0) & (place < similarity.shape[1])).nonzero().squeeze(1)
        if len(here):
            after = torch.arange(similarity.shape[1], device=here.device) > place[here, None]
            equal = similarity[here] == self.bound[queries][here, None]
            self.ahead[queries.start + here] -= (equal & after).sum(dim=1)

    def _count_beaten(
        self, tile: Tensor, mask: Tensor, words: Tensor, first_query: int, first_column: int, by_rows: bool
    ) -> None:
        """Enter what the words of the mask hold, under the first positive that it is ahead of."""
        row, word = words.unbind(dim=1)
        which, place = mask.view(len(mask), -1, 8)[row, word].nonzero(as_tuple=True)
        row, column = row[which], word[which] * 8 + place
        query, image = (row, column) if by_rows else (column, row)
        beaten = self.positives.first_beaten(query + first_query, tile[row, column], image + first_column)
        self.beats.index_add_(0, beaten, torch.ones_like(beaten))

    def figures(self, counts: Array) -> tuple[Array, Array, Array]:
        """First positive, average precision and R-precision of each row; anything where it has no positive."""
        queries, starts = (tensor.cpu().numpy() for tensor in (self.positives.queries, self.positives.starts))
        beats = np.concatenate([[0], self.beats[:-1].cpu().numpy().cumsum()])
        place = np.arange(len(queries)) - starts[queries]  # among the positives of the query
        rank = place + beats[1:] - beats[starts[queries]]
        counted = np.flatnonzero((counts > 0) & ~self.listed.cpu().numpy()[: len(counts)])
        rank[starts[counted]] = self.ahead.cpu().numpy()[counted]
        first = np.append(rank, 0)[starts[:-1]]
        hits = (rank < counts[queries]) & ~self.behind.cpu().numpy()
        relevant = np.maximum(counts, 1)
        average = np.bincount(queries, weights=hits * (place + 1) / (rank + 1), minlength=len(counts)) / relevant
        return first, average, np.bincount(queries, weights=hits, minlength=len(counts)) / relevant


def _kth_best(similarity: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The value and the column of the entry on place k (b,) of each row, as a stable descending sort has them."""
    longest = min(int(k.max()) + 1, similarity.shape[1])
    values, columns = similarity.topk(longest, dim=1)
    place = (k - 1)[:, None]
    value, column = values.gather(1, place), columns.gather(1, place)
    tied = ((values == value).sum(dim=1) > 1).nonzero().squeeze(1)
    if len(tied):
        rows = similarity[tied]
        equal = rows == value[tied]
        missing = k[tied, None] - (rows > value[tied]).sum(dim=1, keepdim=True)
        column[tied] = (equal.cumsum(dim=1, dtype=torch.int32) < missing).sum(dim=1, keepdim=True)
    return value.squeeze(1), column.squeeze(1)


def _count(mask: Tensor, dim: int) -> Tensor:
    """mask.sum(dim), many times faster: eight booleans are summed as the bytes of one integer, none beyond 128."""
    parts = [part.sum(dim).view(torch.uint8) for part in torch.split(mask.view(torch.int64), 128, dim)]
    sums = torch.stack(parts).sum(dim=0)
    return sums if dim == 0 else sums.view(-1, 8).sum(dim=1)
