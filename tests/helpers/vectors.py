"""Vectors and items that galleries are made of."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.float32]


def clustered(count: int, size: int = 16, seed: int = 0) -> Array:
    """Unit vectors around a centre for every ten of them."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(max(1, count // 10), size))
    vectors = centres[random.integers(len(centres), size=count)] + 0.4 * random.normal(size=(count, size))
    unit: Array = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def items(count: int, start: int = 0) -> pd.DataFrame:
    numbers = range(start, start + count)
    return pd.DataFrame(
        {"path": [f"/{n}.png" for n in numbers], "label": [f"c{n % 3}" for n in numbers], "size": numbers}
    )


def in_blocks(count: int, height: int = 1000) -> Iterator[tuple[Array, pd.DataFrame]]:
    vectors, table = clustered(count), items(count)
    for start in range(0, count, height):
        yield vectors[start : start + height], table[start : start + height].reset_index(drop=True)


def blocks(vectors: Array, table: pd.DataFrame, height: int = 400) -> Iterator[tuple[Array, pd.DataFrame]]:
    for start in range(0, len(vectors), height):
        yield vectors[start : start + height], table[start : start + height].reset_index(drop=True)
