"""The rotation before product quantisation."""

import numpy as np
import pandas as pd
import pytest

from proxygml import Gallery
from proxygml.gallery.index_kinds import balanced_directions


def uneven(count: int, size: int) -> np.ndarray:
    """Vectors whose first numbers vary far more than the last, as those of a head that starts from a projection."""
    return np.random.default_rng(0).normal(size=(count, size)).astype(np.float32) * 0.95 ** np.arange(size, dtype="f4")


@pytest.mark.parametrize(("parts", "size"), [(4, 32), (4, 16), (16, 32), (1, 32)])
def test_parts_vary_alike_after_the_rotation(parts: int, size: int) -> None:
    vectors = uneven(2000, 32)
    rotation = balanced_directions(vectors, parts, size)
    assert np.allclose(rotation @ rotation.T, np.eye(size), atol=1e-5)
    products = np.log((vectors @ rotation.T).var(axis=0)).reshape(parts, -1).sum(axis=1)
    before = np.log(vectors[:, :size].var(axis=0)).reshape(parts, -1).sum(axis=1)
    assert np.ptp(products) <= np.ptp(before) / 4


def test_vectors_of_few_directions_have_a_rotation() -> None:
    rotation = balanced_directions(uneven(100, 3) @ np.ones((3, 8), np.float32), 2)
    assert np.allclose(rotation @ rotation.T, np.eye(8), atol=1e-5)


def test_product_quantisation_of_uneven_vectors_finds_most_neighbours() -> None:
    gallery = Gallery.create(uneven(2000, 64), pd.DataFrame({"row": range(2000)}), "ivfpq")
    assert gallery.manifest.code_recall is not None
    assert gallery.manifest.code_recall > 0.8
