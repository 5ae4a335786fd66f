"""The features of the images that are audited: in memory or in a file, read a block at a time, of length 1."""

from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO

import numpy as np

from proxygml.arrays import Rows, Vectors
from proxygml.data.vectors.checks import ROWS_AT_A_TIME, Floats

LARGEST_IN_MEMORY = 2**29
"""Bytes; larger arrays go to a temporary file."""


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """n vectors of F numbers.

    Attributes:
        plain: float16 or float32 (N, F), an array or a file that is mapped into memory.
        rows: int64 (n,), which of them the images have.
    """

    plain: Floats
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> int:
        """F."""
        return int(self.plain.shape[1])

    def take(self, places: Rows) -> Vectors:
        """The vectors of these images, float32 (m, F), scaled to length 1."""
        vectors = np.asarray(self.plain[self.rows[places]], np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        return unit


def parts_of(places: Rows, height: int = ROWS_AT_A_TIME) -> Iterator[Rows]:
    """The places in their order, `height` at a time."""
    for start in range(0, len(places), height):
        yield places[start : start + height]


def scratch_array(rows: int, size: int) -> tuple[Vectors, IO[bytes] | None]:
    """An array float32 (rows, size) to fill: in memory, or in a temporary file where it is large; close that file."""
    if 4 * rows * size <= LARGEST_IN_MEMORY:
        return np.empty((rows, size), np.float32), None
    file = TemporaryFile()  # noqa: SIM115  (the caller closes it)
    return np.memmap(file, np.float32, "w+", shape=(rows, size)), file
