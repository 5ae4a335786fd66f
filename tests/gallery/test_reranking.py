"""k-reciprocal re-ranking against the paper's definition, set by set."""

import numpy as np
import pytest

from proxygml.gallery.reranking import reranked
from tests.helpers.vectors import Array, clustered


def by_definition(query: Array, items: Array, k1: int, k2: int, weight: float) -> list[int]:
    """Zhong et al., equations 2, 3, 5 to 7 and 10 to 12, with Python's sets."""
    vectors = np.concatenate([query[None], items]).astype(np.float64)
    distance = ((vectors[:, None] - vectors[None]) ** 2).sum(-1)
    distance /= distance.max()
    order = [list(np.argsort(row, kind="stable")) for row in distance]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    fuzzy = np.zeros_like(distance)
    for i in range(len(vectors)):
        found = reciprocal(i, k1)
        for j in reciprocal(i, k1):
            half = reciprocal(j, round(k1 / 2))
            if len(half & reciprocal(i, k1)) > 2 / 3 * len(half):
                found |= half
        for j in found:
            fuzzy[i, j] = np.exp(-distance[i, j])
        fuzzy[i] /= fuzzy[i].sum()
    fuzzy = np.array([fuzzy[order[i][:k2]].mean(axis=0) for i in range(len(vectors))])
    jaccard = [1 - np.minimum(fuzzy[0], row).sum() / np.maximum(fuzzy[0], row).sum() for row in fuzzy[1:]]
    return [int(place) for place in np.argsort((1 - weight) * np.array(jaccard) + weight * distance[0, 1:])]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_the_definitions(seed: int) -> None:
    vectors = clustered(60, seed=seed)
    items = vectors[1:][np.argsort(-(vectors[1:] @ vectors[0]))]
    assert reranked(vectors[0], items, 8, 3, 0.3).tolist() == by_definition(vectors[0], items, 8, 3, 0.3)


def test_with_all_weight_on_the_distance_nothing_moves() -> None:
    vectors = clustered(30)
    items = vectors[1:][np.argsort(-(vectors[1:] @ vectors[0]))]
    assert reranked(vectors[0], items, weight=1.0).tolist() == list(range(29))


def test_one_item_is_in_order() -> None:
    vectors = clustered(2)
    assert reranked(vectors[0], vectors[1:]).tolist() == [0]


def test_more_copies_than_neighbours_stay_in_order() -> None:
    random = np.random.default_rng(0)
    far = random.normal(size=(20, 8))
    items = np.concatenate([np.repeat(far[:1], 60, axis=0), far[1:]])
    items = (items / np.linalg.norm(items, axis=1, keepdims=True)).astype(np.float32)
    with np.errstate(all="raise"):
        assert np.array_equal(reranked(items[0], items)[:60], np.arange(60))
