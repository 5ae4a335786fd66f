"""A Milvus server that does not answer, answers again, is too old or lets this user do nothing."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proxygml import Gallery
from proxygml.errors import GalleryError, GalleryUnavailableError
from proxygml.gallery.backend import Addition
from tests.helpers.commands import refused
from tests.helpers.commands import run as command
from tests.helpers.milvus_server import MilvusServer, free_ports
from tests.helpers.models import untrained
from tests.helpers.vectors import blocks, clustered, items

pymilvus = pytest.importorskip("pymilvus", reason="the extra milvus is not installed")

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MilvusServer]:
    server = MilvusServer(tmp_path / "server")
    server.start()
    try:
        yield server
    finally:
        server.stop()


def test_a_server_that_is_killed_and_started_again_has_lost_nothing(server: MilvusServer) -> None:
    """Every addition that was acknowledged is there once; one gallery object serves before, after and again."""
    vectors = clustered(600)
    gallery = Gallery.build(server.address, blocks(vectors[:100], items(100)))
    acknowledged: dict[int, str] = {}
    unknown: set[str] = set()
    stop = threading.Event()

    def add() -> None:
        for number in range(100, 600):
            if stop.is_set():
                break
            path = f"/{number}.png"
            try:
                _, (item,) = gallery.change_at_once([Addition(vectors[number], {"path": path})])
                assert isinstance(item, int)
                acknowledged[item] = path
            except GalleryUnavailableError:
                unknown.add(path)
                time.sleep(0.2)

    adding = threading.Thread(target=add)
    adding.start()
    while len(acknowledged) < 15:
        time.sleep(0.02)
    server.kill()
    with pytest.raises(GalleryUnavailableError, match="does not answer now"):
        gallery.search(vectors[:1], 1)
    server.start()
    before, end = len(acknowledged), time.monotonic() + 120
    while len(acknowledged) < before + 15 and time.monotonic() < end:
        time.sleep(0.1)
    stop.set()
    adding.join()
    assert len(acknowledged) >= before + 15
    gallery = gallery.refreshed()
    while time.monotonic() < end:
        with suppress(GalleryUnavailableError):  # it takes additions before it has loaded what it held
            found = gallery.items
            break
        time.sleep(0.5)
    assert found.index.is_unique and found["path"].is_unique
    assert found.loc[list(acknowledged), "path"].tolist() == list(acknowledged.values())
    assert set(found["path"]) <= {f"/{n}.png" for n in range(100)} | set(acknowledged.values()) | unknown
    assert gallery.search(vectors[:3], 1).rows(2)["path"].tolist() == ["/2.png"]
    assert gallery.verify() == "each is there once and can be read"


def test_a_build_goes_on_after_the_server_was_killed(server: MilvusServer) -> None:
    vectors, table = clustered(1600), items(1600)

    def killing() -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
        for number, block in enumerate(blocks(vectors, table)):
            if number == 2:
                server.kill()
            yield block

    with pytest.raises(GalleryUnavailableError):
        Gallery.build(server.address, killing())
    server.start()
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with suppress(GalleryUnavailableError):  # it answers before it has loaded what it held
            built = Gallery.build(server.address, blocks(vectors, table))
            break
    pd.testing.assert_frame_equal(built.items, Gallery.create(vectors, table).items)


def test_what_is_wrong_with_a_server_is_said_before_anything_is_embedded(
    small_catalog: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, milvus_server: str
) -> None:
    run, (port,) = untrained(tmp_path / "run"), free_ports(1)
    index = ["index", run, "--images", small_catalog.parent, "--workers", 0]
    monkeypatch.setattr("proxygml.models.embedder.Embedder.forward", None)  # nothing can be embedded
    message = refused(capsys, *index, "--out", f"http://127.0.0.1:{port}")
    assert "cannot be reached" in message and "Milvus 2.3 or later" in message
    place = f"{milvus_server}#told"
    with monkeypatch.context() as patch:
        patch.setattr("proxygml.gallery.milvus.connection._OLDEST_SERVER", (99, 0))
        message = refused(capsys, *index, "--out", place)
        assert "is v2.3.5" in message and "too old: galleries need Milvus 2.3 or later" in message
    Gallery.build(place, blocks(clustered(3), items(3)))
    assert "is a gallery already" in refused(capsys, *index, "--out", place)
    Gallery.build(place, blocks(clustered(5), items(5)), force=True)


def test_a_user_without_rights_is_refused_before_anything_is_embedded(
    small_catalog: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = untrained(tmp_path / "run")
    server = MilvusServer(tmp_path / "server", authorization_enabled=True)
    server.start()
    try:
        index = ["index", run, "--images", small_catalog.parent, "--workers", 0, "--out", server.address]
        client = pymilvus.MilvusClient(server.address, token="root:Milvus")
        client.create_user("reader", "a secret")
        client.create_role("reading")
        for privilege in ("DescribeCollection", "ShowCollections"):
            client.grant_privilege("reading", "Global", privilege, "*")
        client.grant_role("reader", "reading")
        with monkeypatch.context() as patch:
            patch.setattr("proxygml.models.embedder.Embedder.forward", None)  # nothing can be embedded
            assert "MILVUS_TOKEN" in refused(capsys, *index)
            patch.setenv("MILVUS_TOKEN", "root:wrong")
            message = refused(capsys, *index)
            assert "MILVUS_TOKEN" in message and "wrong" not in message
            patch.setenv("MILVUS_TOKEN", "reader:a secret")
            message = refused(capsys, *index)
            assert "privilege" in message.lower() or "permission" in message.lower()
        monkeypatch.setenv("MILVUS_TOKEN", "root:Milvus")
        command(*index)
        place = server.address.replace("http://", "http://root:Milvus@")
        monkeypatch.delenv("MILVUS_TOKEN")
        assert len(Gallery.load(place)) == 144
        with pytest.raises(GalleryError) as raised:
            Gallery.load(f"{place}#none")
        assert "root" not in str(raised.value)
        monkeypatch.setenv("MILVUS_TOKEN", "reader:a secret")
        add = ["index", "--add", "--images", tmp_path, "--workers", 0, "--out", server.address]
        (tmp_path / "new.png").write_bytes((small_catalog.parent / "00_0.png").read_bytes())
        monkeypatch.setattr("proxygml.models.embedder.Embedder.forward", None)
        message = refused(capsys, *add)
        assert "privilege" in message.lower() or "permission" in message.lower()
    finally:
        server.stop()
