"""A retrieval task: queries, gallery and classes, its similarity products, and what is found of each query.

metrics.py has checked the input. How ranks are found without holding the matrix is in tiles.py and lists.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from proxygml.evaluation.ring import Ring
from proxygml.evaluation.rules import Rules

Array = np.ndarray[Any, Any]
Item = TypeVar("Item")
Precision = Literal["float32", "tf32", "bfloat16"]

_MATMUL_PRECISION = {"float32": "highest", "tf32": "high", "bfloat16": "medium"}
NOT_FOUND = np.iinfo(np.int64).max  # the rank of what no list is long enough to find
# The least rows and columns of a product. In smaller products, rounding depends on the position of an entry (seen in
# MKL below 12), so copies of an image would differ in similarity.
SMALLEST_PRODUCT = 16


@dataclass(frozen=True)
class QueryScores:
    """The scores of every query that is scored, in the order of the images; Q queries."""

    index: Array  # (Q,) int64: which image the query is
    first_positive: Array  # (Q,) int64: how many gallery images come before its nearest positive; NOT_FOUND for none
    average_precision: Array  # (Q,) float64: average precision at R, whose mean is MAP@R
    r_precision: Array  # (Q,) float64
    full_average_precision: Array | None = None  # (Q,) float64: over the whole ranking; its mean is mAP


class Retrieval:
    """Queries, gallery and classes; an image's column is its place in the gallery.

    Args:
        unit: (n, D) float32 or float64 of length 1 (or 0); with a ring of several, this process's part of them.
        rules: the class of each image, of all parts, and which images may answer for which.
        precision: of the similarities of float32 embeddings.
        ring: the processes that share the work.
        first: which image this process's part begins with.
    """

    def __init__(
        self,
        unit: Tensor,
        rules: Rules,
        precision: Precision = "float32",
        ring: Ring | None = None,
        first: int = 0,
    ) -> None:
        # Rounded here, so that bfloat16 means the same on devices whose products know only tf32.
        self.unit = unit.bfloat16().float() if precision == "bfloat16" and unit.dtype == torch.float32 else unit
        self.rules = rules
        self.codes = rules.codes
        self.gallery = np.flatnonzero(rules.is_gallery)
        self.num_gallery = len(self.gallery)
        self.column = np.where(rules.is_gallery, np.cumsum(rules.is_gallery) - 1, -1)
        self.precision = precision
        self.ring = ring or Ring(None, unit.device)
        self.first = first

    @cached_property
    def gallery_unit(self) -> Tensor:
        """(g, D): the gallery; of one process only."""
        return self.unit_of(self.gallery, np.array([0, self.num_gallery]))

    def unit_of(self, images: Array, bounds: Array) -> Tensor:
        """This process's share of the vectors of these images; the other processes call this at the same time.

        Args:
            images: (m,) int64, rising, the same on all processes.
            bounds: (size + 1,) int64: where each process's share of the images begins.
        """
        begin, end = np.searchsorted(images, [self.first, self.first + len(self.unit)])
        mine = images[begin:end] - self.first
        rows = self.unit if len(mine) == len(self.unit) else self.unit[self.tensor(mine)]
        return self.ring.exchange(rows, np.diff(bounds.clip(begin, end)).tolist())

    def tensor(self, array: Array) -> Tensor:
        """The array as a tensor on the device of the embeddings."""
        return torch.from_numpy(array).to(self.unit.device)

    def product(self, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        """Left @ right.T in this retrieval's precision, whatever torch is set to."""
        with _matmul_precision(self.precision), torch.autocast(left.device.type, enabled=False):
            return torch.mm(left, right.T, out=out)

    def exclude(self, similarity: Tensor, rows: Array, columns: Array) -> None:
        """Set -inf, in place, where an image of `columns` may not answer for one of `rows`, both int64 of images."""
        for left, right in [(rows, columns), *((group[rows], group[columns]) for group in self.rules.groups)]:
            similarity.masked_fill_(self.tensor(left)[:, None] == self.tensor(right), -torch.inf)


@contextmanager
def _matmul_precision(precision: Precision) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_MATMUL_PRECISION[precision])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def padded_rows(vectors: Tensor, size: int) -> Tensor:
    """The vectors with zeros below up to a size; as they are if they have it."""
    return vectors if len(vectors) == size else pad(vectors, (0, 0, 0, size - len(vectors)))


def tracked(blocks: Sequence[Item], description: str, progress: bool) -> Iterable[Item]:
    """The blocks, with a progress bar where one is wanted."""
    if not progress:
        return blocks
    from proxygml.console import track  # noqa: PLC0415

    return track(blocks, description)
