"""The gallery: exact answers, stable ids, filters, and a folder that is whole at every moment."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from proxygml import Gallery
from proxygml.errors import GalleryError, OverwriteError
from proxygml.gallery.approximate import ApproximateIndex
from proxygml.gallery.folder.gallery import FolderGallery
from proxygml.gallery.folder.manifest import Threshold
from proxygml.gallery.kinds import Kind
from proxygml.gallery.vectors import VectorRows
from tests.helpers.vectors import Array, clustered, in_blocks, items

INDEXED: tuple[Kind, ...] = ("hnsw", "ivfpq", "int8", "binary", "ivfbinary")
CODED = INDEXED[1:]


def sorted_similarities(queries: Array, vectors: Array, k: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """The slow, obvious search."""
    similarity = (queries[:, None].astype(np.float64) * vectors[None]).sum(-1).astype(np.float32)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, axis=1), order


@pytest.mark.parametrize("queries", [1, 2, 30])
def test_search_is_exact_with_ties_in_gallery_order(queries: int) -> None:
    vectors = np.repeat(clustered(60), 4, axis=0)[np.random.default_rng(0).permutation(240)]
    asked = np.concatenate([vectors[:20], clustered(10, seed=5)])[:queries]
    found = Gallery.create(vectors, items(240)).search(torch.from_numpy(asked), k=7)
    scores, order = sorted_similarities(asked, vectors, 7)
    assert np.array_equal(found.ids, order)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    row = found.rows(0).iloc[0]
    assert (row["rank"], row["id"], row["path"]) == (1, order[0, 0], f"/{order[0, 0]}.png")


def test_a_score_does_not_depend_on_batch_k_or_kind() -> None:
    vectors, asked = clustered(1500), clustered(40, seed=1)
    exact = Gallery.create(vectors, items(1500)).search(asked, 10)
    kinds: tuple[Kind, ...] = ("exact", *INDEXED)
    for kind in kinds:
        gallery = Gallery.create(vectors, items(1500), kind)
        for query in range(3):
            alone = gallery.search(asked[query : query + 1], 3)
            assert np.array_equal(alone.ids[0], exact.ids[query, :3])
            assert np.array_equal(alone.scores[0], exact.scores[query, :3])


@pytest.mark.parametrize("kind", INDEXED)
def test_approximate_kinds_state_what_they_lose(kind: Kind) -> None:
    vectors, asked = clustered(2000), clustered(100, seed=1)
    gallery = Gallery.create(vectors, items(2000), kind)
    found, exact = gallery.search(asked, 10).ids, sorted_similarities(asked, vectors, 10)[1]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])
    assert recall > 0.9
    assert gallery.manifest.recall is not None
    assert abs(gallery.manifest.recall - recall) < 0.08


@pytest.mark.parametrize("kind", ["exact", *INDEXED])
def test_filters_added_and_removed_items(kind: Kind) -> None:
    vectors, asked = clustered(1300), clustered(8, seed=1)
    gallery = Gallery.create(vectors[:1200], items(1200), kind)
    gallery.remove(np.arange(0, 1200, 5))
    ids = gallery.add(vectors[1200:], items(100, 1200))
    assert ids.tolist() == list(range(1200, 1300))
    alive = np.setdiff1d(np.arange(1300), np.arange(0, 1200, 5))
    assert len(gallery) == len(alive)
    for where, chosen in (
        (None, alive),
        ({"label": "c1"}, alive[alive % 3 == 1]),
        ({"label": ["c1", "c2"], "size": [*range(1150, 1300)]}, alive[(alive % 3 > 0) & (alive >= 1150)]),
        ({"size": 1201}, np.array([1201])),
    ):
        found = gallery.search(asked, 5, where).ids
        expected = chosen[sorted_similarities(asked, vectors[chosen], 5)[1]]
        assert np.isin(found, chosen).all()
        assert found.shape == expected.shape
        if kind == "exact":
            assert np.array_equal(found, expected)
        else:
            assert np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(found, expected, strict=True)]) > 0.8


@pytest.mark.parametrize("kind", ["exact", *INDEXED])
def test_saved_and_loaded_is_the_same(kind: Kind, tmp_path: Path) -> None:
    vectors, asked = clustered(1500), clustered(5, seed=1)
    gallery = Gallery.create(vectors[:1100], items(1100), kind, model="m", run="/r")
    gallery.save(tmp_path / "g")
    gallery.add(vectors[1100:], items(400, 1100))
    gallery.remove([3, 1105])
    gallery.save()
    loaded = Gallery.load(tmp_path / "g")
    assert (loaded.manifest.model, loaded.manifest.run, loaded.manifest.kind, len(loaded)) == ("m", "/r", kind, 1498)
    pd.testing.assert_frame_equal(loaded.items, gallery.items)
    assert np.array_equal(loaded.search(asked, 9).ids, gallery.search(asked, 9).ids)
    assert len(list((tmp_path / "g").glob("[!.]*"))) == (3 if kind == "exact" else 4)


def test_cells_of_added_items_become_what_their_columns_hold(tmp_path: Path) -> None:
    table = items(4).assign(sharp=[True, False, True, True], weight=[0.5, 1.5, None, 2.0], note=None)
    Gallery.create(clustered(4), table).save(tmp_path / "g")
    gallery = Gallery.load(tmp_path / "g")
    added = [
        {"path": "/a.png", "label": 7, "size": "12", "sharp": "False", "weight": "3", "note": "new"},
        {"path": "/b.png", "label": None, "size": 13.0, "sharp": True, "weight": 4, "shade": "dark"},
    ]
    for row in added:
        gallery.add(clustered(1), pd.DataFrame([row]))
    gallery.save()
    loaded = Gallery.load(tmp_path / "g").items
    assert loaded["label"].tolist()[:5] == ["c0", "c1", "c2", "c0", "7"]
    assert loaded["label"].isna().tolist() == [False] * 5 + [True]
    assert loaded["size"].tolist() == [0, 1, 2, 3, 12, 13]
    assert loaded["sharp"].tolist() == [True, False, True, True, False, True]
    assert loaded["weight"].dropna().tolist() == [0.5, 1.5, 2.0, 3.0, 4.0]
    assert (loaded["note"].dropna().tolist(), loaded["shade"].dropna().tolist()) == (["new"], ["dark"])
    for column, value in (("size", "many"), ("size", "inf"), ("sharp", "maybe"), ("weight", "heavy")):
        with pytest.raises(GalleryError, match=f"the column '{column}' holds"):
            gallery.add(clustered(1), pd.DataFrame([{"path": "/c.png", column: value}]))
    assert len(gallery) == 6


def test_cells_of_other_kinds_stay_what_they_are_or_are_refused(tmp_path: Path) -> None:
    days = pd.date_range("2021-01-31", periods=4)
    table = items(4).assign(
        day=days.date,
        time=days.astype("datetime64[us]"),
        zoned=days.tz_localize("Asia/Tokyo"),
        shade=pd.Categorical(["dark", "pale"] * 2),
        tags=[["a"], ["b", "c"]] * 2,
    )
    Gallery.create(clustered(4), table).save(tmp_path / "g")
    gallery = Gallery.load(tmp_path / "g")
    gallery.add(clustered(4), table.assign(time=days.astype("datetime64[ns]"), shade=["dark", "odd"] * 2))
    text = {"day": "2021-02-07", "time": "2021-02-07T12:30", "zoned": "2021-02-07 12:30+09:00", "shade": "red"}
    for row in ({}, {"tags": ["d"]}, text, dict.fromkeys(["day", "time", "zoned", "shade", "tags"])):
        gallery.add(clustered(1), pd.DataFrame([{"path": "/a.png", **row}]))
    gallery.save()
    loaded = Gallery.load(tmp_path / "g").items
    assert loaded["day"].tolist()[4:] == [*days.date, None, None, date(2021, 2, 7), None]
    assert loaded["time"].dropna().tolist() == [*days, *days, pd.Timestamp(text["time"])]
    assert loaded["zoned"].dropna().tolist()[8:] == [pd.Timestamp(text["zoned"])]
    assert loaded["shade"].dropna().tolist()[4:] == ["dark", "odd"] * 2 + ["red"]
    assert [list(tags) for tags in loaded["tags"].dropna()] == table["tags"].tolist() * 2 + [["d"]]
    for column, value, expected in (
        ("day", "soon", "dates.* 2021-01-31$"),
        ("day", "2021-01-31T12:00", "dates.* 2021-01-31$"),
        ("day", "", "dates"),
        ("time", "soon", "times.* 2021-01-31T12:00:00$"),
        ("time", "2021-01-31T12:00+09:00", "times"),
        ("zoned", "2021-01-31T12:00", r"times.* 2021-01-31T12:00:00\+09:00$"),
        ("tags", "a", "lists of text.*give a list"),
    ):
        with pytest.raises(GalleryError, match=f"the column '{column}' holds {expected}"):
            gallery.add(clustered(1), pd.DataFrame([{"path": "/c.png", column: value}]))


def test_whole_numbers_stay_what_they_are(tmp_path: Path) -> None:
    Gallery.create(clustered(4), items(4)).save(tmp_path / "g")
    gallery = Gallery.load(tmp_path / "g")
    for cell in ("9007199254740993", "-9223372036854775808", "3.0", "1e3"):
        gallery.add(clustered(1), pd.DataFrame([{"path": "/a.png", "size": cell}]))
    gallery.save()
    assert Gallery.load(tmp_path / "g").items["size"].tolist()[4:] == [9007199254740993, -(2**63), 3, 1000]
    for cell in (str(2**63), "1e30"):
        with pytest.raises(GalleryError, match=f"'size' holds whole numbers of 64 bits, but an item has '{cell}'"):
            gallery.add(clustered(1), pd.DataFrame([{"path": "/a.png", "size": cell}]))


@pytest.mark.parametrize("cell", ["soon", "inf"])
def test_of_many_cells_the_one_that_is_no_number_is_named(cell: str) -> None:
    gallery = Gallery.create(clustered(4), items(4))
    with pytest.raises(GalleryError, match=f"'size' holds whole numbers of 64 bits, but [a-z ]*'{cell}'"):
        gallery.add(clustered(3), items(3).assign(size=["2010", cell, "2011"]))
    with pytest.raises(GalleryError, match="'size' holds whole numbers of 64 bits, but 'soon' is none"):
        gallery.search(clustered(1), where={"size": ["2010", "soon"]})


def test_ids_are_never_given_twice_and_survive_compaction(tmp_path: Path) -> None:
    vectors = clustered(40)
    gallery = Gallery.create(vectors, items(40))
    gallery.save(tmp_path / "g")
    gallery.remove(range(20, 40))
    gallery.save()
    loaded = Gallery.load(tmp_path / "g")
    assert loaded.manifest.rows == 20
    assert loaded.add(vectors[30:31], items(1, 30)).tolist() == [40]
    loaded.save()
    found = Gallery.load(tmp_path / "g").search(vectors[30:31], 1)
    assert found.ids.tolist() == [[40]]
    assert found.rows()["path"].tolist() == ["/30.png"]


def test_excluded_and_reranked() -> None:
    vectors = clustered(300)
    gallery = Gallery.create(vectors, items(300))
    own = np.arange(20)
    found = gallery.search(vectors[:20], 6, exclude=own)
    assert not (found.ids == own[:, None]).any()
    assert np.array_equal(found.ids, gallery.search(vectors[:20], 7).ids[:, 1:])
    again = gallery.search(vectors[:20], 100, rerank=True)
    plain = gallery.search(vectors[:20], 100)
    assert np.array_equal(np.sort(again.ids), np.sort(plain.ids))
    assert not np.array_equal(again.ids, plain.ids)


def test_mistakes_are_named(tmp_path: Path) -> None:
    gallery = Gallery.create(clustered(10), items(10))
    for question, message in (
        (lambda: gallery.search(clustered(1, size=8)), "of size 8, but the gallery's of 16"),
        (lambda: gallery.search(clustered(1), 0), "k is 0"),
        (lambda: gallery.search(clustered(1), where={"lable": "x"}), "did you mean 'label'"),
        (lambda: gallery.search(clustered(1), where={"label": "x"}), "none has label=x"),
        (
            lambda: gallery.search(clustered(1), where={"size": "many"}),
            "holds whole numbers of 64 bits, but 'many' is none",
        ),
        (lambda: gallery.search(np.full((1, 16), np.nan, np.float32)), "NaN"),
        (lambda: gallery.search(np.zeros((1, 16), np.float32)), "all zeros"),
        (lambda: gallery.remove([11]), "no item 11"),
        (lambda: gallery.add(clustered(2), items(1)), "1 item, but 2 embeddings"),
        (lambda: gallery.add(clustered(1), items(1).assign(score=1)), "column 'score'"),
        (gallery.save, "no folder yet"),
        (lambda: Gallery.load(tmp_path), "is no gallery"),
        (lambda: Gallery.create(clustered(10), items(10), "ivfpq"), "at least 1,000 items"),
    ):
        with pytest.raises(GalleryError, match=message):
            question()


def test_damaged_galleries_are_refused(tmp_path: Path) -> None:
    Gallery.create(clustered(10), items(10)).save(tmp_path)
    manifest = tmp_path / "gallery.json"
    content = json.loads(manifest.read_text())
    for changed in (
        content | {"format": 1},
        content | {"vectors": "../x"},
        content | {"items": "y"},
        content | {"rows": 11},
        {"format": 1},
    ):
        manifest.write_text(json.dumps(changed))
        with pytest.raises(GalleryError):
            Gallery.load(tmp_path)
    for changed in ('{"format": 1}', "", "no JSON"):  # as the message says, it can be built again
        manifest.write_text(changed)
        Gallery.build(tmp_path, [(clustered(7), items(7))], force=True)
        assert len(Gallery.load(tmp_path)) == 7
        assert len(list(tmp_path.glob("vectors-*"))) == 1


@pytest.mark.parametrize("manifest", ['{"format": 1, "threshold": null}', "no JSON"])
def test_vectors_of_a_gallery_that_cannot_be_read_stay_until_another_is_whole(manifest: str, tmp_path: Path) -> None:
    vectors = clustered(10)
    Gallery.create(vectors, items(10)).save(tmp_path)
    served = Gallery.load(tmp_path)
    (tmp_path / "gallery.json").write_text(manifest)

    def stopping() -> Iterator[tuple[Array, pd.DataFrame]]:
        yield clustered(7, seed=1), items(7)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        Gallery.build(tmp_path, stopping(), force=True)
    (left,) = tmp_path.glob("vectors-*.f32")
    assert left.read_bytes() == vectors.tobytes()
    Gallery.build(tmp_path, [(clustered(7, seed=1), items(7))], force=True)
    assert np.array_equal(served.vectors(range(10)), vectors)
    assert not left.exists()


def test_a_gallery_stands_though_an_old_file_cannot_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "items-old.parquet").mkdir()  # which no unlink removes
    Gallery.build(tmp_path, in_blocks(20))
    assert len(Gallery.load(tmp_path)) == 20


def test_of_two_writers_the_second_is_refused(tmp_path: Path) -> None:
    Gallery.create(clustered(10), items(10)).save(tmp_path / "g")
    one, other = Gallery.load(tmp_path / "g"), Gallery.load(tmp_path / "g")
    one.remove([1])
    one.save()
    other.remove([2])
    with pytest.raises(OverwriteError, match="changed since"):
        other.save()
    assert len(Gallery.load(tmp_path / "g")) == 9
    with pytest.raises(OverwriteError, match="is a gallery already"):
        Gallery.create(clustered(10), items(10)).save(tmp_path / "g")


def _add_for_ever(folder: Path) -> None:
    while True:
        gallery = Gallery.load(folder)
        gallery.add(clustered(7), items(7))
        gallery.remove(gallery.items.index[:2])
        gallery.save()


def test_readers_beside_a_writer_see_whole_galleries_and_a_killed_writer_leaves_one(tmp_path: Path) -> None:
    Gallery.create(clustered(50), items(50)).save(tmp_path / "g")
    writer = multiprocessing.get_context("spawn").Process(target=_add_for_ever, args=(tmp_path / "g",))
    writer.start()
    sizes = set()
    try:
        deadline = time.monotonic() + 60
        while len(sizes) < 5 and time.monotonic() < deadline:
            gallery = Gallery.load(tmp_path / "g")
            assert (len(gallery) - 50) % 5 == 0
            assert gallery.search(clustered(1), 3).ids.shape == (1, 3)
            sizes.add(len(gallery))
    finally:
        writer.kill()
        writer.join()
    assert len(sizes) == 5
    gallery = Gallery.load(tmp_path / "g")
    gallery.add(clustered(1), items(1))
    gallery.save()
    assert len(Gallery.load(tmp_path / "g")) == len(gallery)


def test_build_holds_one_block_at_a_time_and_appears_whole(tmp_path: Path) -> None:
    vectors = clustered(100)

    def blocks() -> Iterator[tuple[Array, pd.DataFrame]]:
        for start in range(0, 100, 30):
            assert not (tmp_path / "g" / "gallery.json").exists()
            part = vectors[start : start + 30]
            yield part, items(len(part), start)

    built = Gallery.build(tmp_path / "g", blocks())
    assert built.items.index.tolist() == list(range(100))
    assert np.array_equal(Gallery.load(tmp_path / "g").search(vectors, 1).ids[:, 0], np.arange(100))


BUILD = """
import os, sys
from pathlib import Path
from proxygml import Gallery
from proxygml.gallery import approximate
from tests.helpers.vectors import in_blocks
folder, kind, stage = sys.argv[1:]
def stopping():
    for number, block in enumerate(in_blocks(6000)):
        if stage == "copying" and number == 3:
            os.kill(os.getpid(), 9)
        yield block
write = approximate.ApproximateIndex.write
def write_and_stop(index, path):
    write(index, path)
    if len(index) > 5000:
        os.kill(os.getpid(), 9)
approximate._CHECKPOINT_SECONDS = -1
approximate._ADDED_AT_A_TIME = 1000
if stage == "indexing":
    approximate.ApproximateIndex.write = write_and_stop
Gallery.build(folder, stopping(), kind, model="m", run="/r")
"""


@pytest.mark.parametrize(
    ("kind", "stage"),
    [("exact", "copying"), ("hnsw", "copying"), ("hnsw", "indexing"), ("ivfpq", "indexing"), ("int8", "indexing")],
)
def test_a_build_that_was_killed_is_not_there_and_goes_on(
    kind: Kind, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied vectors stay as they were written, and items as they were indexed."""
    folder = tmp_path / "g"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", BUILD, str(folder), kind, stage]
    killed = subprocess.run(command, cwd=root, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    with pytest.raises(GalleryError, match="is no gallery"):
        Gallery.load(folder)
    (begun,) = folder.glob("vectors-*")
    inside, kept = begun.stat().st_ino, begun.stat().st_size // (1000 * 16 * 4)
    assert 2 <= kept <= 3 if stage == "copying" else kept == 6  # what was in a buffer is lost
    untouched: list[bool] = []
    indexed: list[int] = []

    def watched() -> Iterator[tuple[Array, pd.DataFrame]]:
        for number, block in enumerate(in_blocks(6000)):
            if number == 0:
                os.utime(begun, (0, 0))  # whatever is written from here on sets it anew
            else:
                untouched.append(begun.stat().st_mtime == 0)
            yield block
        untouched.append(begun.stat().st_mtime == 0)

    add = ApproximateIndex.add

    def noted(self: ApproximateIndex, *arguments: Any) -> None:
        indexed.append(len(self))
        add(self, *arguments)

    monkeypatch.setattr(ApproximateIndex, "add", noted)
    built = Gallery.build(folder, watched(), kind, model="m", run="/r")
    assert isinstance(built, FolderGallery)
    assert untouched == [True] * kept + [False] * (6 - kept)
    assert (built.manifest.vectors, (folder / begun.name).stat().st_ino) == (begun.name, inside)
    assert indexed == ([] if kind == "exact" else [5000 if stage == "indexing" else 0])
    whole = Gallery.build(tmp_path / "whole", in_blocks(6000), kind, model="m", run="/r")
    pd.testing.assert_frame_equal(built.items, whole.items)
    found, expected = (gallery.search(clustered(50, seed=1), 5).ids for gallery in (built, whole))
    same = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, expected, strict=True)])
    assert same == 1 if kind == "exact" else same > 0.9
    assert len(list(folder.iterdir())) == (4 if kind == "exact" else 5)  # .lock among them: nothing is left over


FINISH = """
import os, sys, time
from tests.helpers.vectors import in_blocks
from proxygml import Gallery
def stop(gallery):
    time.sleep(2)  # milvus-lite goes on writing its file in the background, which is not ours to keep whole
    os.kill(os.getpid(), 9)
Gallery.build(sys.argv[1], in_blocks(1000), finish=stop)
"""


def test_a_gallery_is_not_there_before_its_threshold(place: str) -> None:
    """Killed while the threshold is chosen; the next build goes on, and chooses it."""
    command, root = [sys.executable, "-c", FINISH, place], Path(__file__).resolve().parents[2]
    assert subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == -9
    with pytest.raises(GalleryError, match="no gallery"):
        Gallery.load(place)
    threshold = Threshold(0.5, 0.01, None, 3, 2)
    Gallery.build(place, in_blocks(1000), finish=lambda gallery: gallery.set_threshold(threshold))
    assert Gallery.load(place).manifest.threshold == threshold


@pytest.mark.parametrize("left", [b"", b"x" * 100, b"x" * 10**6])
def test_what_another_build_has_left_is_not_taken_for_this_ones(left: bytes, tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "vectors-0.f32").write_bytes(clustered(100).tobytes() + left)
    built = Gallery.build(tmp_path / "g", [(clustered(300)[50:], items(250))])
    assert isinstance(built, FolderGallery)
    assert np.array_equal(built.vectors(range(250)), clustered(300)[50:])
    assert (tmp_path / "g" / built.manifest.vectors).stat().st_size == 250 * 16 * 4


def test_the_package_offers_the_gallery_without_loading_it() -> None:
    code = "import sys, proxygml; assert 'Gallery' in proxygml.__all__; print('proxygml.gallery.base' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_an_excluded_item_that_a_filter_leaves_out_costs_no_result(kind: Kind) -> None:
    items = pd.DataFrame({"label": ["a", "b", "b", "c"]})
    gallery = Gallery.create(np.eye(4, dtype=np.float32), items, kind)
    query = np.ones((1, 4))
    assert gallery.search(query, 5, {"label": "b"}, exclude=[0]).ids.tolist() == [[1, 2]]
    assert gallery.search(query, 5, {"label": "b"}, exclude=[0], rerank=True).ids.shape == (1, 2)
    assert gallery.search(query, 1, {"label": "c"}, exclude=[0]).ids.tolist() == [[3]]
    assert gallery.search(query, 5, {"label": "b"}, exclude=[1]).ids.tolist() == [[2]]
    assert gallery.search(query, 5, exclude=[-1]).ids.tolist() == [[0, 1, 2, 3]]
    both = gallery.search(np.ones((2, 4)), 5, {"label": "b"}, exclude=[0, 2])
    assert both.ids.tolist() == [[1], [1]]  # as many for each query
    with pytest.raises(GalleryError, match="no other item"):
        gallery.search(query, 5, {"label": "c"}, exclude=[3])


@pytest.mark.parametrize("number", ["1e399", "-1e399", "9" * 350, "inf", "nan"])
def test_a_number_that_no_float_holds_is_refused(number: str) -> None:
    gallery = Gallery.create(np.eye(2, dtype=np.float32), pd.DataFrame({"weight": [0.5, 1.5], "count": [1, 2]}))
    for column in ("weight", "count"):
        with pytest.raises(GalleryError, match=column):
            gallery.add(np.ones((1, 2)), pd.DataFrame([{column: number}]))


@pytest.mark.parametrize("kind", INDEXED)
def test_a_full_disk_is_named_where_an_index_is_written(kind: Kind) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no device that is always full")
    index = ApproximateIndex.build(kind, VectorRows(clustered(3000)))
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        index.write(full)


def test_a_build_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    items = pd.DataFrame({"removed": [1, 2]})
    with pytest.raises(GalleryError, match="a column 'removed'"):
        Gallery.build(tmp_path / "new", [(np.eye(2, dtype=np.float32), items)])
    assert not list(tmp_path.iterdir())


def test_a_column_of_your_own_may_be_called_file_stamp(tmp_path: Path) -> None:
    items = pd.DataFrame({"file_stamp": ["a", "b"]})
    Gallery.build(tmp_path / "new", [(np.eye(2, dtype=np.float32), items)])
    assert Gallery.load(tmp_path / "new").items["file_stamp"].tolist() == ["a", "b"]


@pytest.mark.parametrize("kind", CODED)
def test_codes_alone_give_their_own_scores_and_the_second_look_the_exact_ones(kind: Kind, tmp_path: Path) -> None:
    vectors, asked = clustered(1500, 32), clustered(40, 32, seed=1)
    exact = Gallery.create(vectors, items(1500)).search(asked, 10)
    second, alone = (Gallery.create(vectors, items(1500), kind, refine=refine) for refine in (20, 0))
    alone.save(tmp_path / "g")
    loaded = Gallery.load(tmp_path / "g")
    assert (loaded.manifest.refine, second.manifest.refine) == (0, 20)
    found, rough = second.search(asked, 10), loaded.search(asked, 10)
    assert np.isin(found.scores, exact.scores).mean() > 0.95
    assert not np.isin(rough.scores, exact.scores).any()
    assert (np.diff(rough.scores) <= 0).all()
    assert np.abs(rough.scores).max() <= 1
    overlap = [np.mean(np.isin(one, other)) for one, other in zip(rough.ids, exact.ids, strict=True)]
    assert 0.4 < np.mean(overlap) < 1
    assert loaded.manifest.recall == loaded.manifest.code_recall == second.manifest.code_recall
    assert second.manifest.recall is not None
    assert second.manifest.code_recall is not None
    assert second.manifest.recall > second.manifest.code_recall
    assert second.manifest.recall > 0.95


def test_codes_alone_find_new_items_and_pass_filters() -> None:
    vectors = clustered(1500, 32)
    gallery = Gallery.create(vectors[:1400], items(1400), "int8", refine=0)
    gallery.add(vectors[1400:], items(100, 1400))
    gallery.remove([1401])
    assert gallery.search(vectors[1450:1451], 1).ids.tolist() == [[1450]]
    assert gallery.search(vectors[1401:1402], 5, {"label": "c1"}).rows(0)["label"].tolist() == ["c1"] * 5
    assert 1401 not in gallery.search(vectors[1401:1402], 20).ids
    assert gallery.search(vectors[7:8], 3, {"size": [7, 8]}).ids.tolist() == [[7, 8]]  # few: searched exactly


@pytest.mark.parametrize(("kind", "most"), [("int8", 33), ("binary", 21), ("ivfbinary", 33)])
def test_a_saved_index_of_codes_is_as_small_as_it_says(kind: Kind, most: int, tmp_path: Path) -> None:
    """A byte a number; a bit a number and 8 bytes; the same with an id. The rotation, 4 KiB, is shared."""
    Gallery.create(clustered(4000, 32), items(4000), kind).save(tmp_path / "g")
    loaded = Gallery.load(tmp_path / "g")
    (stored,) = (tmp_path / "g").glob("index-*")
    assert loaded.index_bytes == stored.stat().st_size / 4000 < most
    assert Gallery.create(clustered(40), items(40)).index_bytes is None


def test_what_a_kind_cannot_do_is_named() -> None:
    vectors, table = clustered(120), items(120)
    for question, message in (
        (lambda: Gallery.create(vectors, table, "int4"), "kind is 'int4', but must be one of exact, hnsw, ivfpq, int8"),
        (lambda: Gallery.create(vectors, table, "hnsw", refine=3), "a gallery of kind hnsw compares the exact vectors"),
        (lambda: Gallery.create(vectors, table, "exact", refine=0), "refine is 0, but a gallery of kind exact"),
        (lambda: Gallery.create(vectors, table, "int8", refine=-1), "refine is -1"),
        (lambda: Gallery.create(vectors[:50], table[:50], "int8"), "int8 needs at least 100 items, but there are 50"),
        (lambda: Gallery.create(clustered(120, 4), table, "binary"), "vectors of at least 8 numbers, but these have 4"),
        (lambda: Gallery.create(vectors, table, "ivfbinary"), "at least 1,000 items"),
    ):
        with pytest.raises(GalleryError, match=message):
            question()


@pytest.mark.parametrize("kind", CODED)
def test_a_gallery_that_shrinks_below_what_codes_need_is_searched_exactly(kind: Kind, tmp_path: Path) -> None:
    gallery = Gallery.create(clustered(1100), items(1100), kind)
    gallery.save(tmp_path / "g")
    gallery.remove(np.arange(1050))
    gallery.save()
    loaded = Gallery.load(tmp_path / "g")
    assert (len(loaded), loaded.manifest.recall, loaded.index_bytes) == (50, None, None)
    exact = Gallery.create(clustered(1100)[1050:], items(50, 1050)).search(clustered(3), 5)
    assert np.array_equal(loaded.search(clustered(3), 5).ids, exact.ids + 1050)
    loaded.add(clustered(1200, seed=3), items(1200, 2000))
    loaded.save()
    assert Gallery.load(tmp_path / "g").index_bytes is not None


def test_the_records_of_an_answer_are_its_rows() -> None:
    table = items(40).assign(when=pd.Timestamp("2026-01-02"), flag=pd.array([True, None] * 20, dtype="boolean"))
    found = Gallery.create(clustered(40), table).search(clustered(3, seed=1), 5)
    for query in range(3):
        rows = found.rows(query)
        pd.testing.assert_frame_equal(pd.DataFrame(found.records(query)), rows, check_dtype=False)
        assert [list(row) for row in found.records(query, without={"path", "when"})] == [
            ["rank", "score", "id", "label", "size", "flag"]
        ] * 5


def test_many_records_are_as_few_are_and_the_table_need_not_be_sorted() -> None:
    table = items(300).assign(flag=pd.array([True, None] * 150, dtype="boolean"), size=np.arange(300) / 7)
    found = Gallery.create(clustered(300), table).search(clustered(2, seed=1), 250)
    shuffled = replace(found, table=found.table.sample(frac=1, random_state=0))
    for query in range(2):
        for result in (found, shuffled):
            pd.testing.assert_frame_equal(pd.DataFrame(result.records(query)), found.rows(query), check_dtype=False)
    assert found.cells("label") == [row["label"] for query in range(2) for row in found.records(query)]
