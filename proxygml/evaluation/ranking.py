"""Exact retrieval in bounded memory: the ranks of every query's positives, and lists of nearest images.

A similarity is one entry of a matrix product, and a query ranks the gallery as a stable descending sort of its row
would. No row is sorted and the matrix is never held: where classes are small it is computed a tile at a time, and only
half of it where every image queries all others; where they are large, a block of whole rows at a time. Input arrives
here checked (evaluation.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

Array = np.ndarray[Any, Any]
Block = TypeVar("Block")
Precision = Literal["float32", "tf32", "bfloat16"]

_MATMUL_PRECISION = {"float32": "highest", "tf32": "high", "bfloat16": "medium"}
# Rows and columns of a product at least. In smaller ones entries are rounded by their position (seen in MKL below 12),
# and equal images would no longer be equally similar.
_SMALLEST = 16
_CHUNK = 128  # columns that are searched as one when the largest of a row are sought
_LIST_BYTES = 96  # taken by one entry of a list of nearest images: values, columns, hits, and their sorted copies
_CPU_TILE = 1024  # rows and columns of a tile that stays in the cache while it is compared
_TILE_BYTES = 24  # taken by one entry of a tile: its value, and what is derived from it
_PAIR_BYTES = 80  # taken by a query and an image of its class: value, column, count, and their sorted copies
_LARGEST_CLASS = 50  # from about here on, ranking the positives costs more than listing the nearest


@dataclass(frozen=True)
class QueryScores:
    """What every scored query contributes, in the order of the images; Q queries."""

    index: Array  # (Q,) int64: which image the query is
    first_positive: Array  # (Q,) int64: how many gallery images come before its nearest positive
    average_precision: Array  # (Q,) float64: average precision at R, whose mean is MAP@R
    r_precision: Array  # (Q,) float64


class Retrieval:
    """Queries, gallery and classes; an image's column is its place in the gallery.

    Args:
        unit: (n, D) float32 or float64 of length 1 (or 0).
        codes: (n,) int64, the class of each image, 0..C-1.
        is_query, is_gallery: (n,) booleans.
        precision: of the similarities of float32 embeddings.
    """

    def __init__(
        self, unit: Tensor, codes: Array, is_query: Array, is_gallery: Array, precision: Precision = "float32"
    ) -> None:
        # Rounded here, so that bfloat16 means the same on devices whose products know only tf32.
        self.unit = unit.bfloat16().float() if precision == "bfloat16" and unit.dtype == torch.float32 else unit
        self.codes = codes
        self.is_query = is_query
        self.evaluated = np.flatnonzero(is_query | is_gallery)
        self.gallery = np.flatnonzero(is_gallery)
        self.num_gallery = len(self.gallery)
        self.column = np.where(is_gallery, np.cumsum(is_gallery) - 1, -1)
        self.precision = precision
        self.gallery_unit = self.unit if is_gallery.all() else self.unit[self.tensor(self.gallery)]

    def tensor(self, array: Array) -> Tensor:
        """The array where the embeddings are."""
        return torch.from_numpy(array).to(self.unit.device)

    def product(self, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        """Left @ right.T in this retrieval's precision, whatever torch is set to."""
        with _matmul_precision(self.precision), torch.autocast(left.device.type, enabled=False):
            return torch.mm(left, right.T, out=out)

    def num_positives(self) -> Array:
        """(n,) int64: how many gallery images of each image's class there are beside itself."""
        per_class = np.bincount(self.codes[self.gallery], minlength=self.codes.max() + 1)
        counts: Array = per_class[self.codes] - (self.column >= 0)
        return counts


@contextmanager
def _matmul_precision(precision: Precision) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_MATMUL_PRECISION[precision])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def score(task: Retrieval, memory_limit: int, progress: bool) -> QueryScores:
    """The scores of all queries that have a positive; there must be one."""
    positives = task.num_positives()
    queries = np.flatnonzero(task.is_query & (positives > 0))
    whole = np.array_equal(task.gallery, np.flatnonzero(task.is_query))
    rows = task.gallery if whole else queries
    shape = _tile_size(len(rows), task, memory_limit), _tile_size(task.num_gallery, task, memory_limit)
    largest = max(np.bincount(task.codes[rows]).max(), positives[queries].max() + 1)
    num_pairs = int((positives[queries] + 1).sum())
    if largest <= min(_LARGEST_CLASS, *shape) and num_pairs * _PAIR_BYTES <= memory_limit // 2:
        return _Tiles(task, rows, whole, shape).scores(queries, positives[queries], progress)
    return _score_by_lists(task, queries, positives, memory_limit, progress)


def nearest(task: Retrieval, images: Array, k: int, memory_limit: int, progress: bool) -> tuple[Tensor, Tensor]:
    """Similarities and columns (q, k) of the k gallery images nearest to each of the images, nearest first."""
    rows = _Rows(task)
    blocks = _blocks(np.full(len(images), k), rows.row_bytes, memory_limit)
    found = [_best(rows.similarities(images[block]), k) for block in _shown(blocks, "Searching", progress)]
    return torch.cat([values for values, _ in found]), torch.cat([columns for _, columns in found])


# Small classes: the ranks of the positives, by counting what is ahead of them in tiles of the matrix.


def _tile_size(count: int, task: Retrieval, memory_limit: int) -> int:
    """Rows (or columns) of a tile, a multiple of 16, such that few are wasted in the last one.

    All tiles have one shape, so that the same product is rounded alike everywhere.
    """
    largest = math.isqrt(memory_limit // 2 // _TILE_BYTES)
    if task.unit.device.type == "cpu":
        largest = min(largest, _CPU_TILE)
    largest = max(_SMALLEST, largest // _SMALLEST * _SMALLEST)
    tiles = -(-count // largest)
    return -(-count // tiles // _SMALLEST) * _SMALLEST


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


class _Tiles:
    """Ranks of the positives of every query.

    A first pass over tiles that hold whole classes (a small part of the matrix) gives each positive's similarity and,
    of what is in the tile, the R-th best for the query. A positive behind that is not among the R best of all either:
    MAP@R and R-precision need the ranks of the others alone, and Recall@K that of the nearest. A second pass over all
    tiles looks for what is ahead of the last positive that matters: where that is the nearest, it is enough to count;
    else each find, few as a rule, is entered under the positive that it beats.

    Where all images query all others, a tile serves its rows and, read by columns, its columns: half of the tiles do.
    """

    def __init__(self, task: Retrieval, rows: Array, symmetric: bool, shape: tuple[int, int]) -> None:
        self.task = task
        self.rows = rows
        self.symmetric = symmetric
        self.height, self.width = shape
        self.row_unit = task.gallery_unit if symmetric else task.unit[task.tensor(rows)]
        self.tile = task.unit.new_empty(shape)
        self.grid = -(-len(rows) // self.height), -(-task.num_gallery // self.width)

    def scores(self, queries: Array, relevant: Array, progress: bool) -> QueryScores:
        """The scores of the queries, which have `relevant` positives each."""
        counts = np.zeros(len(self.rows), dtype=np.int64)
        scored = np.searchsorted(self.rows, queries)
        counts[scored] = relevant
        self._first_pass(counts)
        steps = [
            (row, column) for row in range(self.grid[0]) for column in range(row if self.symmetric else 0, self.grid[1])
        ]
        for row, column in _shown(steps, "Comparing", progress):
            self._second_pass(row, column)
        first, average, r_precision = self._figures(counts)
        return QueryScores(queries, first[scored], average[scored], r_precision[scored])

    def _first_pass(self, counts: Array) -> None:
        padding = self.grid[0] * self.height - len(self.rows)
        best = self.tile.new_zeros(len(counts) + padding)
        best_column = torch.zeros(len(best), dtype=torch.int64, device=best.device)
        found = []
        relevant = self.task.tensor(counts)
        for rows, columns in self._whole_classes():
            tile, pairs = self._class_tile(rows, columns)
            found.append(pairs)
            place = np.flatnonzero(counts[rows])
            if len(place):
                scored, columns_ = self.task.tensor(rows[place]), self.task.tensor(columns)
                best[scored], kth = _kth_best(tile[self.task.tensor(place)], relevant[scored])
                best_column[scored] = columns_[kth]
        row, column, value = (torch.cat(parts) for parts in zip(*found, strict=True))
        self.pairs, self.pair_starts = self._by_tile(row, column)
        self.positives = self._sorted_positives(row, column, value, counts)
        self._set_bounds(best, best_column, counts)

    def _whole_classes(self) -> Iterator[tuple[Array, Array]]:
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

    def _class_tile(self, rows: Array, columns: Array) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The tile of these rows and columns, -inf to a query itself, and its pairs of a class: row, column, value."""
        task = self.task
        row_index, column_index = task.tensor(rows), task.tensor(columns)
        left, right = self.row_unit[row_index], task.gallery_unit[column_index]
        tile = task.product(_filled(left, self.height), _filled(right, self.width), self.tile)
        tile = tile[: len(rows), : len(columns)]
        row_images, column_images = self.rows[rows], task.gallery[columns]
        same = task.tensor(task.codes[row_images])[:, None] == task.tensor(task.codes[column_images])
        tile[task.tensor(row_images)[:, None] == task.tensor(column_images)] = -torch.inf
        row, column = same.nonzero(as_tuple=True)
        return tile, (row_index[row], column_index[column], tile[row, column])

    def _by_tile(self, row: Tensor, column: Tensor) -> tuple[Tensor, list[int]]:
        """Where in its tile each pair of one class lies, tile after tile, and where each tile's pairs begin."""
        number = row // self.height * self.grid[1] + column // self.width
        number, order = number.sort()
        place = (row % self.height * self.width + column % self.width)[order]
        numbers = torch.arange(self.grid[0] * self.grid[1] + 1, device=number.device)
        return place, torch.searchsorted(number, numbers).tolist()

    def _sorted_positives(self, row: Tensor, column: Tensor, value: Tensor, counts: Array) -> _Positives:
        positive = value > -torch.inf
        row, column, value = row[positive], column[positive], value[positive]
        # Stable sorts, the least important key first; columns rise within a row already.
        order = value.argsort(descending=True, stable=True)
        order = order[row[order].argsort(stable=True)]
        starts = self.task.tensor(np.concatenate([[0], np.cumsum(counts)]))
        return _Positives(value[order], column[order], row[order], starts, int(counts.max()))

    def _set_bounds(self, best: Tensor, best_column: Tensor, counts: Array) -> None:
        """Let each query count what is ahead of its last positive that may be among the R best, or of the nearest."""
        found = self.positives
        self.behind = _is_before(best[found.queries], best_column[found.queries], found.values, found.columns)
        reached = torch.zeros_like(best_column).index_add_(0, found.queries, (~self.behind).long())
        scored = self.task.tensor(np.flatnonzero(counts))
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

    def _second_pass(self, row: int, column: int) -> None:
        height, width, task = self.height, self.width, self.task
        left = self.row_unit[row * height : (row + 1) * height]
        right = task.gallery_unit[column * width : (column + 1) * width]
        tile = task.product(_filled(left, height), _filled(right, width), self.tile)
        # Images of one class are not counted: a positive's place among the positives is known.
        number = row * self.grid[1] + column
        tile.view(-1)[self.pairs[self.pair_starts[number] : self.pair_starts[number + 1]]] = -torch.inf
        tile[:, len(right) :] = -torch.inf
        self._compare(tile, slice(row * height, (row + 1) * height), column * width, by_rows=True)
        if self.symmetric and row != column:
            self._compare(tile, slice(column * width, (column + 1) * width), row * height, by_rows=False)

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

    def _figures(self, counts: Array) -> tuple[Array, Array, Array]:
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


def _filled(vectors: Tensor, size: int) -> Tensor:
    """The vectors with zeros below up to a size; as they are if they have it."""
    return vectors if len(vectors) == size else pad(vectors, (0, 0, 0, size - len(vectors)))


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
        room = k[tied, None] - (rows > value[tied]).sum(dim=1, keepdim=True)
        column[tied] = (equal.cumsum(dim=1, dtype=torch.int32) < room).sum(dim=1, keepdim=True)
    return value.squeeze(1), column.squeeze(1)


def _count(mask: Tensor, dim: int) -> Tensor:
    """mask.sum(dim), many times faster: eight booleans are summed as the bytes of one integer, none beyond 128."""
    parts = [part.sum(dim).view(torch.uint8) for part in torch.split(mask.view(torch.int64), 128, dim)]
    sums = torch.stack(parts).sum(dim=0)
    return sums if dim == 0 else sums.view(-1, 8).sum(dim=1)


# Large classes: the R nearest of every query, from blocks of whole rows.


class _Rows:
    """Similarities of queries to the whole gallery."""

    def __init__(self, task: Retrieval) -> None:
        self.task = task
        self.gallery_unit = _filled(task.gallery_unit, max(_SMALLEST, task.num_gallery))
        # Whole chunks of columns, so that `_best` can look at the maximum of each; those beyond the gallery are -inf.
        self.width = -(-task.num_gallery // _CHUNK) * _CHUNK
        self._buffer = task.unit.new_empty(0)

    @property
    def row_bytes(self) -> int:
        """Memory for a row of similarities, a copy of it and the comparisons that count what lies before a positive."""
        return self.width * (3 * self._buffer.element_size() + 4)

    def similarities(self, images: Array) -> Tensor:
        """(b, width) cosine similarities to the gallery; -inf to the query itself and beyond the gallery.

        The next call overwrites them: memory is claimed once for all blocks.
        """
        task, height = self.task, max(_SMALLEST, len(images))
        if len(self._buffer) < height * self.width:
            self._buffer = task.unit.new_empty(height * self.width)
        whole = self._buffer[: height * self.width].view(height, self.width)
        left = _filled(task.unit[task.tensor(images)], height)
        task.product(left, self.gallery_unit, whole[:, : len(self.gallery_unit)])
        block = whole[: len(images)]
        block[:, task.num_gallery :] = -torch.inf
        rows = np.flatnonzero(task.column[images] >= 0)
        block[task.tensor(rows), task.tensor(task.column[images[rows]])] = -torch.inf
        return block


def _score_by_lists(
    task: Retrieval, queries: Array, positives: Array, memory_limit: int, progress: bool
) -> QueryScores:
    """Score those with equally many positives together: a block's lists are of one length."""
    device, rows = task.unit.device, _Rows(task)
    order = queries[np.argsort(-positives[queries], kind="stable")]
    classes = _ClassColumns(task.codes[task.gallery], device)
    first_positive = torch.empty(len(order), dtype=torch.int64, device=device)
    precisions = torch.empty(2, len(order), device=device)
    for block in _shown(_blocks(positives[order], rows.row_bytes, memory_limit), "Comparing", progress):
        images = order[block]
        similarity = rows.similarities(images)
        codes, relevant = (task.tensor(array[images]) for array in (task.codes, positives))
        values, columns = _best(similarity, int(positives[images[0]]))
        # A query whose list is as long as the gallery ends it on itself or on a column beyond the gallery: no hits.
        found = classes.codes[columns.clamp(max=task.num_gallery - 1)]
        hits = (found == codes[:, None]) & (values > -torch.inf)
        first_positive[block] = _first_positive(similarity, hits, codes, classes)
        precisions[:, block] = torch.stack(_precisions(hits, relevant))
    back = np.argsort(order)
    average_precision, r_precision = precisions.double().cpu().numpy()[:, back]
    return QueryScores(order[back], first_positive.cpu().numpy()[back], average_precision, r_precision)


class _ClassColumns:
    """Which columns of the gallery belong to a class, in rising order."""

    def __init__(self, gallery_codes: Array, device: torch.device) -> None:
        counts = np.bincount(gallery_codes)
        self.codes = torch.from_numpy(gallery_codes).to(device)
        self._columns = torch.from_numpy(np.argsort(gallery_codes, kind="stable")).to(device)
        self._counts = torch.from_numpy(counts).to(device)
        self._starts = torch.from_numpy(np.cumsum(counts) - counts).to(device)

    def of(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """For each class its columns, filled up to the largest class, and which of them are its own."""
        counts = self._counts[codes][:, None]
        offset = torch.arange(int(counts.max()), device=codes.device)
        place = (self._starts[codes][:, None] + offset).clamp(max=len(self._columns) - 1)
        return self._columns[place], offset < counts


def _first_positive(similarity: Tensor, hits: Tensor, codes: Tensor, classes: _ClassColumns) -> Tensor:
    """How many gallery images come before the nearest positive: read from the list, counted where it is not in it."""
    found, ahead = hits.max(dim=1)
    missing = torch.nonzero(~found).squeeze(1)
    if len(missing):
        ahead[missing] = _count_ahead(similarity[missing], *classes.of(codes[missing]))
    return ahead


def _count_ahead(similarity: Tensor, columns: Tensor, own: Tensor) -> Tensor:
    """Columns that are more similar than the best of the given ones, or as similar and before it in the gallery."""
    best, place = similarity.gather(1, columns).masked_fill_(~own, -torch.inf).max(dim=1, keepdim=True)
    before = torch.arange(similarity.shape[1], device=columns.device) < columns.gather(1, place)
    return torch.where(before, similarity >= best, similarity > best).sum(dim=1)


def _precisions(hits: Tensor, relevant: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision at R and R-precision of lists (b, k) of hits and misses; R is `relevant`, (b,)."""
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    hits = hits & (rank <= relevant[:, None])
    precision = hits.cumsum(dim=1).to(torch.float32) / rank
    return (precision * hits).sum(dim=1) / relevant, hits.sum(dim=1) / relevant


def _best(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, exactly as a stable descending sort would give them."""
    count = min(k + 1, similarity.shape[1])
    values, columns = _largest(similarity, count)
    straddling = (values[:, k - 1] == values[:, -1]) & (values[:, -1] > -torch.inf) & (count > k)
    # A tie that goes on beyond the list: of the equals, the first in the gallery belong in it.
    tied = straddling.nonzero().squeeze(1)
    columns = columns[:, :k]
    if len(tied):
        columns[tied] = _first_of_equals(similarity[tied], values[tied, k - 1 : k], k)
    # Ties inside the list: bring the columns into their order, then sort by value without disturbing it.
    columns = columns.sort(dim=1).values
    values, order = similarity.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _first_of_equals(similarity: Tensor, last: Tensor, k: int) -> Tensor:
    """The columns, rising, of the k largest of each row, whose smallest value is `last`; the first of equals of it."""
    larger, equal = similarity > last, similarity == last
    room = k - larger.sum(dim=1, keepdim=True)
    chosen = larger | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
    return chosen.nonzero()[:, 1].view(len(similarity), k)


def _largest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk, several times faster for small k: a row's k largest lie in its k chunks of largest maximum."""
    chunks = similarity.view(len(similarity), -1, _CHUNK)
    if 4 * k > chunks.shape[1]:
        return similarity.topk(k, dim=1)
    best = chunks.amax(dim=2).topk(k, dim=1, sorted=False).indices
    candidates = chunks.gather(1, best[:, :, None].expand(-1, -1, _CHUNK)).flatten(1)
    values, place = candidates.topk(k, dim=1)
    return values, best.gather(1, place // _CHUNK) * _CHUNK + place % _CHUNK


def _blocks(lengths: Array, row_bytes: int, memory_limit: int) -> list[slice]:
    """Slices of the queries, whose lists have these falling lengths, that fit in the memory or are one row."""
    blocks, start = [], 0
    while start < len(lengths):
        rows = max(1, memory_limit // (row_bytes + int(lengths[start]) * _LIST_BYTES))
        blocks.append(slice(start, min(start + rows, len(lengths))))
        start += rows
    return blocks


def _shown(blocks: list[Block], description: str, progress: bool) -> Iterable[Block]:
    if not progress:
        return blocks
    from proxygml.console import track  # noqa: PLC0415

    return track(blocks, description)
