"""The candidates of an exact search, held against sorting all similarities."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from proxygml import Gallery
from proxygml.arrays import Rows, Vectors
from proxygml.gallery.backend import Addition
from proxygml.gallery.folder.gallery import FolderGallery
from proxygml.gallery.neighbors import exact_candidates, ranked
from proxygml.gallery.rounded import RoundedVectors, has_room, is_supported
from proxygml.gallery.vectors import VectorRows, unit_vectors
from tests.helpers.vectors import items


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


@pytest.mark.parametrize("count", [63, 5000])
def test_a_damaged_vector_hides_no_other(count: int) -> None:
    draw = np.random.default_rng(0)
    vectors, query = (unit_vectors(draw.standard_normal((n, 8), dtype=np.float32)) for n in (count, 1))
    damaged = vectors.copy()
    damaged[[7, 11]] = np.nan
    expected = [row for row in np.argsort(-(vectors @ query[0])).tolist() if row not in (7, 11)]
    for k in (1, 10):
        assert set(expected[:k]) <= set(candidates(damaged, query, k)[0].tolist())


def test_equal_vectors_are_all_candidates() -> None:
    vectors = np.tile(unit_vectors(np.ones((1, 8), np.float32)), (5000, 1))
    assert len(candidates(vectors, vectors[:1], 3)[0]) == 5000


@pytest.mark.skipif(not is_supported(), reason="this processor does not compute with bfloat16")
@pytest.mark.parametrize("spread", [1.0, 0.1, 1e-3])
def test_a_rounded_copy_hides_none_of_the_nearest(spread: float) -> None:
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((30, 64), dtype=np.float32)
    vectors = unit_vectors(centres[np.arange(9000) % 30] + spread * draw.standard_normal((9000, 64), dtype=np.float32))
    vectors[8000:] = vectors[:1000]  # among them some after those that are rounded
    rounded = RoundedVectors(VectorRows(vectors), 8500)
    allowed = np.arange(9000) % 3 > 0
    for query in (vectors[:1], vectors[8999:], unit_vectors(draw.standard_normal((1, 64), dtype=np.float32))):
        assert np.abs(rounded.products(query[0]) - vectors[:8500] @ query[0]).max() <= rounded.error
        for k in (1, 10, 5000):
            for mask in (None, allowed):
                exact = exact_candidates(VectorRows(vectors), query, k, mask)[0]
                found = exact_candidates(VectorRows(vectors), query, k, mask, rounded=rounded)[0]
                for rows in (exact, found):
                    scores, places = ranked(VectorRows(vectors), query[0], rows, k)
                    expected = scores, rows[places]
                    assert all(map(np.array_equal, expected, ranked_all(vectors, query[0], k, mask)))


def ranked_all(vectors: Vectors, query: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None) -> tuple[Vectors, Rows]:
    rows = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    scores, places = ranked(VectorRows(vectors), query, rows, k)
    return scores, rows[places]


@pytest.mark.parametrize(
    ("total", "available", "expected"), [(8000, 2000, True), (7999, 2000, False), (8000, 1999, False)]
)
def test_a_rounded_copy_leaves_most_of_the_memory_to_others(
    total: int, available: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=total, available=available))
    assert has_room(1000) == expected


def test_a_gallery_that_is_prepared_answers_the_same_while_it_changes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((18_000, 512), dtype=np.float32)  # more than one part of the file
    Gallery.create(vectors, items(18_000)).save(tmp_path / "g")
    queries = [*draw.standard_normal((3, 1, 512), dtype=np.float32), vectors[17:18]]

    def checked(gallery: Gallery, before: Gallery | None) -> Gallery:
        gallery.prepare_searches(before)
        assert isinstance(gallery, FolderGallery)
        held = gallery._rounded
        if held is None and is_supported():  # it was not faster here just now
            held = RoundedVectors(gallery._vectors, min(16_384, len(gallery)))
        for kept in (held, None):
            gallery._rounded = kept
            plain = Gallery.load(tmp_path / "g")
            for query in queries:
                one, other = gallery.search(query, 10), plain.search(query, 10)
                assert np.array_equal(one.ids, other.ids) and np.array_equal(one.scores, other.scores)
        gallery._rounded = held
        return gallery

    first = checked(Gallery.load(tmp_path / "g"), None)
    second, _ = first.change_at_once([Addition(vectors[17], {"path": "new.jpg"}), 5])
    second = checked(second, first)
    assert isinstance(first, FolderGallery) and isinstance(second, FolderGallery)
    assert second._rounded is first._rounded
    # Another gallery at the same place, with the old one's files restored and changed otherwise, has other vectors.
    Gallery.build(tmp_path / "g", [(vectors[::-1].copy(), items(18_000))], force=True)
    third = checked(Gallery.load(tmp_path / "g"), second)
    assert isinstance(third, FolderGallery) and (third._rounded is None or third._rounded is not second._rounded)
    third.remove(np.arange(6000))
    third.save()  # which writes the vectors anew
    checked(third, second)
