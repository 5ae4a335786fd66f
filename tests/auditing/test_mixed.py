"""Classes that are probably two: two digits under one label, and none where every digit has its own."""

import numpy as np
import pytest

from proxygml.auditing.feature_rows import FeatureRows
from proxygml.auditing.mixed import LEAST_APART, MixedClass, mixed_classes
from tests.helpers.digits import digits
from tests.helpers.noise import clustered


def mixed_of(
    vectors: np.ndarray,
    labels: np.ndarray,
    groups: tuple[np.ndarray, ...] = (),
    doubtful: np.ndarray | None = None,
) -> list[MixedClass]:
    rows = FeatureRows(vectors, np.arange(len(vectors)))
    return mixed_classes(rows, labels, groups, np.zeros(len(labels), bool) if doubtful is None else doubtful)


def test_no_digit_is_two() -> None:
    assert mixed_of(*digits()) == []


@pytest.mark.parametrize(("one", "other"), [(3, 6), (5, 8), (6, 9), (0, 7)])
def test_two_digits_under_one_label_are_found_and_told_apart(one: int, other: int) -> None:
    vectors, right = digits()
    labels = np.where(right == other, one, right)
    first = mixed_of(vectors, labels)[0]
    assert first.label == one
    assert first.apart >= LEAST_APART
    for part in first.parts:
        shares = np.bincount(right[part], minlength=10) / len(part)
        assert max(shares[one], shares[other]) > 0.9
    assert len({int(np.bincount(right[part]).argmax()) for part in first.parts}) == 2


def test_half_of_a_class_at_random_is_not_a_part() -> None:
    vectors, labels = clustered(2000, classes=100, size=200, spread=1.0)  # 20 images of 200 features: much chance
    assert mixed_of(vectors, labels) == []


def test_a_series_and_a_few_wrong_labels_are_not_a_part() -> None:
    vectors, labels = clustered(600, classes=6, spread=0.5)
    vectors, labels = vectors.copy(), labels.copy()
    series = np.flatnonzero(labels == 0)[:40]
    vectors[series] = vectors[1] + 0.01 * np.random.default_rng(0).normal(size=(40, 24))
    assert [found.label for found in mixed_of(vectors, labels)] == [0]
    assert mixed_of(vectors, labels, groups=(series,)) == []
    doubtful = np.zeros(600, bool)
    doubtful[series] = True
    assert mixed_of(vectors, labels, doubtful=doubtful) == []


def test_few_images_equal_images_and_none_name_no_class() -> None:
    vectors, labels = clustered(40, classes=10)
    assert mixed_of(vectors, labels) == []
    assert mixed_of(np.ones((60, 5), np.float32), np.arange(60) % 2) == []
    assert mixed_of(vectors, labels, doubtful=np.ones(40, bool)) == []
