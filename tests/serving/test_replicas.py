"""Several processes serve and change one gallery: what one does the others find, and a killed one harms nothing."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from proxygml import Gallery
from proxygml.data.catalog import Catalog
from proxygml.serving.limits import Limits
from tests.helpers.commands import run as command
from tests.helpers.milvus_server import MilvusServer
from tests.helpers.models import untrained
from tests.helpers.places import place_for
from tests.helpers.server import AUTHORISED, TIMES, Running, gallery_at, picture, post

httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")
ImageStore = pytest.importorskip("proxygml.serving.image_store").ImageStore

pytestmark = pytest.mark.xdist_group("serve")


@pytest.fixture(params=["folder", "memory://added/images"])
def added_images(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "added") if request.param == "folder" else request.param
    fsspec.filesystem("memory").store.clear()


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def files_in(place: str) -> list[str]:
    files, root = fsspec.url_to_fs(place)
    return sorted(files.ls(root, detail=False)) if files.exists(root) else []


def test_what_one_replica_adds_and_removes_the_others_find_and_miss(
    run_folder: Path, small_catalog: Path, tmp_path: Path, added_images: str, request: pytest.FixtureRequest
) -> None:
    place = gallery_at(place_for("milvus", tmp_path, request), run_folder, small_catalog)
    with (
        Running(place, run_folder, Limits(), added_images=added_images) as one,
        Running(place, run_folder, Limits(), added_images=added_images) as other,
        httpx.Client(base_url=one.address, **TIMES) as first,
        httpx.Client(base_url=other.address, **TIMES) as second,
    ):
        assert first.get("/gallery").json()["changes"] is True
        for number, (here, there) in enumerate(((first, second), (second, first)) * 3):
            data = picture(number, "JPEG", 64)
            added = post(here, "/items", data, column=f"label=new {number}")
            assert added.status_code == 201
            item = added.json()["id"]
            found = post(there, "/search", data, k=1).json()["items"]
            assert [(one["id"], one["label"]) for one in found] == [(item, f"new {number}")]
            assert there.get(f"/items/{item}/image").content == here.get(f"/items/{item}/image").content
            assert len(there.get(f"/items/{item}/neighbors").json()["items"]) == 10
            assert len(files_in(added_images)) == 1
            assert there.delete(f"/items/{item}", headers=AUTHORISED).status_code == 204
            assert post(here, "/search", data, k=1, where=f"label=new {number}").status_code == 422
            assert here.get(f"/items/{item}/neighbors").status_code == 404
            assert here.delete(f"/items/{item}", headers=AUTHORISED).status_code == 404
            assert not files_in(added_images)
        refused = [post(first, "/items", picture(), column="label=a\x01"), post(first, "/items", b"none")]
        assert [answer.status_code for answer in refused] == [422, 415] and not files_in(added_images)
        wait_until(lambda: second.get("/health").json()["items"] == 48)
    assert len(Gallery.load(place)) == 48


def test_a_gallery_in_milvus_lite_takes_changes(run_folder: Path, small_catalog: Path, tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite", reason="the extra milvus is not installed")
    place, images = gallery_at(str(tmp_path / "g.db"), run_folder, small_catalog), tmp_path / "added"
    with (
        Running(place, run_folder, Limits(), added_images=images) as running,
        httpx.Client(base_url=running.address, **TIMES) as client,
    ):
        item = post(client, "/items", picture(5), column="label=new").json()["id"]
        assert post(client, "/search", picture(5), k=1).json()["items"][0]["id"] == item
        assert client.get("/health").json()["items"] == 49
        assert client.delete("/items/3", headers=AUTHORISED).status_code == 204
        assert client.get("/items/3/image").status_code == 404
    assert sorted(set(Gallery.load(place).items.index) ^ set(range(48))) == [3, item]


@pytest.mark.parametrize("backend", ["folder", "milvus"])
def test_what_a_command_changes_is_served_within_seconds_and_no_search_fails(
    backend: str, run_folder: Path, small_catalog: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = gallery_at(place_for(backend, tmp_path, request), run_folder, small_catalog)
    statuses, stop = set(), threading.Event()
    with Running(place, run_folder, Limits()) as running:

        def ask() -> None:
            with httpx.Client(base_url=running.address, **TIMES) as client:
                while not stop.is_set():
                    statuses.add(post(client, "/search", picture(), k=5).status_code)

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        try:
            with httpx.Client(base_url=running.address, **TIMES) as client:
                command("index", "--add", "--images", small_catalog.parent, "--out", place, "--workers", 0)
                wait_until(lambda: client.get("/health").json()["items"] == 144)
                train = Catalog.read(small_catalog).split("train").paths[0]
                found = post(client, "/search", train.read_bytes(), k=1).json()["items"][0]
                assert found["id"] >= 48 and found["score"] > 0.999
                command("index", "--remove", "label=class 13", "--out", place)
                wait_until(lambda: client.get("/health").json()["items"] == 136)
                assert post(client, "/search", picture(), where="label=class 13").status_code == 422
                command("index", run_folder, "--catalog", small_catalog, "--split", "test", "--out", place, "--force")
                wait_until(lambda: client.get("/health").json()["items"] == 48)
        finally:
            stop.set()
            for thread in asking:
                thread.join()
    assert statuses == {200} or (backend == "milvus" and statuses == {200, 503})  # while its collection is replaced


def test_a_gallery_built_anew_with_another_model_is_not_mixed_with_the_servers(
    run_folder: Path, small_catalog: Path, tmp_path: Path
) -> None:
    place = gallery_at(tmp_path / "g", run_folder, small_catalog)
    other = untrained(tmp_path / "other", seed=1)
    with (
        Running(place, run_folder, Limits()) as running,
        httpx.Client(base_url=running.address, **TIMES) as client,
    ):
        command("index", other, "--catalog", small_catalog, "--out", place, "--force", "--workers", 0)
        wait_until(lambda: client.get("/health").status_code == 503)
        assert "another model" in client.get("/health").json()["error"]
        assert len(post(client, "/search", picture(), k=50).json()["items"]) == 48  # of the gallery that it began with


def test_images_that_no_item_shows_are_deleted_wherever_they_are(
    run_folder: Path, small_catalog: Path, tmp_path: Path, added_images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxygml.serving.changes.SWEEP_AFTER", 0.0)
    place = gallery_at(tmp_path / "g", run_folder, small_catalog)
    with (
        Running(place, run_folder, Limits(), added_images=added_images) as running,
        httpx.Client(base_url=running.address, **TIMES) as client,
    ):
        assert post(client, "/items", picture(1)).status_code == 201
        kept = files_in(added_images)
        ImageStore(added_images).write(picture(2), "png")  # of an addition that was cut short
        assert len(files_in(added_images)) == 2
        running.service.changes.sweep()
        assert files_in(added_images) == kept
        shown = Gallery.load(place).items["path"]
        assert sum(ImageStore(added_images).holds(path) for path in shown) == 1


def test_a_place_that_no_file_system_knows_is_named() -> None:
    with pytest.raises(ValueError, match="--added_images is 'nosuch://x'"):
        ImageStore("nosuch://x")


def test_items_of_a_folder_are_looked_up_by_path(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    path = store.write(b"x", "png")
    assert store.read(path) == b"x" and store.holds(path)
    assert not any(store.holds(other) for other in (str(tmp_path), f"{tmp_path}/a/b", "/etc/passwd", "", "x"))
    assert pd.Series([path]).str.startswith(str(tmp_path)).all()


def test_two_replicas_that_are_killed_under_load_lose_nothing_and_add_nothing_twice(
    milvus_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A smaller form of `python -m benchmarks.serving_load --milvus ... --replicas 2 --additions 100`."""
    load = pytest.importorskip("benchmarks.serving_load")
    words = "--replicas 2 --additions 30 --kills 1 --items 200 --clients 4 --kill_every 3 --minutes 5"
    record = load.main(["--milvus", milvus_server, *words.split()])
    assert len(record.added) >= 30 and record.removed
    assert "nothing lost, nothing twice" in capsys.readouterr().out


def test_while_its_milvus_is_away_a_server_says_so_and_nothing_of_where_it_is(
    run_folder: Path, small_catalog: Path, tmp_path: Path
) -> None:
    milvus = MilvusServer(tmp_path / "milvus")
    milvus.start()
    try:
        place = gallery_at(milvus.address, run_folder, small_catalog)
        with (
            Running(place, run_folder, Limits(), added_images=tmp_path / "added") as running,
            httpx.Client(base_url=running.address, **TIMES) as client,
        ):
            milvus.kill()
            answers = [
                post(client, "/search", picture()), post(client, "/items", picture()), client.get("/items/3/image"),
                client.get("/items/3/neighbors"), client.delete("/items/3", headers=AUTHORISED),
            ]  # fmt: skip
            wait_until(lambda: client.get("/health").status_code == 503)
            for answer in (*answers, client.get("/health")):
                assert answer.status_code == 503
                assert "try again later" in answer.json()["error"] and "127.0.0.1" not in answer.text
            assert client.get("/gallery").status_code == client.get("/metrics").status_code == 200
            milvus.start()
            wait_until(lambda: client.get("/health").status_code == 200, 120)
            assert len(post(client, "/search", picture(), k=48).json()["items"]) == 48
            assert post(client, "/items", picture()).status_code == 201
    finally:
        milvus.stop()
