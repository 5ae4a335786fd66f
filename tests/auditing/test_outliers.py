"""Images that belong to no class: pieces of photographs among digits; and where there are none, hardly any is named."""

import numpy as np

from proxygml.auditing.contradiction import contradictions
from proxygml.auditing.feature_rows import FeatureRows
from proxygml.auditing.outliers import Distances, class_distances
from tests.helpers.digits import digits, photo_pieces
from tests.helpers.noise import clustered


def distances_of(vectors: np.ndarray, labels: np.ndarray, groups: tuple[np.ndarray, ...] = ()) -> Distances:
    rows = FeatureRows(vectors, np.arange(len(vectors)))
    found = contradictions(rows, labels, int(labels.max()) + 1)
    return class_distances(rows, labels, found.classes, found.kept_scores, groups)


def test_pieces_of_photographs_are_no_digits() -> None:
    vectors, labels = digits()
    pieces = photo_pieces(12)
    given = np.random.default_rng(0).integers(0, 10, 12)
    found = distances_of(np.concatenate([vectors, pieces]), np.concatenate([labels, given]))
    assert set(range(1797, 1809)) <= set(found.outliers)
    assert len(found.outliers) < 60
    first = set(found.outliers[:20])
    assert len(first & set(range(1797, 1809))) >= 11


def test_a_distance_is_that_to_the_third_most_similar_image_of_the_most_similar_class() -> None:
    vectors, labels = clustered(300, classes=6)
    found = distances_of(vectors, labels)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    third = np.stack([np.sort(similarity[:, labels == label], axis=1)[:, -3] for label in range(6)], axis=1)
    assert np.array_equal(found.nearest, third.argmax(axis=1))
    angles = np.arccos(third.max(axis=1).clip(-1, 1))

    def center_and_spread(some: np.ndarray) -> np.ndarray:
        return np.array([np.median(some), 1.4826 * np.median(np.abs(some - np.median(some)))])

    whole = center_and_spread(angles)
    for label in range(6):
        own = center_and_spread(angles[(labels == label) & (found.nearest == label)])
        center, spread = np.maximum(whole, own)
        here = found.nearest == label
        np.testing.assert_allclose(found.deviations[here], (angles[here] - center) / spread, atol=1e-3)


def test_images_of_a_class_that_varies_more_than_others_belong_to_it() -> None:
    vectors, labels = clustered(400, classes=4, spread=0.2)
    vectors = np.where(labels[:, None] == 0, vectors[0] + 4 * (vectors - vectors[0]), vectors).astype(np.float32)
    assert len(distances_of(vectors, labels).outliers) <= 4


def test_where_every_image_has_its_class_hardly_any_is_named() -> None:
    for spread in (0.35, 1.0):
        vectors, labels = clustered(2000, classes=20, spread=spread)
        assert len(distances_of(vectors, labels).outliers) <= 4
    assert not len(distances_of(np.ones((60, 5), np.float32), np.arange(60) % 2).outliers)


def test_copies_of_an_image_of_no_class_do_not_make_it_one_of_the_class() -> None:
    vectors, labels = clustered(600, classes=6)
    vectors = vectors.copy()
    series = np.arange(0, 60, 6)  # all of one label
    vectors[series] = 20 * np.eye(24)[0] + 0.01 * np.random.default_rng(0).normal(size=(10, 24))
    assert not set(series) & set(distances_of(vectors, labels).outliers)
    assert set(series) <= set(distances_of(vectors, labels, groups=(series,)).outliers)


def test_a_class_of_near_duplicates_is_like_itself() -> None:
    vectors, labels = clustered(100, classes=4, spread=0.1)
    groups = tuple(np.flatnonzero(labels == label)[:20] for label in range(4))
    assert not len(distances_of(vectors, labels, groups).outliers)


def test_an_image_alone_in_its_class_is_judged_by_the_other_classes() -> None:
    vectors, labels = clustered(61, classes=6)
    labels = labels.copy()
    labels[60] = 6
    found = distances_of(vectors, labels)
    assert found.nearest[60] == 0
    alone = distances_of(vectors[:1], labels[:1])
    assert np.isnan(alone.deviations).all()
    assert alone.nearest.tolist() == [-1]
    assert not len(alone.outliers)
