"""The share of wrong labels, how sure it is, and which labels are wrong: on labels that were changed on purpose."""

import numpy as np
import pytest

from proxygml.auditing.evidence import Evidence
from proxygml.auditing.feature_rows import FeatureRows
from proxygml.auditing.summary import summary
from tests.helpers.noise import clustered, mislabelled_at_random

NAMES = [f"class {number}" for number in range(20)]


def evidence_of(vectors: np.ndarray, labels: np.ndarray) -> Evidence:
    return Evidence.of(FeatureRows(vectors, np.arange(len(vectors))), labels, int(labels.max()) + 1)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("spread", [0.35, 1.0])
def test_the_share_of_wrong_labels_lies_in_its_interval_and_they_come_first(share: float, spread: float) -> None:
    vectors, right = clustered(2000, classes=20, spread=spread)
    labels = mislabelled_at_random(right, share)
    found = evidence_of(vectors, labels)
    wrong = labels != right
    true_share = float(wrong.mean())
    assert found.noise.low - 0.02 <= true_share <= found.noise.high + 0.02
    assert wrong[found.order[: wrong.sum()]].mean() > 0.9
    likely = found.probability >= 0.5
    assert wrong[likely].mean() > 0.85
    assert likely[wrong].mean() > 0.8
    assert right[found.order[0]] == found.found.other[found.order[0]]  # the suggestion


def test_labels_changed_to_the_most_similar_class_are_found_too() -> None:
    vectors, right = clustered(2000, classes=20, spread=0.5)
    means = np.stack([vectors[right == label].mean(axis=0) for label in range(20)])
    distances = np.linalg.norm(means[:, None] - means, axis=2) + 1e9 * np.eye(20)
    wrong = np.random.default_rng(0).permutation(2000)[:200]
    labels = right.copy()
    labels[wrong] = distances.argmin(axis=1)[right[wrong]]
    found = evidence_of(vectors, labels)
    assert np.isin(found.order[:200], wrong).mean() > 0.9
    assert found.noise.low <= 0.11
    assert found.noise.high >= 0.09


@pytest.mark.parametrize("spread", [0.35, 1.5])
def test_without_wrong_labels_none_is_found_and_it_is_said_how_sure_that_is(spread: float) -> None:
    """Also where classes overlap, so that many images are closer to another class."""
    vectors, labels = clustered(2000, classes=20, spread=spread)
    found = evidence_of(vectors, labels)
    assert found.noise.low == 0
    assert found.noise.high < 0.03
    assert np.count_nonzero(found.probability >= 0.5) <= 2
    if not found.probability.any():
        assert summary(found, NAMES, "image")[0].startswith("No wrong label was found among 2,000 images; with 95%")


def test_few_images_one_class_classes_of_one_image_and_half_wrong_lead_to_sensible_words() -> None:
    vectors, right = clustered(100, classes=5)
    words = " ".join(summary(evidence_of(vectors, right), NAMES[:5], "image"))
    assert "No wrong label was found among 100 images" in words
    assert "these figures are rough" in words
    one = evidence_of(vectors, np.zeros(100, np.int64))
    assert summary(one, NAMES[:1], "image")[0].startswith("All 100 images have the label class 0")
    each = evidence_of(vectors, np.arange(100))
    assert "every class has one image" in " ".join(summary(each, [str(n) for n in range(100)], "image"))
    vectors, right = clustered(1000, classes=5)
    half = evidence_of(vectors, mislabelled_at_random(right, 0.5))
    assert "With so many wrong labels" in " ".join(summary(half, NAMES[:5], "image"))


def test_one_label_that_stands_out_is_named_where_probably_none_is_wrong() -> None:
    vectors, labels = clustered(2000, classes=20, spread=1.0)
    labels = labels.copy()
    labels[0] = 1  # which is 0
    found = evidence_of(vectors, labels)
    assert found.probability[0] >= 0.5
    words = summary(found, NAMES, "image")
    assert words[0].startswith("Probably no label is wrong among 2,000 images; with 95% confidence, at most")
    assert words[1] == "Look at the first one, which stands out."


def test_a_series_under_a_wrong_label_is_said_to_count_once() -> None:
    vectors, labels = clustered(600, classes=6, spread=0.5)
    vectors, labels = vectors.copy(), labels.copy()
    vectors[:24] = vectors[0] + 0.01 * np.random.default_rng(0).normal(size=(24, 24))
    labels[:24] = 1
    words = " ".join(summary(evidence_of(vectors, labels), NAMES, "image"))
    assert "About 1 of 600 labels is wrong" in words
    assert "24 labels are more likely wrong than right; they come first" in words
    assert "a group of near-duplicates counts as one image" in words


def test_real_vectors_with_wrong_labels() -> None:
    """Those of digits, or whatever labelled vectors the real data hold."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    right = digits.target.astype(np.int64)
    labels = mislabelled_at_random(right, 0.1)
    found = evidence_of(digits.data.astype(np.float32), labels)
    wrong = labels != right
    assert wrong[found.order[: wrong.sum()]].mean() > 0.9
    assert found.noise.low - 0.01 <= wrong.mean() <= found.noise.high + 0.01


def test_a_sample_stands_for_all_images_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, right = clustered(2000, classes=20, spread=1.0)
    labels = mislabelled_at_random(right, 0.1)
    whole = evidence_of(vectors, labels)
    monkeypatch.setattr("proxygml.auditing.probability.SAMPLED", 1000)
    sampled = evidence_of(vectors, labels)
    assert abs(sampled.probability.sum() - whole.probability.sum()) < 0.1 * whole.probability.sum()
