"""A retrieval task: queries, gallery and classes, its similarity products, and what is found of each query.

metrics.py has checked the input. How ranks are found without holding the matrix is in tiles.py and lists.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

Array = np.ndarray[Any, Any]
Item = TypeVar("Item")
Precision = Literal["float32", "tf32", "bfloat16"]

_MATMUL_PRECISION = {"float32": "highest", "tf32": "high", "bfloat16": "medium"}
# The least rows and columns of a product. In smaller products, rounding depends on the position of an entry (seen in
# MKL below 12), so copies of an image would differ in similarity.
SMALLEST_PRODUCT = 16


@dataclass(frozen=True)
class QueryScores:
    """The scores of every query that has a positive, in the order of the images; Q queries."""

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
        """The array as a tensor on the device of the embeddings."""
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


def padded_rows(vectors: Tensor, size: int) -> Tensor:
    """The vectors with zeros below up to a size; as they are if they have it."""
    return vectors if len(vectors) == size else pad(vectors, (0, 0, 0, size - len(vectors)))


def tracked(blocks: Sequence[Item], description: str, progress: bool) -> Iterable[Item]:
    """The blocks, with a progress bar where one is wanted."""
    if not progress:
        return blocks
    from proxygml.console import track  # noqa: PLC0415

    return track(blocks, description)
