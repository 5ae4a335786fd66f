"""What is ahead of each row's positives, counted tile after tile; the rows may be a share of all, and may travel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proxygml.evaluation.retrieval import Array


@dataclass(frozen=True)
class Positives:
    """Every row with each of its positives, best first within a row; P pairs, Q rows."""

    values: Tensor  # (P,)
    columns: Tensor  # (P,) int64: of the whole gallery
    starts: Tensor  # (Q + 1,) int64: where a row's positives begin
    longest: int

    def rows(self) -> Tensor:
        """(P,) int64: the row of each pair."""
        return torch.repeat_interleave(self.starts.diff())

    def first_beaten(self, rows: Tensor, values: Tensor, columns: Tensor) -> Tensor:
        """The first positive of the row that an image comes before, by bisection; P where it comes before none."""
        low, end = self.starts[rows], self.starts[rows + 1]
        high = end
        for _ in range(self.longest.bit_length()):
            middle = (low + high) // 2
            place = middle.clamp(max=len(self.values) - 1)
            before = is_before(values, columns, self.values[place], self.columns[place])
            searching = low < high
            high = torch.where(searching & before, middle, high)
            low = torch.where(searching & ~before, middle + 1, low)
        return torch.where(low < end, low, len(self.values))


def is_before(values: Tensor, columns: Tensor, other_values: Tensor, other_columns: Tensor) -> Tensor:
    """The order of a ranking: by falling similarity, equals by their place in the gallery."""
    return (values > other_values) | ((values == other_values) & (columns < other_columns))


def starts_of(counts: Tensor) -> Tensor:
    """(Q + 1,) where each row's positives begin, of how many each row has."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


class Ranks:
    """What is ahead of each row's positives.

    Each row looks for what is ahead of its last positive that may be among the R best, or of the nearest.

    Args:
        positives: of the rows.
        bound: (padded rows,): the similarity of that last positive; infinite for rows without one.
        bound_column: (padded rows,) int64: its column.
        listed: (padded rows,) booleans: whether it is not the nearest, so that counting is not enough.
    """

    def __init__(self, positives: Positives, bound: Tensor, bound_column: Tensor, listed: Tensor) -> None:
        self.positives = positives
        self.bound, self.bound_column, self.listed = bound, bound_column, listed
        self.bound_included = bound.nextafter(bound.new_tensor(-torch.inf))
        self.ahead = torch.zeros_like(bound_column)
        self.beats = bound_column.new_zeros(len(positives.values) + 1)

    def tensors(self) -> list[Tensor]:
        """What has to travel for another process to count for these rows; see `empty_tensors`."""
        return [self.positives.values, self.positives.columns, self.bound, self.bound_column, self.listed.byte()]

    @classmethod
    def from_tensors(cls, tensors: list[Tensor], counts: Tensor) -> Ranks:
        """The inverse of `tensors`, for rows with as many positives as `counts` (Q,) says; nothing counted yet."""
        values, columns, bound, bound_column, listed = tensors
        longest = int(counts.max()) if len(counts) else 0
        return cls(Positives(values, columns, starts_of(counts), longest), bound, bound_column, listed.bool())

    def compare(self, tile: Tensor, rows: slice, first_column: int, by_rows: bool) -> None:
        """Let the rows of a tile, or its columns, search in it."""
        # Equals are ahead of the bound where they come before it in the gallery.
        included = self.bound_column[rows] >= first_column
        bound = torch.where(included, self.bound_included[rows], self.bound[rows])
        mask = tile > (bound[:, None] if by_rows else bound)
        self.ahead[rows] += _count(mask, dim=1 if by_rows else 0)
        self._take_back_equals(tile if by_rows else tile.T, rows, first_column)
        chosen = self.listed[rows]
        # Booleans are handled eight at a time, as one integer.
        words = mask.view(torch.int64)
        words &= -chosen.long()[:, None] if by_rows else chosen.to(torch.uint8).mul_(255).view(torch.int64)
        for part in torch.split(words.nonzero(), max(1, words.numel() // 8)):
            self._count_beaten(tile, mask, part, rows.start, first_column, by_rows)

    def _take_back_equals(self, similarity: Tensor, rows: slice, first_column: int) -> None:
        """Uncount what equals the bound and comes after it within the same tile."""
        place = self.bound_column[rows] - first_column
        here = (~self.listed[rows] & (place >= 0) & (place < similarity.shape[1])).nonzero().squeeze(1)
        if len(here):
            after = torch.arange(similarity.shape[1], device=here.device) > place[here, None]
            equal = similarity[here] == self.bound[rows][here, None]
            self.ahead[rows.start + here] -= (equal & after).sum(dim=1)

    def _count_beaten(
        self, tile: Tensor, mask: Tensor, words: Tensor, first_row: int, first_column: int, by_rows: bool
    ) -> None:
        """Enter what the words of the mask hold, under the first positive that it is ahead of."""
        row, word = words.unbind(dim=1)
        which, place = mask.view(len(mask), -1, 8)[row, word].nonzero(as_tuple=True)
        row, column = row[which], word[which] * 8 + place
        query, image = (row, column) if by_rows else (column, row)
        beaten = self.positives.first_beaten(query + first_row, tile[row, column], image + first_column)
        self.beats.index_add_(0, beaten, torch.ones_like(beaten))

    def found(self, counts: Array) -> tuple[Array, Array, Array]:
        """Each pair's row, its place among the row's positives, and its rank: (P,) int64 each.

        Where a row is not listed, the rank is that of its first pair only.

        Args:
            counts: (Q,) how many positives each row has.
        """
        rows, starts = (tensor.cpu().numpy() for tensor in (self.positives.rows(), self.positives.starts))
        beats = np.concatenate([[0], self.beats[:-1].cpu().numpy().cumsum()])
        place = np.arange(len(rows)) - starts[rows]
        rank = place + beats[1:] - beats[starts[rows]]
        counted = np.flatnonzero((counts > 0) & ~self.listed.cpu().numpy()[: len(counts)])
        rank[starts[counted]] = self.ahead.cpu().numpy()[counted]
        return rows, place, rank


def empty_tensors(like: Tensor, counts: Array, padded: int) -> list[Tensor]:
    """Tensors to receive those of `Ranks.tensors` into, for rows with so many positives and so many padded rows."""
    pairs, columns = int(counts.sum()), torch.empty(0, dtype=torch.int64, device=like.device)
    return [
        like.new_empty(pairs),
        columns.new_empty(pairs),
        like.new_empty(padded),
        columns.new_empty(padded),
        columns.new_empty(padded, dtype=torch.uint8),
    ]


def _count(mask: Tensor, dim: int) -> Tensor:
    """mask.sum(dim), many times faster: eight booleans are summed as the bytes of one integer, none beyond 128."""
    parts = [part.sum(dim).view(torch.uint8) for part in torch.split(mask.view(torch.int64), 128, dim)]
    sums = torch.stack(parts).sum(dim=0)
    return sums if dim == 0 else sums.view(-1, 8).sum(dim=1)
