"""The vectors of a gallery: how they are checked and normalised, and read from a file and from memory alike."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from proxygml.arrays import Rows, Vectors
from proxygml.errors import GalleryError


def unit_vectors(embeddings: Tensor | npt.NDArray[np.floating]) -> Vectors:
    """Embeddings (n, D) as float32 of length 1; those that have that length already are not changed by a bit.

    Raises:
        GalleryError: not floats (n, D); or a row that is not finite or all zeros.
    """
    given = embeddings.detach().cpu().float().numpy() if isinstance(embeddings, Tensor) else np.asarray(embeddings)
    if given.ndim != 2 or given.shape[1] == 0 or given.dtype.kind != "f":
        raise GalleryError(f"embeddings are {given.shape}, {given.dtype}: expected floats (n, D)")
    vectors = np.ascontiguousarray(given, np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    if (np.abs(lengths - 1) < 1e-5).all():
        return vectors
    if not np.isfinite(lengths).all():
        row = int(np.isfinite(lengths).argmin())
        raise GalleryError(f"embeddings[{row}] holds a NaN, an infinity or too large a number: look at its image")
    if (lengths == 0).any():
        raise GalleryError(f"embeddings[{int(lengths.argmin())}] is all zeros, which has no direction: leave it out")
    unit: Vectors = np.where(np.abs(lengths - 1) < 1e-5, vectors.T, vectors.T / lengths).T.astype(np.float32, order="C")
    return unit


def check_same_size(vectors: Vectors, dimension: int) -> None:
    """Raise GalleryError where a block's vectors (m, D) are of another size than those of the blocks before."""
    if vectors.shape[1] != dimension:
        raise GalleryError(f"a block has vectors of size {vectors.shape[1]}, but those before have {dimension}")


class VectorRows:
    """Vectors of a file, mapped into memory and read when needed, followed by those that were added since.

    Args:
        stored: float32 (n, D).
    """

    def __init__(self, stored: Vectors) -> None:
        self._stored = stored
        self._fresh = np.empty((0, stored.shape[1]), np.float32)  # rows from `_added` on are spare
        self._added = 0

    def __len__(self) -> int:
        return len(self._stored) + self._added

    @property
    def size(self) -> int:
        """D."""
        return int(self._stored.shape[1])

    def append(self, vectors: Vectors) -> None:
        """Add vectors (m, D), in memory."""
        last = self._added + len(vectors)
        if last > len(self._fresh):
            grown = np.empty((max(last, len(self._fresh) * 3 // 2), self.size), np.float32)
            grown[: self._added] = self._fresh[: self._added]
            self._fresh = grown
        self._fresh[self._added : last] = vectors
        self._added = last

    def part(self, start: int, end: int) -> Vectors:
        """The vectors of rows `start` to `end` - 1; a view where all are in the file, or all in memory."""
        border = len(self._stored)
        if end <= border:
            return self._stored[start:end]
        fresh = self._fresh[max(start - border, 0) : min(end - border, self._added)]
        return fresh if start >= border else np.concatenate([self._stored[start:], fresh])

    def take(self, rows: Rows) -> Vectors:
        """The vectors of these rows, a copy."""
        border = len(self._stored)
        if not self._added:
            return np.asarray(self._stored[rows])
        taken = np.empty((len(rows), self.size), np.float32)
        taken[rows < border] = self._stored[rows[rows < border]]
        taken[rows >= border] = self._fresh[rows[rows >= border] - border]
        return taken
