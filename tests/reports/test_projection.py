"""The map's coordinates: near in the embedding is near on the map, for any number of points."""

import numpy as np
import pytest

from proxygml.reports import projection


def test_the_map_keeps_groups_together_and_is_seeded():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.eye(3, 16), 20, axis=0)
    embeddings = (groups + 0.02 * generator.standard_normal(groups.shape)).astype(np.float32)
    points = projection.project(embeddings, seed=0)
    assert points.shape == (60, 2)
    assert points.min() == 0
    assert points.max() == pytest.approx(1)
    np.testing.assert_array_equal(points, projection.project(embeddings, seed=0))
    centres = points.reshape(3, 20, 2).mean(axis=1)
    nearest_centre = np.linalg.norm(points[:, None] - centres, axis=2).argmin(axis=1)
    assert nearest_centre.tolist() == np.repeat(range(3), 20).tolist()


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (4, 3), (30, 1)])
def test_few_or_flat_embeddings_have_a_map_too(shape):
    points = projection.project(np.random.default_rng(0).standard_normal(shape).astype(np.float32), seed=0)
    assert points.shape == (shape[0], 2)
    assert np.isfinite(points).all()


def test_collapsed_embeddings_have_a_map_too():
    assert np.isfinite(projection.project(np.ones((50, 4), dtype=np.float32), seed=0)).all()


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-6])
def test_thousands_of_embeddings_that_differ_by_rounding_have_a_map_too(noise):
    """Their mean in float32 is another vector; scikit-learn's t-SNE of equals ends the process."""
    generator = np.random.default_rng(0)
    one = generator.standard_normal(32)
    many = one / np.linalg.norm(one) + noise * generator.standard_normal((2000, 32))
    assert np.isfinite(projection.project(many.astype(np.float32), seed=0)).all()


def test_points_beyond_the_landmarks_lie_beside_their_own_group(monkeypatch):
    monkeypatch.setattr(projection, "LANDMARKS", 60)
    generator = np.random.default_rng(0)
    groups = np.repeat(np.eye(4, 16), 100, axis=0) + 0.05 * generator.standard_normal((400, 16))
    embeddings = (groups / np.linalg.norm(groups, axis=1, keepdims=True)).astype(np.float32)
    points = projection.project(embeddings, seed=0)
    assert points.min() >= 0
    assert points.max() <= 1
    assert len(np.unique(points, axis=0)) > 300, "points must not fall onto their landmarks"
    np.testing.assert_array_equal(points, projection.project(embeddings, seed=0))
    distances = np.linalg.norm(points[:, None] - points, axis=2) + np.eye(400) * 9
    assert (distances.argmin(axis=1) // 100 == np.arange(400) // 100).all()
