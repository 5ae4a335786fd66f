"""Vectors in fewer bytes, in the files of `proxygml embed --dtype`: how they are written and taken back."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from proxygml.arrays import Vectors
from proxygml.data.vectors.checks import Floats

Dtype = Literal["float32", "float16", "int8", "binary"]
"""How a number is written. int8: times 127 over the largest of its vector, so that only the length is lost, which
cosine does not see. binary: a bit, 1 above zero; eight to a byte, the first one highest, as numpy.packbits has them."""

Coded = Literal["int8", "binary"]

Codes = npt.NDArray[np.int8] | npt.NDArray[np.uint8]
"""int8 (n, D), or the bits of uint8 (n, D / 8, rounded up)."""


def encoded(vectors: Vectors, dtype: Dtype) -> Floats | Codes:
    """Vectors (n, D) as they are written; none of them all zeros."""
    if dtype == "int8":
        largest = np.abs(vectors).max(axis=1, keepdims=True, initial=np.finfo(np.float32).tiny)
        whole: Codes = np.rint(vectors * (127 / largest)).astype(np.int8)
        return whole
    if dtype == "binary":
        return np.packbits(vectors > 0, axis=1)
    return vectors.astype(dtype)


def decoded(codes: Codes, size: int) -> Vectors:
    """The vectors, float32 (n, D) of length 1, that codes stand for; of bits, each number is as large as the others."""
    if codes.dtype == np.int8:
        vectors = codes.astype(np.float32)
    else:
        vectors = np.unpackbits(codes.view(np.uint8), axis=1, count=size).astype(np.float32) * 2 - 1
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def code_bytes(dtype: Coded, size: int) -> int:
    """How many bytes the code of a vector of that size has."""
    return size if dtype == "int8" else -(-size // 8)
