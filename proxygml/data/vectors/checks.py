"""What is wrong with a vector: not a finite number, or all zeros. Plain NumPy, which a loaded model can do with."""

from typing import Any

import numpy as np
import numpy.typing as npt

ROWS_AT_A_TIME = 16_384

LARGEST_VECTOR = 2**20
"""Numbers; far above what any encoder gives."""

Floats = npt.NDArray[Any]
"""float16 or float32, usually (n, F)."""


def checked_matrix(given: Floats) -> tuple[Floats, dict[int, str]]:
    """Vectors (m, F) as float16, if they are that, or float32; and what is wrong with which: its row becomes zeros."""
    with np.errstate(over="ignore"):
        vectors = given if given.dtype == np.float16 else np.asarray(given, np.float32)
        wide = np.asarray(vectors, np.float32)
        squares = np.einsum("ij,ij->i", wide, wide)
    good = np.isfinite(squares) & (squares > 0)
    if good.all():
        return vectors, {}
    problems = {}
    for row in np.flatnonzero(~good):
        numbers = given[row]
        if np.isnan(numbers).any():
            problems[int(row)] = "a NaN"
        elif not np.isfinite(squares[row]):
            problems[int(row)] = "an infinite or too large number"
        else:
            problems[int(row)] = "nothing but zeros"
    return np.where(good[:, None], vectors, vectors.dtype.type(0)), problems
