"""Ranks for large classes over several processes: the R nearest of every query, from columns passed around a ring.

Each process keeps a list for each of its queries and merges what it finds among the columns that pass. The list gives
MAP@R and R-precision. A second time around counts what is ahead of the nearest positive, where it is in no list, or of
all positives, where average precision over the whole ranking is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proxygml.evaluation.lists import CHUNK, LIST_BYTES, largest_entries, list_precisions, row_blocks
from proxygml.evaluation.ranks import Positives, Ranks, is_before, starts_of
from proxygml.evaluation.retrieval import SMALLEST_PRODUCT, Array, QueryScores, Retrieval, padded_rows
from proxygml.evaluation.ring import share_bounds

_PIECE = 4096  # columns that are compared at a time, at most
_ENTRY_BYTES = 32  # taken by one similarity: its value, and what is derived from it
_PAIR_BYTES = 80  # taken by a query and one of its positives: value, column, count, and their sorted copies


def score_by_ring_lists(
    task: Retrieval, queries: Array, memory_limit: int, progress: bool, whole_ranking: bool
) -> QueryScores:
    """The scores of the queries, (Q,) int64 images that have a positive each; see lists.py for one process."""
    ring, positives = task.ring, task.rules.num_matches
    columns = _Columns(task)
    own, unit = _own_queries(task, queries)
    order = np.argsort(-positives[own], kind="stable")
    pair_bytes = LIST_BYTES + (_PAIR_BYTES if whole_ranking else 0)
    lengths = positives[own][order] * pair_bytes // LIST_BYTES + 1
    found = _Found.empty(len(own), whole_ranking)
    for part in _rounds(columns, lengths, memory_limit, progress):
        places = order[part]
        block = _Block(columns, own[places], unit[task.tensor(places)], whole_ranking)
        block.find()
        block.count()
        block.enter(found, places)
    full = found.full_average_precision
    return QueryScores(
        queries,
        ring.share(found.first_positive),
        ring.share(found.average_precision),
        ring.share(found.r_precision),
        None if full is None else ring.share(full),
    )


def nearest_by_ring(task: Retrieval, images: Array, k: int, memory_limit: int, progress: bool) -> tuple[Tensor, Tensor]:
    """Similarities and columns (q, k) of the k gallery images nearest to each of the images (q,), on all processes."""
    queries, back = np.unique(images, return_inverse=True)
    columns = _Columns(task)
    own, unit = _own_queries(task, queries)
    values, found = np.zeros((len(own), k), unit.cpu().numpy().dtype), np.zeros((len(own), k), np.int64)
    for part in _rounds(columns, np.full(len(own), k), memory_limit, progress):
        block = _Block(columns, own[part], unit[part], False, k)
        block.find()
        values[part], found[part] = block.values.cpu().numpy(), block.list.cpu().numpy()
    return task.tensor(task.ring.share(values)[back]), task.tensor(task.ring.share(found)[back])


def _own_queries(task: Retrieval, queries: Array) -> tuple[Array, Tensor]:
    """This process's share of the queries (Q,), rising, and their vectors."""
    bounds = share_bounds(len(queries), 1, task.ring.size)
    return queries[bounds[task.ring.rank] : bounds[task.ring.rank + 1]], task.unit_of(queries, bounds)


def _rounds(columns: _Columns, lengths: Array, memory_limit: int, progress: bool) -> Iterator[slice]:
    """Parts of this process's queries, whose lists have these falling lengths: as many on every process.

    A process without queries left gets empty parts: it passes the columns on to the others.
    """
    ring = columns.task.ring
    blocks = row_blocks(lengths, columns.width * _ENTRY_BYTES, memory_limit)
    rounds = max(ring.gather(len(blocks)))
    for number in range(rounds):
        if progress and ring.rank == 0:
            _say(number, rounds)
        yield blocks[number] if number < len(blocks) else slice(0)


def _say(number: int, rounds: int) -> None:
    from proxygml.console import note  # noqa: PLC0415  (with Rich; only needed here)

    note(f"comparing: {number + 1} of {rounds}")


@dataclass
class _Found:
    """What is known of each of a process's queries."""

    first_positive: Array
    average_precision: Array
    r_precision: Array
    full_average_precision: Array | None

    @classmethod
    def empty(cls, count: int, whole_ranking: bool) -> _Found:
        zeros = np.zeros(count)
        return cls(np.zeros(count, np.int64), zeros, zeros.copy(), zeros.copy() if whole_ranking else None)


class _Columns:
    """The gallery, of which each process holds a share, in pieces that pass by."""

    def __init__(self, task: Retrieval) -> None:
        self.task = task
        self.bounds = share_bounds(task.num_gallery, 1, task.ring.size)
        self.unit = task.unit_of(task.gallery, self.bounds)
        widest = int(np.diff(self.bounds).max())
        self.width = min(_PIECE, -(-widest // CHUNK) * CHUNK)
        self.codes = task.tensor(task.codes[task.gallery])

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """First column and vectors of every piece, at most `width` of them, from all processes."""
        ring = self.task.ring
        for owner, (unit,) in ring.pass_around([self.unit], self._empty, ring.size):
            for start in range(0, len(unit), self.width):
                yield int(self.bounds[owner]) + start, unit[start : start + self.width]

    def _empty(self, owner: int) -> list[Tensor]:
        count = int(self.bounds[owner + 1] - self.bounds[owner])
        return [self.unit.new_empty(count, self.unit.shape[1])]


class _Block:
    """Some queries of this process, what was found of them so far, and how to go on."""

    def __init__(
        self, columns: _Columns, images: Array, unit: Tensor, whole_ranking: bool, k: int | None = None
    ) -> None:
        self.columns, self.images, self.whole_ranking = columns, images, whole_ranking
        self.task, device = columns.task, unit.device
        self.unit = padded_rows(unit, max(SMALLEST_PRODUCT, len(images)))
        self.codes = self.task.tensor(self.task.codes[images])
        self.relevant = self.task.tensor(self.task.rules.num_matches[images])
        longest = int(self.relevant.max()) if len(images) else 0
        self.k = longest if k is None else k
        self.values = unit.new_full((len(images), self.k), -torch.inf)
        self.list = torch.full((len(images), self.k), self.task.num_gallery, dtype=torch.int64, device=device)
        self.best = unit.new_full((len(images),), -torch.inf)
        self.best_column = torch.zeros(len(images), dtype=torch.int64, device=device)
        self.pairs = [(self.best_column[:0], self.best_column[:0], self.best[:0])]
        self._buffer = unit.new_empty(len(self.unit), columns.width)

    def find(self) -> None:
        """Fill the lists and find the positives, in one time around."""
        for first, similarity in self._similarities(wanted=len(self.images) > 0):
            values, columns = largest_entries(similarity, min(self.k, similarity.shape[1]))
            values, columns = torch.cat([self.values, values], dim=1), torch.cat([self.list, columns + first], dim=1)
            columns, order = columns.sort(dim=1, stable=True)
            values, by_value = values.gather(1, order).sort(dim=1, descending=True, stable=True)
            self.values, self.list = values[:, : self.k], columns.gather(1, by_value)[:, : self.k]
            self._keep_positives(first, similarity, self._own(first, similarity))

    def _keep_positives(self, first: int, similarity: Tensor, own: Tensor) -> None:
        if self.whole_ranking:
            row, column = (own & (similarity > -torch.inf)).nonzero(as_tuple=True)
            self.pairs.append((row, column + first, similarity[row, column]))
        best, column = similarity.masked_fill(~own, -torch.inf).max(dim=1)
        better = is_before(best, column + first, self.best, self.best_column)
        self.best = torch.where(better, best, self.best)
        self.best_column = torch.where(better, column + first, self.best_column)

    def count(self) -> None:
        """Rank the positives that the lists do not show, in one more time around where any process needs it."""
        found = self.columns.codes[self.list.clamp(max=self.task.num_gallery - 1)]
        self.hits = (found == self.codes[:, None]) & (self.values > -torch.inf)
        self.sought, self.ranks = self._ranks()
        if max(self.task.ring.gather(len(self.sought))):
            for first, similarity in self._similarities(wanted=len(self.sought) > 0):
                rows = similarity[self.sought].masked_fill_(self._own(first, similarity)[self.sought], -torch.inf)
                self.ranks.compare(rows, slice(0, len(rows)), first, by_rows=True)

    def _ranks(self) -> tuple[Tensor, Ranks]:
        """Rows whose positives are to be ranked, and their Ranks."""
        if self.whole_ranking:
            rows = torch.arange(len(self.images), device=self.unit.device)
            row, column, value = (torch.cat(parts) for parts in zip(*self.pairs, strict=True))
            order = column.argsort(stable=True)
            order = order[value[order].argsort(descending=True, stable=True)]
            order = order[row[order].argsort(stable=True)]
            positives = Positives(value[order], column[order], starts_of(self.relevant), self.k)
        else:
            rows = (~self.hits.any(dim=1)).nonzero().squeeze(1)
            starts = torch.arange(len(rows) + 1, device=rows.device)
            positives = Positives(self.best[rows], self.best_column[rows], starts, 1)
        last = positives.starts[1:] - 1
        listed = positives.starts.diff() > 1
        return rows, Ranks(positives, positives.values[last], positives.columns[last], listed)

    def enter(self, found: _Found, places: Array) -> None:
        """Write the block's scores to these places of all."""
        if not len(places):
            return
        average_precision, r_precision = list_precisions(self.hits, self.relevant)
        found.average_precision[places] = average_precision.double().cpu().numpy()
        found.r_precision[places] = r_precision.double().cpu().numpy()
        first_positive = self.hits.int().argmax(dim=1).cpu().numpy()
        sought, counts = self.sought.cpu().numpy(), self.ranks.positives.starts.diff().cpu().numpy()
        rows, place, rank = self.ranks.found(counts)
        first_positive[sought[rows[place == 0]]] = rank[place == 0]
        found.first_positive[places] = first_positive
        if found.full_average_precision is not None:
            sums = np.bincount(rows, weights=(place + 1) / (rank + 1), minlength=len(places))
            found.full_average_precision[places] = sums / counts

    def _own(self, first: int, similarity: Tensor) -> Tensor:
        """Which columns are of the query's class."""
        own = torch.zeros_like(similarity, dtype=torch.bool)
        codes = self.columns.codes[first : first + similarity.shape[1]]
        own[:, : len(codes)] = codes == self.codes[:, None]
        return own

    def _similarities(self, wanted: bool) -> Iterator[tuple[int, Tensor]]:
        """First column and similarities, (b, width), of each piece; -inf to what may not answer and beyond the piece.

        The next ones overwrite them. Where they are not wanted here, the columns are only passed on to the others.
        """
        task = self.task
        for first, unit in self.columns.pieces():
            if not wanted:
                continue
            task.product(self.unit, padded_rows(unit, self.columns.width), self._buffer)
            similarity = self._buffer[: len(self.images)]
            similarity[:, len(unit) :] = -torch.inf
            task.exclude(similarity[:, : len(unit)], self.images, task.gallery[first : first + len(unit)])
            yield first, similarity
