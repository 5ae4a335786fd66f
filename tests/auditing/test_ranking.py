"""The order of doubt: from the kept scores, and from where wrong labels seem to come from."""

import numpy as np
import pytest

from proxygml.auditing import ranking
from proxygml.auditing.contradiction import Contradictions
from proxygml.auditing.ranking import log_odds

CLASSES = 12


def scored(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right classes, all scores (n, C) that follow a softmax of factor 10, and proxies in similar pairs."""
    random = np.random.default_rng(seed)
    proxies = random.normal(size=(CLASSES, 16))
    proxies[1::2] = proxies[::2] + 0.3 * random.normal(size=(CLASSES // 2, 16))
    proxies /= np.linalg.norm(proxies, axis=1, keepdims=True)
    scores = random.normal(size=(count, CLASSES)) * 0.35
    chances = np.exp(10 * scores)
    chances /= chances.sum(axis=1, keepdims=True)
    right = np.array([random.choice(CLASSES, p=row) for row in chances])
    return right, scores, proxies


def contradictions_of(labels: np.ndarray, scores: np.ndarray, proxies: np.ndarray) -> Contradictions:
    found = Contradictions.empty(len(labels), CLASSES, 16)
    for row, label in enumerate(labels):
        others = [other for other in np.argsort(-scores[row]) if other != label]
        found.classes[row, :CLASSES] = [label, *others]
        found.kept_scores[row, :CLASSES] = scores[row, [label, *others]]
        found.other[row] = others[0]
    found.own_proxy[:], found.own_neighbors[:] = scores[np.arange(len(labels)), labels], 0
    found.other_proxy[:], found.other_neighbors[:] = scores[np.arange(len(labels)), found.other], 0
    found.proxies[:] = proxies
    return found


def changed(right: np.ndarray, kind: str, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    places = random.permutation(len(right))[: len(right) // 8]
    labels = right.copy()
    labels[places] = (
        (right[places] + random.integers(1, CLASSES, len(places))) % CLASSES
        if kind == "random"
        else (right[places] ^ 1)
    )
    return labels


@pytest.mark.parametrize("kind", ["random", "similar"])
def test_the_odds_are_those_of_the_way_in_which_labels_were_changed(kind: str) -> None:
    """Written out: the chance of every other class times that of its change to the label, over that of the label."""
    right, scores, proxies = scored(3000)
    labels = changed(right, kind)
    chances = np.exp(10 * scores)
    chances /= chances.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    way = (
        np.full((CLASSES, CLASSES), 1 / (CLASSES - 1)) if kind == "random" else np.eye(CLASSES)[np.arange(CLASSES) ^ 1]
    )
    np.fill_diagonal(way, 0)
    exact = np.log((chances * way[:, labels].T).sum(axis=1)) - np.log(chances[rows, labels])
    found = log_odds(contradictions_of(labels, scores, proxies), labels)
    assert np.corrcoef(np.argsort(np.argsort(exact)), np.argsort(np.argsort(found)))[0, 1] > 0.97


def test_what_cannot_be_judged_has_no_odds_and_many_classes_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    right, scores, proxies = scored(3000)
    labels = changed(right, "random")
    found = contradictions_of(labels, scores, proxies)
    found.own_proxy[3] = np.nan
    odds = log_odds(found, labels)
    assert np.flatnonzero(np.isnan(odds)).tolist() == [3]
    assert np.isfinite(np.delete(odds, 3)).all()
    monkeypatch.setattr(ranking, "SIMILARITIES_AT_A_TIME", 30)  # two classes at a time
    np.testing.assert_allclose(log_odds(found, labels), odds)
    monkeypatch.setattr(ranking, "MOST_COMPARED", 10)  # then equal chance, which these labels have
    np.testing.assert_allclose(log_odds(found, labels), odds)
