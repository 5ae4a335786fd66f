"""Whole numbers of 64 bits and truth values stay what they are, and masks mean what they say, in every backend."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proxygml import Gallery
from proxygml.errors import GalleryError
from tests.helpers.places import BACKENDS, place_for
from tests.helpers.vectors import blocks, clustered

IDS = [1450000000000000001, 1450000000000000002, 1450000000000000003, 7, 2**53, 2**53 + 1]


def photos() -> pd.DataFrame:
    return pd.DataFrame({"path": list("abcdef"), "photo_id": IDS, "sharp": [True, False] * 3, "zero": [0] * 6})


@pytest.fixture(params=["memory", *BACKENDS])
def gallery(request: pytest.FixtureRequest, tmp_path: Path) -> Gallery:
    if request.param == "memory":
        return Gallery.create(clustered(6), photos())
    return Gallery.build(place_for(request.param, tmp_path, request), blocks(clustered(6), photos()))


def test_a_filter_compares_whole_numbers_exactly(gallery: Gallery) -> None:
    for number, photo in enumerate(IDS):
        for value in (photo, str(photo), f"{photo}.0", np.int64(photo)):
            assert gallery.matching({"photo_id": value}).tolist() == [number], value
    assert gallery.matching({"photo_id": [IDS[1], "7"]}).tolist() == [1, 3]
    for value in (IDS[2] + 1, str(2**64), "0.5", "1e999999999", "inf", -(2**63) - 1):
        assert gallery.matching({"photo_id": value}).tolist() == [], value
    gallery.remove(gallery.matching({"photo_id": str(IDS[1])}))
    assert gallery.items["photo_id"].tolist() == [IDS[0], *IDS[2:]]


def test_a_row_without_a_column_leaves_the_column_exact(gallery: Gallery, tmp_path: Path) -> None:
    gallery.add(clustered(1), pd.DataFrame({"path": ["g"]}))
    gallery.add(clustered(1), pd.DataFrame({"path": ["h"], "photo_id": [None], "sharp": [None], "taken": [2**53 + 1]}))
    gallery.add(clustered(1), pd.DataFrame({"path": ["i"], "photo_id": [2**53 + 3]}))
    gallery.save(None if gallery.place else tmp_path / "saved")
    for seen in (gallery.items, Gallery.load(gallery.place).items):
        assert seen["photo_id"].dropna().tolist() == [*IDS, 2**53 + 3]
        assert seen["photo_id"].isna().tolist() == [False] * 6 + [True, True, False]
        assert [type(value) for value in seen["zero"].dropna().tolist()] == [int] * 6
        assert [value is True for value in seen["sharp"].dropna().tolist()] == [True, False] * 3
    assert gallery.matching({"photo_id": str(2**53 + 3)}).tolist() == [8]
    assert gallery.matching({"zero": 0}).tolist() == list(range(6))


def test_whole_numbers_in_mappings_and_lists_stay_exact(tmp_path: Path) -> None:
    """A missing cell, or a missing number in one, makes floats of all in Arrow's own conversion."""
    boxes = [{"id": IDS[0], "of": [{"n": IDS[1]}, {"n": None}]}, None, {"id": None, "of": []}]
    items = pd.DataFrame({"path": list("xyz"), "box": boxes, "lists": [[[IDS[2]], [None]], None, []]})
    Gallery.create(clustered(3), items).save(tmp_path / "saved")
    stored = Gallery.load(tmp_path / "saved").items
    assert stored["box"].iloc[0] == boxes[0]
    assert isinstance(stored["box"].iloc[0]["id"], int)
    assert stored["lists"].iloc[0] == [[IDS[2]], [None]]
    assert stored["box"].isna().tolist() == [False, True, False]


def test_a_mask_names_items_and_nothing_but_whole_numbers_are_ids(gallery: Gallery) -> None:
    gallery.remove([0])
    mask = gallery.items["path"].isin(["b", "f"])
    for given in (mask, mask.to_numpy(), mask.tolist(), mask[::-1], mask.astype("boolean")):
        assert gallery.rows(given)["path"].sort_index().tolist() == ["b", "f"]
        assert gallery.vectors(given).shape == (2, 16)
    for given, message in (
        ([1.5], "1.5"),
        (np.array([1.0]), "whole numbers"),
        (["1"], "whole numbers"),
        ([True, 2], "whole numbers"),
        ([True, False], "the mask has the shape"),
        (pd.Series([True] * 5), "no ids of items"),
        ([2**70], "no item"),
        (3, "shape"),
    ):
        for question in (gallery.remove, gallery.rows, gallery.vectors):
            with pytest.raises(GalleryError, match=message):
                question(given)  # type: ignore[arg-type]
    for exclude in ([True], [0.5]):
        with pytest.raises(GalleryError, match="exclude"):
            gallery.search(clustered(1), 1, exclude=exclude)  # type: ignore[arg-type]
    gallery.remove(mask)
    assert gallery.items["path"].tolist() == ["c", "d", "e"]
    gallery.remove([])
    assert len(gallery) == 3


def test_unsigned_numbers_beyond_int64_stay_exact_in_a_folder(tmp_path: Path) -> None:
    table = pd.DataFrame({"path": ["a", "b"], "code": np.array([2**64 - 1, 2**64 - 2], np.uint64)})
    gallery = Gallery.create(clustered(2), table)
    gallery.add(clustered(2), pd.DataFrame({"path": ["c", "d"], "code": [str(2**64 - 3), None]}))
    gallery.save(tmp_path / "g")
    loaded = Gallery.load(tmp_path / "g")
    assert loaded.items["code"].dropna().tolist() == [2**64 - 1, 2**64 - 2, 2**64 - 3]
    assert loaded.matching({"code": str(2**64 - 2)}).tolist() == [1]
    with pytest.raises(GalleryError, match="beyond"):
        loaded.add(clustered(1), pd.DataFrame({"path": ["e"], "code": [2**64]}))
