"""A copy of a gallery's vectors in half as many bytes, for servers: a search of one query passes over it first.

An exact search takes as long as reading the vectors takes. The copy is of bfloat16, which many processors multiply as
they are. It only tells which items may be among the nearest; their exact vectors then decide, so that the answer is the
same to the bit.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from threadpoolctl import threadpool_limits

from proxygml.arrays import Vectors
from proxygml.gallery.vectors import VectorRows

SHARE = 8
"""The copy takes at most one part in so many of the memory that this process may have."""

_LEAST = 2**25  # bytes of vectors: the pass over fewer takes about a millisecond
_SAMPLE = 32_768  # vectors, to see whether the copy is faster here
_BLOCK = 16_384


class RoundedVectors:
    """The first vectors of a gallery, rounded.

    Args:
        vectors: as they are.
        rows: how many of them.

    Attributes:
        error: how far a similarity may be off.
    """

    def __init__(self, vectors: VectorRows, rows: int) -> None:
        held = np.empty((rows, vectors.size), np.uint16)  # NumPy asks for large pages, PyTorch does not
        self._rounded = torch.from_numpy(held).view(torch.bfloat16)
        for start in range(0, rows, _BLOCK):
            end = min(start + _BLOCK, rows)
            self._rounded[start:end] = torch.from_numpy(vectors.part(start, end))
        # Two vectors of length 1 and the result are rounded to 8 binary digits, each by at most 2^-8 of a number; D
        # numbers are summed in float32. 2^-12 covers products of these errors, and lengths that are off by 1e-5.
        self.error = 3 * 2.0**-8 + 2.0**-12 + vectors.size * 2.0**-24

    def __len__(self) -> int:
        return len(self._rounded)

    def products(self, query: Vectors, rows: int | None = None) -> Vectors:
        """The inner products, float32 (n,); or only those of the first rows.

        Args:
            query: float32 (D,), of length 1.
            rows: how many.
        """
        found: Vectors = (self._rounded[:rows] @ torch.from_numpy(query).bfloat16()).float().numpy()
        return found


def rounded_vectors(vectors: VectorRows, rows: int) -> RoundedVectors | None:
    """A copy of a gallery's first vectors, where there is memory for it and it is faster than they are; else None."""
    size = 4 * rows * vectors.size
    if not is_supported() or size < _LEAST or not has_room(size // 2):
        return None
    made = RoundedVectors(vectors, rows)
    return made if _is_right_and_faster(made, vectors) else None


def is_supported() -> bool:
    """Whether oneDNN computes products of bfloat16 here, which it sums in float32."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # PyTorch may be built without oneDNN
    return supported is not None and bool(supported())


def has_room(size: int) -> bool:
    """Whether so many bytes are a small part of the memory, and leave half of what is free now to others."""
    return SHARE * size <= memory_limit() and 2 * size <= psutil.virtual_memory().available


def memory_limit() -> int:
    """The bytes of memory that this process may have: the machine's, or its container's."""
    most = int(psutil.virtual_memory().total)
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(file).read_text(encoding="utf-8").strip() if Path(file).is_file() else ""
        most = min(most, int(text)) if text.isdigit() else most
    return most


def _is_right_and_faster(rounded: RoundedVectors, vectors: VectorRows) -> bool:
    part = vectors.part(0, min(_SAMPLE, len(rounded)))
    query = np.ascontiguousarray(part[0])
    if np.abs(rounded.products(query, len(part)) - part @ query).max() > rounded.error:
        return False
    with threadpool_limits(1):  # of work, not of threads: a server may give both as many
        return _seconds(lambda: rounded.products(query, len(part))) < 0.8 * _seconds(lambda: part @ query)


def _seconds(function: Callable[[], object]) -> float:
    """The shortest of a few times."""
    times = [time.perf_counter()]
    for _ in range(7):
        function()
        times.append(time.perf_counter())
    return float(np.diff(times).min())
