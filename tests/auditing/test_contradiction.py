"""Contradictions: held against a slow computation that is written out, and that no label judges itself."""

import numpy as np
import pytest

from proxygml.auditing import contradiction
from proxygml.auditing.contradiction import contradictions
from proxygml.auditing.feature_rows import FeatureRows
from proxygml.auditing.folds import FOLDS, stratified_folds
from proxygml.auditing.whitening import SHRINKAGE
from tests.helpers.noise import clustered, mislabelled_at_random


def rows_of(vectors: np.ndarray) -> FeatureRows:
    return FeatureRows(vectors, np.arange(len(vectors)))


def slow_scores(vectors: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The score of every class for every image, in float64, one image at a time."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    folds = stratified_folds(labels, 0)
    scores = np.full((len(labels), classes), np.nan)
    for fold in range(FOLDS):
        training = folds != fold
        known, targets = unit[training].astype(float), labels[training]
        means = {label: known[targets == label].mean(axis=0) for label in np.unique(targets)}
        residuals = known - np.stack([means[label] for label in targets])
        within = residuals.T @ residuals / len(known)
        shrunk = (1 - SHRINKAGE) * within + SHRINKAGE * np.trace(within) / len(within) * np.eye(len(within))
        values, directions = np.linalg.eigh(shrunk)
        white = (unit - known.mean(axis=0)) @ (directions / np.sqrt(values)) @ directions.T
        white /= np.linalg.norm(white, axis=1, keepdims=True)
        for row in np.flatnonzero(~training):
            for label in means:
                images = white[training][targets == label]
                proxy = images.mean(axis=0) / np.linalg.norm(images.mean(axis=0))
                nearest = np.sort(images @ white[row])[-3:]
                scores[row, label] = proxy @ white[row] + nearest.mean()
    return scores


@pytest.mark.parametrize("pieces", [2**24, 50])
def test_scores_are_those_of_a_computation_written_out(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, and in many small ones."""
    monkeypatch.setattr(contradiction, "SIMILARITIES_AT_A_TIME", pieces)
    vectors, labels = clustered(150, classes=6, size=8)
    labels = mislabelled_at_random(labels, 0.2)
    expected = slow_scores(vectors, labels, 6)
    found = contradictions(rows_of(vectors), labels, 6)
    rows = np.arange(len(labels))
    np.testing.assert_allclose(found.own, expected[rows, labels], atol=1e-4)
    others = expected.copy()
    others[rows, labels] = -np.inf
    np.testing.assert_allclose(found.best_other, others.max(axis=1), atol=1e-4)
    assert np.array_equal(found.other, others.argmax(axis=1))
    np.testing.assert_allclose(found.scores[:, :6], -np.sort(-expected, axis=1), atol=1e-4)


def test_a_class_of_one_image_cannot_be_judged_and_one_class_contradicts_nothing() -> None:
    vectors, labels = clustered(61, classes=6)
    labels[60] = 6
    found = contradictions(rows_of(vectors), labels, 7)
    assert np.flatnonzero(np.isnan(found.margin)).tolist() == [60]
    alone = contradictions(rows_of(vectors), np.zeros(61, np.int64), 1)
    assert np.isnan(alone.margin).all()
    assert (alone.other == -1).all()


def test_equal_vectors_and_more_features_than_images_give_finite_scores() -> None:
    same = np.ones((40, 300), np.float32)
    found = contradictions(rows_of(same), np.arange(40) % 4, 4)
    assert np.isfinite(found.margin).all()


def test_images_that_are_not_trusted_are_judged_but_judge_nobody() -> None:
    vectors, labels = clustered(200, classes=5)
    wrong = mislabelled_at_random(labels, 0.3)
    trusted = wrong == labels
    found = contradictions(rows_of(vectors), wrong, 5, trusted=trusted)
    assert (found.margin[~trusted] > 0).all()
    assert (found.margin[trusted] < 0).all()


def test_large_features_go_through_a_temporary_file_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = clustered(200, classes=5)
    expected = contradictions(rows_of(vectors), labels, 5).margin
    monkeypatch.setattr("proxygml.auditing.feature_rows.LARGEST_IN_MEMORY", 1000)
    assert np.array_equal(contradictions(rows_of(vectors), labels, 5).margin, expected)


def test_every_class_is_spread_evenly_over_the_folds() -> None:
    labels = np.repeat(np.arange(7), [1, 2, 4, 5, 9, 50, 3])
    folds = stratified_folds(labels, 3)
    for label in range(7):
        counts = np.bincount(folds[labels == label], minlength=FOLDS)
        assert counts.max() - counts.min() <= 1
    assert np.array_equal(folds, stratified_folds(labels, 3))
