"""Ranks for large classes: the R nearest of every query, from blocks of whole rows of similarities."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from proxygml.evaluation.retrieval import SMALLEST_PRODUCT, Array, QueryScores, Retrieval, padded_rows, tracked
from proxygml.largest import largest

CHUNK = 128  # columns that are searched as one when the largest of a row are sought
LIST_BYTES = 96  # taken by one entry of a list of nearest images: values, columns, hits, and their sorted copies


class Rows:
    """Similarities of queries to the whole gallery."""

    def __init__(self, task: Retrieval) -> None:
        self.task = task
        self.gallery_unit = padded_rows(task.gallery_unit, max(SMALLEST_PRODUCT, task.num_gallery))
        # Whole chunks of columns, so that `largest_entries` can look at the maximum of each. Beyond the gallery: -inf.
        self.width = -(-task.num_gallery // CHUNK) * CHUNK
        self._buffer = task.unit.new_empty(0)

    @property
    def row_bytes(self) -> int:
        """Memory for a row of similarities, a copy of it and the comparisons that exclude and count images."""
        return self.width * (3 * self._buffer.element_size() + 5)

    def similarities(self, images: Array) -> Tensor:
        """(b, width) cosine similarities to the gallery; -inf to images that may not answer and beyond the gallery.

        The next call overwrites them: all blocks share the same memory.
        """
        task, height = self.task, max(SMALLEST_PRODUCT, len(images))
        if len(self._buffer) < height * self.width:
            self._buffer = task.unit.new_empty(height * self.width)
        whole = self._buffer[: height * self.width].view(height, self.width)
        left = padded_rows(task.unit[task.tensor(images)], height)
        task.product(left, self.gallery_unit, whole[:, : len(self.gallery_unit)])
        block = whole[: len(images)]
        block[:, task.num_gallery :] = -torch.inf
        rows = np.flatnonzero(task.column[images] >= 0)
        block[task.tensor(rows), task.tensor(task.column[images[rows]])] = -torch.inf
        for group in task.rules.groups:
            same = task.tensor(group[images])[:, None] == task.tensor(group[task.gallery])
            block[:, : task.num_gallery].masked_fill_(same, -torch.inf)
        return block


def score_by_lists(
    task: Retrieval, queries: Array, positives: Array, memory_limit: int, progress: bool, whole_ranking: bool = False
) -> QueryScores:
    """Score those with equally many positives together: a block's lists are of one length.

    With `whole_ranking`, average precision over all ranks is computed too.
    """
    device, rows = task.unit.device, Rows(task)
    order = queries[np.argsort(-positives[queries], kind="stable")]
    classes = _ClassColumns(task.codes[task.gallery], device)
    first_positive = torch.empty(len(order), dtype=torch.int64, device=device)
    precisions = torch.empty(2, len(order), device=device)
    full = torch.empty(len(order) if whole_ranking else 0, dtype=torch.float64, device=device)
    for block in tracked(row_blocks(positives[order], rows.row_bytes, memory_limit), "Comparing embeddings", progress):
        images = order[block]
        similarity = rows.similarities(images)
        codes, relevant = (task.tensor(array[images]) for array in (task.codes, positives))
        values, columns = largest_entries(similarity, int(positives[images[0]]))
        # If a query's list is as long as the gallery, it ends with the query itself or a column beyond the gallery: no
        # hits.
        found = classes.codes[columns.clamp(max=task.num_gallery - 1)]
        hits = (found == codes[:, None]) & (values > -torch.inf)
        first_positive[block] = _first_positive(similarity, hits, codes, classes)
        precisions[:, block] = torch.stack(list_precisions(hits, relevant))
        if whole_ranking:
            full[block] = _full_average_precision(similarity, codes, classes)
    back = np.argsort(order)
    average_precision, r_precision = precisions.double().cpu().numpy()[:, back]
    full_average_precision = full.cpu().numpy()[back] if whole_ranking else None
    first = first_positive.cpu().numpy()[back]
    return QueryScores(order[back], first, average_precision, r_precision, full_average_precision)


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


def list_precisions(hits: Tensor, relevant: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision at R and R-precision of lists (b, k) of hits and misses; R is `relevant`, (b,)."""
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    hits = hits & (rank <= relevant[:, None])
    precision = hits.cumsum(dim=1).to(torch.float32) / rank
    return (precision * hits).sum(dim=1) / relevant, hits.sum(dim=1) / relevant


def _full_average_precision(similarity: Tensor, codes: Tensor, classes: _ClassColumns) -> Tensor:
    """Average precision over the whole ranking, (b,) float64: every row is sorted, a few at a time."""
    found = []
    share = max(1, len(similarity) // 4)
    for rows, own in zip(torch.split(similarity, share), torch.split(codes, share), strict=True):
        values, columns = rows.sort(dim=1, descending=True, stable=True)
        hits = classes.codes[columns.clamp_(max=len(classes.codes) - 1)] == own[:, None]
        row, place = (hits & (values > -torch.inf)).nonzero(as_tuple=True)
        counts = row.bincount(minlength=len(rows))
        number = torch.arange(1, len(row) + 1, device=row.device) - (counts.cumsum(0) - counts)[row]
        sums = torch.zeros(len(rows), dtype=torch.float64, device=row.device)
        found.append(sums.index_add_(0, row, number.double() / (place + 1)) / counts)
    return torch.cat(found)


def largest_entries(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, exactly as a stable descending sort would give them."""
    count = min(k + 1, similarity.shape[1])
    values, columns = _largest(similarity, count)
    straddling = (values[:, k - 1] == values[:, -1]) & (values[:, -1] > -torch.inf) & (count > k)
    # A tie across the end of the list: of equal entries, the first ones of the gallery belong in it.
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
    missing = k - larger.sum(dim=1, keepdim=True)
    chosen = larger | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= missing))
    return chosen.nonzero()[:, 1].view(len(similarity), k)


def _largest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk, several times faster for small k: a row's k largest lie in its k chunks of largest maximum."""
    chunks = similarity.view(len(similarity), -1, CHUNK)
    if 4 * k > chunks.shape[1]:
        values, columns = largest(similarity, k)
        values, order = values.sort(dim=1, descending=True)
        return values, columns.gather(1, order)
    best = chunks.amax(dim=2).topk(k, dim=1, sorted=False).indices
    candidates = chunks.gather(1, best[:, :, None].expand(-1, -1, CHUNK)).flatten(1)
    values, place = candidates.topk(k, dim=1)
    return values, best.gather(1, place // CHUNK) * CHUNK + place % CHUNK


def row_blocks(lengths: Array, row_bytes: int, memory_limit: int) -> list[slice]:
    """Slices of the queries, whose lists have these falling lengths, that fit in the memory or are one row."""
    blocks, start = [], 0
    while start < len(lengths):
        rows = max(1, memory_limit // (row_bytes + int(lengths[start]) * LIST_BYTES))
        blocks.append(slice(start, min(start + rows, len(lengths))))
        start += rows
    return blocks
