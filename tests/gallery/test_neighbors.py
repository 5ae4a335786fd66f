"""The candidates of an exact search, held against sorting all similarities."""

import numpy as np
import pytest

from proxygml.arrays import Rows, Vectors
from proxygml.gallery.neighbors import exact_candidates
from proxygml.gallery.vectors import VectorRows, unit_vectors


def nearest(similarity: Vectors, k: int) -> set[int]:
    return set(np.argsort(-similarity, kind="stable")[:k].tolist())


def candidates(vectors: Vectors, queries: Vectors, k: int, allowed: Rows | None = None) -> list[Rows]:
    mask = None if allowed is None else np.isin(np.arange(len(vectors)), allowed)
    return exact_candidates(VectorRows(vectors), queries, k, mask)


@pytest.mark.parametrize("count", [1, 63, 64, 700, 5000])
@pytest.mark.parametrize("order", ["random", "by class", "one class"])
def test_the_nearest_are_among_the_candidates_and_few_others(count: int, order: str) -> None:
    draw = np.random.default_rng(count)
    vectors = unit_vectors(draw.standard_normal((count, 8), dtype=np.float32))
    queries = unit_vectors(draw.standard_normal((3, 8), dtype=np.float32))
    if order == "by class":  # the nearest stand side by side
        vectors = vectors[np.argsort(vectors @ queries[0])]
    elif order == "one class":
        vectors = unit_vectors(queries[:1] + np.float32(0.01) * vectors)
    for k in {1, min(10, count), count}:
        for query, rows in zip(queries, candidates(vectors, queries, k), strict=True):
            assert rows.tolist() == sorted(set(rows.tolist())) and nearest(vectors @ query, k) <= set(rows.tolist())
            assert len(rows) <= k + 5 or order == "one class"


def test_only_allowed_rows_are_candidates_also_where_they_lie_in_few_groups() -> None:
    draw = np.random.default_rng(0)
    vectors, query = (unit_vectors(draw.standard_normal((n, 8), dtype=np.float32)) for n in (5000, 1))
    for allowed in (np.arange(3000), np.arange(0, 5000, 3), np.flatnonzero(np.arange(5000) % 78 < 20), np.arange(7)):
        found = candidates(vectors, query, 7, allowed)[0]
        assert set(found.tolist()) <= set(allowed.tolist())
        assert {int(allowed[place]) for place in nearest((vectors @ query[0])[allowed], 7)} <= set(found.tolist())


def test_equal_vectors_are_all_candidates() -> None:
    vectors = np.tile(unit_vectors(np.ones((1, 8), np.float32)), (5000, 1))
    assert len(candidates(vectors, vectors[:1], 3)[0]) == 5000
