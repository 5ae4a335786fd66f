"""Classes by neighbours, and none of them below a threshold that keeps its promise."""

import numpy as np
import pandas as pd
import pytest

from proxygml import Gallery
from proxygml.errors import GalleryError
from proxygml.gallery.base import SearchResult
from proxygml.gallery.classify import calibrate, is_labelled, predict
from tests.helpers.vectors import Array


def classes(names: list[str], images: int, seed: int) -> tuple[Array, list[str]]:
    """Images around a direction for each name, the same for every seed."""
    centres = np.array([np.random.default_rng(sum(map(ord, name))).normal(size=12) for name in names])
    labels = [name for name in names for _ in range(images)]
    vectors = np.repeat(centres, images, axis=0) + 0.5 * np.random.default_rng(seed).normal(size=(len(labels), 12))
    unit: Array = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit, labels


def gallery(names: list[str], seed: int = 0) -> Gallery:
    vectors, labels = classes(names, 10, seed)
    return Gallery.create(vectors, pd.DataFrame({"label": labels}))


def test_near_neighbours_outvote_more_distant_ones() -> None:
    table = pd.DataFrame({"label": ["a", "b", "b", None]})
    scores = np.array([[0.9, 0.7, 0.7, 0.95]], np.float32)
    result = SearchResult(scores, np.arange(4)[None], table)
    prediction = predict(result)[0]
    assert prediction.label == "a"
    assert prediction.share == pytest.approx(1 / (1 + 2 * np.exp(-0.2 / 0.07)), rel=1e-4)
    assert predict(result, 0.96)[0].label is None
    assert predict(result, 0.94)[0].label == "a"


def test_no_labels_no_prediction() -> None:
    result = SearchResult(np.ones((1, 1), np.float32), np.zeros((1, 1), np.int64), pd.DataFrame({"path": ["x"]}))
    with pytest.raises(GalleryError, match="no label"):
        predict(result)


def test_where_nothing_found_has_a_label_there_is_nothing_to_vote_for() -> None:
    table = pd.DataFrame({"label": [None, None, "a"]})
    scores = np.ones((1, 2), np.float32)
    assert not is_labelled(SearchResult(scores, np.array([[0, 1]]), table))
    assert is_labelled(SearchResult(scores, np.array([[0, 2]]), table))
    assert not is_labelled(SearchResult(scores, np.array([[0, 1]]), table.drop(columns="label")))


def test_numbers_are_labels_as_their_text_is_and_images_without_one_do_not_count() -> None:
    vectors, names = classes([f"v{n}" for n in range(8)], 25, 1)
    texts = [name[1:] for name in names]
    numbers: list[object] = [int(text) for text in texts]
    searched = Gallery.create(vectors, pd.DataFrame({"label": numbers}))
    found = calibrate(searched, vectors, numbers, 0.2)
    assert found == calibrate(Gallery.create(vectors, pd.DataFrame({"label": texts})), vectors, texts, 0.2)
    assert found.score < 0.99  # each image finds itself, of its own class
    assert calibrate(searched, np.concatenate([vectors, vectors[:9]]), [*numbers, *[None] * 9], 0.2) == found
    with pytest.raises(GalleryError, match="no validation image has a label"):
        calibrate(searched, vectors[:1], [None], 0.2)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.2])
def test_the_threshold_accepts_as_many_strangers_as_stated(rate: float, inside: bool) -> None:
    """Whether or not the validation classes are in the gallery themselves."""
    validation = [f"v{n}" for n in range(8)]
    searched = gallery([f"c{n}" for n in range(20)] + (validation if inside else []))
    vectors, labels = classes(validation, 25, 1)
    threshold = calibrate(searched, vectors, labels, rate)
    stored = searched.vectors(searched.items.index.to_numpy())
    foreign = searched.items["label"].to_numpy()[None] != np.array(labels)[:, None]
    wrong = np.where(foreign, vectors @ stored.T, -1).max(axis=1)
    assert np.mean(wrong >= threshold.score) <= rate
    assert np.mean(wrong >= threshold.score - 0.05) > rate
    assert threshold.false_accept_rate == pytest.approx(np.mean(wrong >= threshold.score))
    assert threshold.true_accept_rate is not None
    assert threshold.true_accept_rate > 0.5
    assert (threshold.queries, threshold.classes) == (200, 8)


def test_no_label_is_no_rejection() -> None:
    table = pd.DataFrame({"label": [None, None, "a"]})
    result = SearchResult(np.array([[1, 0.9], [0.5, 0.4]], np.float32), np.array([[0, 1], [2, 0]]), table)
    assert [(one.label, one.rejected) for one in predict(result, 0.8)] == [(None, False), (None, True)]
    assert [(one.label, one.rejected) for one in predict(result)] == [(None, False), ("a", False)]


def test_four_classes_are_too_few_for_a_threshold() -> None:
    vectors, labels = classes(["v1", "v2", "v3", "v4"], 50, 1)
    with pytest.raises(GalleryError, match="200 images of 4 validation classes, but .* 20 images of 5 classes"):
        calibrate(gallery(["a", "b"]), vectors, labels, 0.05)


def test_impossible_calibrations_are_refused() -> None:
    vectors, labels = classes(["v"], 5, 0)
    with pytest.raises(GalleryError, match="0 up to below 1"):
        calibrate(gallery(["a"]), vectors, labels, 1.0)
    with pytest.raises(GalleryError, match="validation classes only"):
        calibrate(gallery(["v"]), vectors, labels)
