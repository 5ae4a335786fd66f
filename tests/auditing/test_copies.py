"""Near-duplicates of an audit: the same groups by cells as by all pairs, and which images may not judge each other."""

import numpy as np
import pytest

from proxygml.auditing import copies
from proxygml.auditing.copies import copy_groups, copy_weights, units_of
from proxygml.auditing.evidence import Evidence
from proxygml.auditing.feature_rows import FeatureRows
from proxygml.auditing.folds import stratified_folds
from tests.helpers.noise import clustered, mislabelled_at_random


def with_copies(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, of which the last tenth are near-duplicates of the first; and their classes."""
    vectors, labels = clustered(count, classes=10, size=32, spread=1.0)
    tenth = count // 10
    noise = np.random.default_rng(seed).normal(size=(tenth, 32))
    vectors[-tenth:] = vectors[:tenth] + 0.02 * noise
    labels[-tenth:] = labels[:tenth]
    return vectors.astype(np.float32), labels


def test_cells_find_the_groups_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = with_copies(2000)
    rows = FeatureRows(vectors, np.arange(2000))
    expected = [group.tolist() for group in copy_groups(rows, 0.97, 0)]
    assert len(expected) == 200
    monkeypatch.setattr(copies, "MOST_EXACT", 100)
    monkeypatch.setattr(copies, "CELL", 100)
    assert sorted(group.tolist() for group in copy_groups(rows, 0.97, 0)) == expected


def test_copies_of_one_label_share_a_fold_and_those_of_two_labels_need_not() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
    units = units_of(labels, [np.array([0, 2, 4]), np.array([7, 8])])
    assert units[0] == units[2] != units[4]
    assert units[7] != units[8]  # the whole class: nothing else could judge them
    folds = stratified_folds(labels, 0, units=units)
    assert folds[0] == folds[2]
    assert folds[7] != folds[8]


@pytest.mark.parametrize(
    ("count", "classes", "spread", "size", "others_wrong"),
    [(600, 6, 0.5, 5, 0.0), (600, 6, 0.5, 12, 0.0), (600, 6, 1.0, 12, 0.05), (1000, 20, 1.0, 12, 0.0)],
)
def test_a_series_that_got_a_wrong_label_together_is_not_kept(
    count: int, classes: int, spread: float, size: int, others_wrong: float
) -> None:
    """It neither confirms itself nor passes for images on the border between two classes."""
    vectors, right = clustered(count, classes=classes, spread=spread)
    labels = mislabelled_at_random(right, others_wrong)
    vectors[:size] = vectors[0] + 0.01 * np.random.default_rng(0).normal(size=(size, 24))
    labels[:size] = 1  # the class of the first is 0
    found = Evidence.of(FeatureRows(vectors, np.arange(count)), labels, classes)
    assert (found.margin[:size] > 0).all()
    assert (found.probability[:size] > 0.9).all()
    others = np.flatnonzero(found.probability >= 0.5)
    others = others[others >= size]
    assert len(others) <= 1.25 * others_wrong * count + 3
    if not others_wrong:
        assert set(found.order[:size]) == set(range(size))


def test_a_group_of_copies_counts_as_much_as_one_other_image() -> None:
    weights = copy_weights(6, [np.array([0, 2]), np.array([1, 3, 5])])
    np.testing.assert_allclose(weights, [1 / 2, 1 / 3, 1 / 2, 1 / 3, 1, 1 / 3])
