"""The gallery in Milvus, through milvus-lite: the folder's answers, whole, going on, and safe from its own labels."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proxygml import Gallery
from proxygml.errors import EmptyGalleryError, GalleryError, OverwriteError
from proxygml.gallery.backend import Addition
from proxygml.gallery.folder.manifest import Threshold
from proxygml.gallery.kinds import Kind
from proxygml.gallery.milvus.address import Address, is_milvus
from proxygml.gallery.milvus.connection import connect
from proxygml.gallery.milvus.gallery import MilvusGallery
from proxygml.gallery.milvus.manifest import change_manifest, publish, stored_manifest
from tests.helpers.commands import refused
from tests.helpers.commands import run as command
from tests.helpers.models import untrained
from tests.helpers.places import place_for
from tests.helpers.vectors import Array, blocks, clustered, items

pytest.importorskip("pymilvus", reason="the extra milvus is not installed")
pytest.importorskip("milvus_lite", reason="the extra milvus is not installed")

Capture = pytest.CaptureFixture[str]

HOSTILE = ['a"b', "a\\", '\\"', "it's", "é漢字🙂", "two\nlines", "a\rb\tc", "{x}", "%s", "", " ", "\u2028", "nul\x01"]
HOSTILE += ['x"]) or id >= 0 or label in ["', "' or 1 == 1 or '", "id", "true"]


def in_milvus(place: str, vectors: Array, table: pd.DataFrame, kind: Kind = "exact", **options: bool) -> Gallery:
    return Gallery.build(place, blocks(vectors, table), kind, model="m", run="/r", **options)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_the_same_answers_as_from_a_folder(kind: Kind, milvus_place: str) -> None:
    """Filters, additions and removals included; copies of a vector tie, and rank in the order of the gallery."""
    vectors, asked = clustered(1300), clustered(20, seed=1)
    vectors[600:700] = vectors[0]
    asked[0] = vectors[0]
    milvus = in_milvus(milvus_place, vectors[:1200], items(1200), kind)
    folder = Gallery.create(vectors[:1200], items(1200))
    for gallery in (milvus, folder):
        gallery.remove(np.arange(0, 1200, 5))
        assert gallery.add(vectors[1200:], items(100, 1200).assign(shade=0.5)).tolist() == list(range(1200, 1300))
    milvus.save()
    for gallery in (milvus, Gallery.load(milvus_place)):
        assert (len(gallery), gallery.columns) == (len(folder), folder.columns)
        for where in (None, {"label": "c1"}, {"label": ["c1", "c2"], "size": [*range(1150, 1300)]}, {"shade": "0.5"}):
            found, expected = gallery.search(asked, 7, where), folder.search(asked, 7, where)
            if kind == "exact":
                assert np.array_equal(found.ids, expected.ids)
                np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
                pd.testing.assert_frame_equal(found.rows(3), expected.rows(3), check_dtype=False)
            else:
                pairs = zip(found.ids[1:], expected.ids[1:], strict=True)  # of the copies it may find any
                assert np.mean([len(set(a) & set(b)) / 7 for a, b in pairs]) > 0.9
            assert np.array_equal(gallery.matching(where or {}), folder.matching(where or {}))
        pd.testing.assert_frame_equal(gallery.items, folder.items)
        assert np.array_equal(gallery.vectors([1299, 1, 4]), folder.vectors([1299, 1, 4]))
        own = np.array([1, 2, 3])
        assert np.array_equal(
            gallery.search(vectors[own], 1200, exclude=own).ids, folder.search(vectors[own], 1200, exclude=own).ids
        )
    if kind == "exact":
        found, expected = (gallery.search(asked, 9, rerank=True).ids for gallery in (milvus, folder))
        assert np.array_equal(found, expected)
    else:
        assert milvus.manifest.recall is not None
        assert milvus.manifest.recall > 0.9


def test_columns_and_hostile_values_stay_what_they_are(milvus_place: str) -> None:
    table = pd.DataFrame({"label": HOSTILE, "path": HOSTILE[::-1], 'a "b\\': HOSTILE, "in": range(len(HOSTILE))})
    table = table.assign(
        **{"truth": [True, False] * 8 + [True], "part": np.arange(len(HOSTILE)) / 4, "Straße": HOSTILE}
    )
    table["gap"] = [None, "x"] * 8 + [None]
    vectors = clustered(len(table))
    milvus, folder = in_milvus(milvus_place, vectors, table), Gallery.create(vectors, table)
    pd.testing.assert_frame_equal(milvus.items, folder.items)
    for number, text in enumerate(HOSTILE):
        for column in ("label", 'a "b\\', "Straße"):
            assert milvus.matching({column: text}).tolist() == [number]
        assert milvus.search(vectors[:1], 5, {"label": [text, "none"]}).ids.tolist() == [[number]]
    assert np.array_equal(milvus.ids_of(table, ["path"]), np.arange(len(table)))
    for where in ({"truth": True}, {"truth": "False"}, {"in": "3"}, {"in": [2.5, 4]}, {"part": 0.75}, {"gap": "x"}):
        assert np.array_equal(milvus.matching(where), folder.matching(where)), where


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(tmp_path / "g.db")
    gallery = in_milvus(place, clustered(10), items(10))
    for question, message in (
        (lambda: gallery.search(clustered(1, size=8)), "of size 8, but the gallery's of 16"),
        (lambda: gallery.search(clustered(1), 0), "k is 0"),
        (lambda: gallery.search(clustered(1), 20_000), "no more than about 16,384"),
        (lambda: gallery.search(clustered(1), where={"lable": "x"}), "did you mean 'label'"),
        (lambda: gallery.search(clustered(1), where={"label": "x"}), "none has label=x"),
        (
            lambda: gallery.search(clustered(1), where={"size": "many"}),
            "holds whole numbers of 64 bits, but 'many' is none",
        ),
        (lambda: gallery.remove([11]), "no item 11"),
        (lambda: gallery.vectors([11]), "no item 11"),
        (
            lambda: gallery.add(clustered(1), items(1).assign(size="large")),
            "holds whole numbers of 64 bits, but an item has 'large'",
        ),
        (lambda: gallery.save(tmp_path / "h"), "saved there"),
        (lambda: Gallery.load(tmp_path / "none.db"), "there is no .*none.db"),
        (lambda: Gallery.load(f"{place}#other"), "holds no gallery 'other'"),
        (lambda: Gallery.load(f"{place}#a b"), "cannot name a gallery"),
        (
            lambda: in_milvus(str(tmp_path / "i.db"), clustered(2000), items(2000), "ivfpq"),
            "milvus-lite, which has no ivfpq",
        ),
        (
            lambda: in_milvus(str(tmp_path / "i.db"), clustered(2000), items(2000), "ivfbinary"),
            "milvus-lite, which has no ivfbinary: choose exact or hnsw",
        ),
        (
            lambda: in_milvus(str(tmp_path / "i.db"), clustered(2000), items(2000), "binary"),
            "Milvus keeps binary codes in lists alone: choose ivfbinary",
        ),
        (lambda: Gallery.create(clustered(10), items(10)).save(tmp_path / "s.db"), "Gallery.build"),
    ):
        with pytest.raises(GalleryError, match=message):
            question()
    with pytest.raises(OverwriteError, match="is a gallery already"):
        in_milvus(place, clustered(5), items(5))
    assert len(in_milvus(place, clustered(5), items(5), force=True)) == 5
    with pytest.raises(GalleryError, match="load it again"):
        gallery.search(clustered(1))
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(GalleryError, match=r"pip install .*\[milvus\]"):
        Gallery.load(place)


def test_addresses() -> None:
    assert [is_milvus(place) for place in ("a.db", Path("a.db"), "a.db#b", "https://h", "folder", "http", "db")] == [
        True, True, True, True, False, False, False
    ]  # fmt: skip
    address = Address.parse("http://me:secret@host:19530/shop#photos")
    assert (address.uri, address.name) == ("http://me:secret@host:19530/shop", "photos")
    assert str(address) == "http://host:19530/shop#photos"


def test_additions_and_removals_count_from_save_on_and_stopped_ones_never(milvus_place: str) -> None:
    vectors, place = clustered(60), milvus_place
    in_milvus(place, vectors[:40], items(40))
    stopped = Gallery.load(place)
    stopped.add(vectors[40:50], items(10, 40))
    stopped.remove([0])
    assert len(stopped) == 49
    reader = Gallery.load(place)
    assert len(reader) == 40
    assert reader.search(vectors[:1], 60).ids.shape == (1, 40)
    assert reader.search(vectors[45:46], 1).ids[0, 0] < 40
    writer = Gallery.load(place)
    assert writer.add(vectors[50:], items(10, 50)).tolist() == list(range(50, 60))  # no id is given twice
    writer.set_threshold(Threshold(0.5, 0.01, None, 3, 2))
    writer.remove([1])
    writer.save()
    with pytest.raises(OverwriteError, match="changed since"):
        stopped.save()
    for gallery in (writer, Gallery.load(place)):
        assert sorted(gallery.items.index) == [0, *range(2, 40), *range(50, 60)]
        assert gallery.search(vectors[:1], 60).ids.shape == (1, 49)
        assert gallery.manifest.threshold == Threshold(0.5, 0.01, None, 3, 2)


BUILD = """
import os, sys
from pathlib import Path
from tests.helpers.vectors import blocks, clustered, items
from proxygml import Gallery
def stopping():
    for number, block in enumerate(blocks(clustered(2000), items(2000))):
        if number == 3:
            os.kill(os.getpid(), 9)
        yield block
Gallery.build(sys.argv[1], stopping(), "exact", model="m", run="/r")
"""


def test_a_build_that_was_killed_is_not_there_and_goes_on(
    milvus_place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, root = milvus_place, Path(__file__).resolve().parents[2]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    killed = subprocess.run([sys.executable, "-c", BUILD, place], cwd=root, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    with pytest.raises(GalleryError, match="holds no gallery"):
        Gallery.load(place)
    notes = Address.parse(place).work("building") / "blocks.json"
    before = json.loads(notes.read_text())
    assert len(before["blocks"]) == 3
    vectors, table = clustered(2000), items(2000)
    built = in_milvus(place, vectors, table)
    assert isinstance(built, MilvusGallery)
    assert built.manifest.collection == before["collection"]  # the same collection went on
    whole = Gallery.create(vectors, table)
    pd.testing.assert_frame_equal(built.items, whole.items)
    assert np.array_equal(built.search(vectors[::50], 5).ids, whole.search(vectors[::50], 5).ids)
    assert not notes.parent.exists()


def test_a_stopped_build_of_other_items_is_begun_anew_where_they_differ(milvus_place: str) -> None:
    place, vectors = milvus_place, clustered(1200)

    def broken() -> Iterator[tuple[Array, pd.DataFrame]]:
        for number, block in enumerate(blocks(vectors, items(1200))):
            if number == 2:
                raise RuntimeError("stopped")
            yield block

    for first in (0, 400):  # the first block differs, the second one
        with pytest.raises(RuntimeError, match="stopped"):
            Gallery.build(place, broken(), "exact", model="m", run="/r", force=True)
        table = items(1200)
        table.loc[first, "label"] = "changed"
        built = in_milvus(place, vectors, table, force=True)
        pd.testing.assert_frame_equal(built.items, Gallery.create(vectors, table).items)


def test_the_commands_take_a_gallery_in_milvus(
    milvus_place: str, small_catalog: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    place = "../g.db" if milvus_place.endswith(".db") else milvus_place
    run_folder, photos, out = untrained(tmp_path / "run"), small_catalog.parent, tmp_path / "a.csv"
    command("index", run_folder, "--catalog", small_catalog, "--out", place, "--workers", 0, "--split", "test")
    assert f"48 items, exact: {place}" in capsys.readouterr().out
    assert "is a gallery already" in refused(capsys, "index", run_folder, "--images", photos, "--out", place)
    command("index", "--add", "--out", place, "--images", photos, "--workers", 0)
    assert "96 items added (48 were in it already), 144 now" in capsys.readouterr().out
    command("index", "--remove", "id=0", "id=3", "--out", place)
    command("index", "--remove", "label=class 13", "--out", place)
    assert "8 items removed, 134 now" in capsys.readouterr().out
    command("search", place, photos, "--k", 1, "--leave-out-itself", "--rerank", "--out", out, "--workers", 1)
    answers = pd.read_csv(out)
    assert len(answers) == 144
    assert not (answers["path"] == answers["query"]).any()
    assert not (answers["label"] == "class 13").any()
    command("index", "--verify", "--out", place)
    assert "134 items, each is there once and can be read" in capsys.readouterr().out
    assert not list((tmp_path / "here").iterdir())


def test_of_many_that_replace_the_manifest_each_changes_what_the_others_left(milvus_place: str) -> None:
    in_milvus(milvus_place, clustered(10), items(10))
    connection = connect(Address.parse(milvus_place))

    def count(_: int) -> int:
        return change_manifest(connection, lambda stored: replace(stored, next_id=stored.next_id + 1)).next_id

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(count, range(30))) == list(range(11, 41))
    old = stored_manifest(connection)
    for _ in range(3):
        change_manifest(connection, lambda stored: replace(stored, recall=0.5))
    assert not publish(connection, old)  # its name is free again, but it was replaced
    assert not publish(connection, replace(old, generation=old.generation + 1))
    assert stored_manifest(connection).recall == 0.5
    own = f"{connection.address.name}_manifest_"
    assert len([name for name in connection.collections() if name.startswith(own)]) == 1


def test_any_number_of_writers_make_single_changes_at_the_same_time(milvus_place: str) -> None:
    """What one has made the others find; a column that is new to the gallery, and a wrong cell, are among it."""
    vectors = clustered(200)
    in_milvus(milvus_place, vectors[:40], items(40))
    galleries = [Gallery.load(milvus_place) for _ in range(4)]

    def write(number: int) -> list[int]:
        gallery, ids = galleries[number], []
        for step in range(5):
            rows = [40 + 40 * number + 8 * step + place for place in range(8)]
            additions = [Addition(vectors[row], {"path": f"/{row}.png", "size": str(row), "new": "x"}) for row in rows]
            wrong = Addition(vectors[0], {"path": "/wrong.png", "size": "many"})
            galleries[number], results = gallery.change_at_once([*additions, wrong, 10 * number + step, 10**6])
            ids += [result for result in results[:8] if isinstance(result, int)]
            assert isinstance(results[8], GalleryError) and "holds whole numbers" in str(results[8])
            assert results[9] == 10 * number + step and isinstance(results[10], GalleryError)
            reader = Gallery.load(milvus_place)
            assert reader.rows(ids[-8:])["size"].tolist() == rows
        return ids

    with ThreadPoolExecutor(4) as pool:
        ids = [number for some in pool.map(write, range(4)) for number in some]
    for gallery in (*(gallery.refreshed() for gallery in galleries), Gallery.load(milvus_place)):
        assert len(gallery) == 40 + 160 - 20
        table = gallery.items
        assert table.index.is_unique and set(ids) < set(table.index)
        assert sorted(table.loc[ids, "size"]) == list(range(40, 200)) and set(table.loc[ids, "new"]) == {"x"}
        assert gallery.search(vectors[150:151], 1).rows()["path"].tolist() == ["/150.png"]
    newest = galleries[0].refreshed()
    assert newest.refreshed() is newest


def test_single_changes_do_not_disturb_one_who_saves_later(milvus_place: str) -> None:
    vectors = clustered(30)
    in_milvus(milvus_place, vectors[:10], items(10))
    saving, single = Gallery.load(milvus_place), Gallery.load(milvus_place)
    saving.add(vectors[10:20], items(10, 10))
    single.change_at_once([Addition(vectors[20], {"path": "/single"}), 3])
    saving.remove([5])
    saving.save()
    loaded = Gallery.load(milvus_place)
    assert sorted(loaded.items["path"]) == sorted(["/single", *(f"/{n}.png" for n in range(20) if n not in (3, 5))])
    everything = Gallery.load(milvus_place)
    assert isinstance(everything, MilvusGallery)
    assert everything.manifest.pending == [] and everything.manifest.removing == []


def test_the_last_item_stays(milvus_place: str) -> None:
    gallery = in_milvus(milvus_place, clustered(3), items(3))
    gallery, results = gallery.change_at_once([0, 1, 2])
    assert sum(isinstance(result, EmptyGalleryError) for result in results) == 1
    assert len(gallery) == 1


KILLED = """
import os, sys, time
from proxygml import Gallery
from proxygml.gallery.milvus.connection import Connection
from tests.helpers.vectors import blocks, clustered, items
Gallery.build(sys.argv[1], blocks(clustered(60)[:40], items(40)))
gallery = Gallery.load(sys.argv[1])
gallery.add(clustered(60)[40:50], items(10, 40))
gallery.remove(range(5))
Connection.delete = lambda *_: time.sleep(2) or os.kill(os.getpid(), 9)  # milvus-lite writes in the background
gallery.save()
"""


def test_a_writer_that_is_killed_after_saving_has_removed_all_and_added_all(milvus_place: str) -> None:
    """Though what it removed is still there; the next one that saves deletes it."""
    vectors, root = clustered(60), Path(__file__).resolve().parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, milvus_place], cwd=root, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    gallery = Gallery.load(milvus_place)
    assert isinstance(gallery, MilvusGallery)
    assert gallery.items.index.tolist() == list(range(5, 50))
    assert gallery.search(vectors[:1], 50).ids.shape == (1, 45)
    gallery.add(vectors[50:], items(10, 50))
    gallery.save()
    connection = connect(Address.parse(milvus_place))
    assert connection.count(gallery.manifest.collection, "id > -9000000000000000000") == 55
    assert Gallery.load(milvus_place).items.index.tolist() == list(range(5, 60))


def test_a_search_goes_on_while_others_remove_what_it_finds(milvus_place: str) -> None:
    vectors = clustered(300)
    gallery = in_milvus(milvus_place, vectors, items(300))
    writer = Gallery.load(milvus_place)

    def remove() -> None:
        for start in range(0, 200, 20):
            writer.change_at_once(list(range(start, start + 20)))

    with ThreadPoolExecutor(1) as pool:
        removing = pool.submit(remove)
        while not removing.done():
            assert len(gallery.search(vectors[:3], 20).rows(0)) == 20
        removing.result()
    assert gallery.search(vectors[:1], 300).ids.shape == (1, 100)


@pytest.mark.parametrize("kind", ["ivfpq", "int8"])
def test_a_server_has_codes(kind: Kind, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With filters, additions and removals; milvus-lite has none."""
    place, vectors, asked = place_for("milvus", tmp_path, request), clustered(3000), clustered(20, seed=1)
    made, folder = in_milvus(place, vectors[:2900], items(2900), kind), Gallery.create(vectors, items(3000))
    made.add(vectors[2900:], items(100, 2900))
    for gallery in (made, folder):
        gallery.remove(np.arange(0, 2900, 5))
    made.save()
    assert made.manifest.recall is not None and made.manifest.recall > 0.9
    assert made.manifest.code_recall is not None and 0.5 < made.manifest.code_recall <= made.manifest.recall
    for gallery in (made, Gallery.load(place)):
        for where in (None, {"label": "c1"}, ["size>=2880"]):
            found, expected = gallery.search(asked, 7, where), folder.search(asked, 7, where)
            pairs = zip(found.ids, expected.ids, strict=True)
            assert np.mean([len(set(a) & set(b)) / 7 for a, b in pairs]) > 0.9
        assert np.array_equal(gallery.matching(["size>=2880"]), folder.matching(["size>=2880"]))


def test_codes_alone_on_a_server_give_their_own_scores(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = place_for("milvus", tmp_path, request)
    vectors, asked = clustered(2000), clustered(20, seed=1)
    Gallery.build(place, blocks(vectors, items(2000)), "int8", refine=0)
    gallery, exact = Gallery.load(place), Gallery.create(vectors, items(2000)).search(asked, 7)
    found = gallery.search(asked, 7)
    assert gallery.manifest.recall == gallery.manifest.code_recall
    assert np.mean([len(set(a) & set(b)) / 7 for a, b in zip(found.ids, exact.ids, strict=True)]) > 0.8
    assert 0 < np.abs(found.scores - exact.scores).max() < 0.05


def test_a_server_without_binary_codes_is_named(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = place_for("milvus", tmp_path, request)
    with pytest.raises(GalleryError, match=r"is Milvus 2\.3, but ivfbinary needs 2\.6"):
        in_milvus(place, clustered(2000), items(2000), "ivfbinary")
