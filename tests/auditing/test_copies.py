"""Near-duplicates of an audit: the same groups by cells as by all pairs, and which images may not judge each other."""

import numpy as np
import pytest

from proxygml.auditing import copies
from proxygml.auditing.copies import copy_groups, units_of
from proxygml.auditing.evidence import Evidence
from proxygml.auditing.feature_rows import FeatureRows
from proxygml.auditing.folds import stratified_folds
from tests.helpers.noise import clustered


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


def test_a_series_that_got_a_wrong_label_together_does_not_confirm_itself() -> None:
    vectors, labels = clustered(600, classes=6, spread=0.5)
    labels = labels.copy()
    vectors[:12] = vectors[0] + 0.01 * np.random.default_rng(0).normal(size=(12, 24))
    labels[:12] = 1  # the class of the first is 0
    found = Evidence.of(FeatureRows(vectors, np.arange(600)), labels, 6)
    assert (found.margin[:12] > 0).all()
    assert set(found.order[:12]) == set(range(12))
