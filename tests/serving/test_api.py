"""The server as its clients meet it: a real socket, real requests, hostile ones too."""

import io
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from PIL import Image

from proxygml import Gallery
from proxygml.data.catalog import Catalog
from proxygml.data.images.decoder_pool import DecoderPool
from proxygml.data.images.formats import FORMATS, readable_formats
from proxygml.serving.batched_embedder import BatchedEmbedder
from proxygml.serving.decoder import DECODERS
from proxygml.serving.limits import Limits
from tests.helpers.commands import refused
from tests.helpers.server import AUTHORISED, MULTIPART, TIMES, TOKEN, Running, gallery_at, picture, post

httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")
serving_process = pytest.importorskip("proxygml.serving.server", reason="the extra serve is not installed")

pytestmark = pytest.mark.xdist_group("serve")


@pytest.fixture(scope="module")
def server(run_folder: Path, small_catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = gallery_at(tmp_path_factory.mktemp("served") / "gallery", run_folder, small_catalog)
    with Running(folder, run_folder, Limits(max_upload_mb=0.2, max_pixels=250_000, max_k=20)) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator["httpx.Client"]:
    with httpx.Client(base_url=server.address, **TIMES) as client:
        yield client


def test_search_answers_what_the_gallery_does(server: Running, client: "httpx.Client", small_catalog: Path) -> None:
    catalog = Catalog.read(small_catalog).split("test")
    path = catalog.paths[3]
    answer = post(client, "/search", path.read_bytes(), k=5).json()
    expected = server.service.gallery.search(server.service.embedder.embed([path]), 5).rows(0)
    assert [item["id"] for item in answer["items"]] == expected["id"].tolist()
    assert np.allclose([item["score"] for item in answer["items"]], expected["score"], atol=1e-5)
    assert [item["label"] for item in answer["items"]] == expected["label"].tolist()
    assert answer["items"][0]["score"] > 0.999
    assert answer["prediction"]["label"] in set(catalog.labels)


def test_filters_choose_among_the_items(client: "httpx.Client") -> None:
    where = ["label=class 13", "label=class 15"]
    answer = post(client, "/search", picture(), k=20, where=where).json()
    assert {item["label"] for item in answer["items"]} == {"class 13", "class 15"}
    assert len(answer["items"]) == 16
    assert "no column 'colour'" in post(client, "/search", picture(), where="colour=red").json()["error"]
    assert "column=value" in post(client, "/search", picture(), where="red").json()["error"]


def test_a_search_goes_on_from_an_item(server: Running, client: "httpx.Client") -> None:
    """It is not among its own neighbors: it would be the first each time, and vote for its own label."""
    gallery = server.service.gallery
    own = gallery.vectors([3])
    expected = gallery.search(own, 5, exclude=[3])
    answer = client.get("/items/3/neighbors", params={"k": 5}).json()
    assert [item["id"] for item in answer["items"]] == expected.ids[0].tolist()
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5]
    other = "class 15" if gallery.items.loc[3, "label"] != "class 15" else "class 13"
    filtered = client.get("/items/3/neighbors", params={"k": 20, "where": f"label={other}"}).json()
    assert len(filtered["items"]) == 8  # all of that class: the item itself, which is left out, is of another
    assert filtered["prediction"] == {"label": other, "share": 1.0}
    assert client.get("/items/48/neighbors").status_code == 404
    assert client.get("/items/3/neighbors", params={"k": 21}).status_code == 422
    assert client.get("/items/3/neighbors", params={"where": "path=x"}).status_code == 422


def test_the_only_item_has_no_neighbors(run_folder: Path, tmp_path: Path) -> None:
    items = pd.DataFrame({"path": ["a"], "label": ["x"]})
    Gallery.create(np.eye(1, 16, dtype=np.float32), items).save(tmp_path / "gallery")
    with Running(tmp_path / "gallery", run_folder, Limits()) as running:
        for where in ({}, {"where": "label=x"}):
            answer = httpx.get(f"{running.address}/items/0/neighbors", params=where, **TIMES)
            assert answer.json() == {"items": [], "prediction": None}
        none = httpx.get(f"{running.address}/items/0/neighbors", params={"where": "label=y"}, **TIMES)
        assert none.status_code == 422


def test_a_client_can_read_columns_and_limits(client: "httpx.Client") -> None:
    answer = client.get("/gallery").json()
    assert answer == {
        "items": 48,
        "columns": ["label", "split"],
        "takes": "image",
        "vector_size": None,
        "kinds": [FORMATS[name].media_type for name in readable_formats()],
        "max_k": 20,
        "max_upload_mb": 0.2,
        "max_pixels": 250_000,
        "changes": True,
    }


@pytest.mark.parametrize("kind", readable_formats())
def test_every_kind_of_image_that_is_named_is_taken(client: "httpx.Client", server: Running, kind: str) -> None:
    data = picture(1, kind)
    answer = post(client, "/embed", data)
    assert answer.status_code == 200
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.allclose(answer.json()["embedding"], server.service.embedder.embed([pixels])[0], atol=0.03)
    assert answer.json()["model"] == server.service.gallery.manifest.model


def test_an_item_is_shown_small_and_its_path_is_not(client: "httpx.Client", server: Running) -> None:
    answer = client.get("/items/0/image")
    assert answer.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(answer.content)).size) == 320
    text = post(client, "/search", picture()).text + client.get("/health").text + client.get("/openapi.json").text
    assert str(server.service.gallery.place) not in text
    assert "path" not in post(client, "/search", picture()).json()["items"][0]
    assert (
        post(client, "/search", picture(), where=f"path={server.service.gallery.items['path'].iloc[0]}").status_code
        == 422
    )


def test_items_are_added_and_removed_with_the_token_alone(
    run_folder: Path, small_catalog: Path, tmp_path: Path
) -> None:
    folder = gallery_at(tmp_path / "gallery", run_folder, small_catalog)
    with Running(folder, run_folder, Limits()) as running, httpx.Client(base_url=running.address, **TIMES) as client:
        photo = picture(7)
        assert client.post("/items", files={"image": photo}).status_code == 401
        wrong = {"Authorization": "Bearer another"}
        assert client.post("/items", files={"image": photo}, headers=wrong).status_code == 401
        assert client.delete("/items/0").status_code == 401
        assert len(Gallery.load(folder)) == 48
        added = post(client, "/items", photo, column=["label=noise"])
        assert added.status_code == 201
        item = added.json()["id"]
        on_disk = Gallery.load(folder)
        assert len(on_disk) == 49 and on_disk.items.loc[item, "label"] == "noise"
        found = post(client, "/search", photo, k=1).json()["items"][0]
        assert (found["id"], found["label"]) == (item, "noise")
        assert client.get(f"/items/{item}/image").status_code == 200
        assert post(client, "/items", photo, column="colour=red").status_code == 422
        assert client.delete(f"/items/{item}", headers=AUTHORISED).status_code == 204
        assert client.delete(f"/items/{item}", headers=AUTHORISED).status_code == 404
        assert post(client, "/search", photo, k=1).json()["items"][0]["id"] != item
    assert len(Gallery.load(folder)) == 48
    with Running(folder, run_folder, Limits(), token="") as running:
        answer = httpx.post(f"{running.address}/items", files={"image": photo}, headers=AUTHORISED, **TIMES)
        assert answer.status_code == 403 and "PROXYGML_TOKEN" in answer.json()["error"]


def test_a_number_that_is_none_is_refused_alone(run_folder: Path, tmp_path: Path) -> None:
    """Of additions that are saved together, one that cannot be does not spoil the others."""
    items = pd.DataFrame({"path": ["a", "b"], "label": ["x", "y"], "year": [1999, 2004], "price": [np.inf, 1.5]})
    Gallery.create(np.eye(2, 16, dtype=np.float32), items).save(tmp_path / "gallery")
    with Running(tmp_path / "gallery", run_folder, Limits()) as running, ThreadPoolExecutor(8) as pool:
        years = ["2010", "soon", "2011", "", "2012"]

        def add(year: str) -> int:
            with httpx.Client(base_url=running.address, **TIMES) as client:
                return post(client, "/items", picture(len(year)), column=[f"year={year}"]).status_code

        assert list(pool.map(add, years)) == [201, 422, 201, 422, 201]
        found = httpx.post(f"{running.address}/search", files={"image": picture()}, data={"k": 9}, **TIMES)
        assert sorted(item["year"] for item in found.json()["items"]) == [1999, 2004, 2010, 2011, 2012]
        assert {"inf", 1.5, None} == {item["price"] for item in found.json()["items"]}
    assert sorted(Gallery.load(tmp_path / "gallery").items["year"]) == [1999, 2004, 2010, 2011, 2012]


def test_an_image_that_no_item_shows_goes_when_no_addition_can_be_waiting_for_it(
    run_folder: Path, small_catalog: Path, tmp_path: Path
) -> None:
    folder = gallery_at(tmp_path / "gallery", run_folder, small_catalog)
    with Running(folder, run_folder, Limits()) as running, httpx.Client(base_url=running.address, **TIMES) as client:
        kept, removed = (post(client, "/items", picture(seed)).json()["id"] for seed in range(2))
        assert client.delete(f"/items/{removed}", headers=AUTHORISED).status_code == 204
    assert len(list((folder / "images").iterdir())) == 1
    broken = folder / "images" / "broken.png"  # as an addition leaves it that was cut short
    broken.write_bytes(picture())
    for image in (folder / "images").iterdir():
        os.utime(image, (0, 0))
    (folder / "images" / "fresh.png").write_bytes(picture())  # as another server has it before it has saved the item
    with Running(folder, run_folder, Limits()):
        end = time.monotonic() + 30
        while broken.exists() and time.monotonic() < end:
            time.sleep(0.01)
    shown = Path(Gallery.load(folder).items.loc[kept, "path"])
    assert set((folder / "images").iterdir()) == {shown, folder / "images" / "fresh.png"}


def counted(client: "httpx.Client", route: str, status: int) -> int:
    """How many such answers the server has told Prometheus of."""
    found = re.search(
        rf'proxygml_requests_total\{{route="{route}",status="{status}"\}} (\d+)', client.get("/metrics").text
    )
    return int(found[1]) if found else 0


def test_health_and_metrics(client: "httpx.Client") -> None:
    post(client, "/search", picture())
    assert client.get("/health").json()["items"] == 48
    assert counted(client, "/search", 200) >= 1


def test_metrics_count_refusals_and_failures(
    run_folder: Path, small_catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = gallery_at(tmp_path / "gallery", run_folder, small_catalog)

    def fails(self: BatchedEmbedder, squares: list[torch.Tensor]) -> list[torch.Tensor]:
        raise RuntimeError(f"no room left in {folder}")

    monkeypatch.setattr(BatchedEmbedder, "_embed", fails)
    limits = Limits(max_upload_mb=0.01)
    with Running(folder, run_folder, limits) as running, httpx.Client(base_url=running.address, **TIMES) as client:
        failed = httpx.post(f"{running.address}/embed", files={"image": picture()}, **TIMES)
        assert (failed.status_code, failed.json()) == (500, {"error": "the server failed; its log says why"})
        assert post(client, "/embed", b"none").status_code == 415
        assert client.post("/embed", content=iter([bytes(20_000)]), headers=MULTIPART).status_code == 413
        assert post(client, "/embed", bytes(20_000)).status_code == 413
        assert [counted(client, "/embed", status) for status in (200, 500, 415, 413)] == [0, 1, 1, 1]
        assert counted(client, "other", 413) == 1  # refused for its length, before it was looked at where it leads


def test_a_gallery_in_milvus_is_served_and_not_changed_without_a_place_for_images(
    run_folder: Path, small_catalog: Path, tmp_path: Path
) -> None:
    pytest.importorskip("milvus_lite", reason="the extra milvus is not installed")
    folder = gallery_at(tmp_path / "gallery", run_folder, small_catalog)
    place = gallery_at(tmp_path / "gallery.db", run_folder, small_catalog)
    with (
        Running(folder, run_folder, Limits()) as one,
        Running(place, run_folder, Limits()) as other,
        ThreadPoolExecutor(8) as pool,
    ):

        def answers(running: Running) -> list[Any]:
            def ask(number: int) -> Any:
                form = {"k": 6, "where": ["label=class 13", "label=class 15"]} if number % 2 else {"k": 6}
                with httpx.Client(base_url=running.address, **TIMES) as client:
                    return post(client, "/search", picture(number), **form).json()

            return list(pool.map(ask, range(24)))

        for found, expected in zip(answers(other), answers(one), strict=True):
            assert [item["id"] for item in found["items"]] == [item["id"] for item in expected["items"]]
            assert [set(item) for item in found["items"]] == [set(item) for item in expected["items"]]
            assert found["prediction"]["label"] == expected["prediction"]["label"]
        with httpx.Client(base_url=other.address, **TIMES) as client:
            assert client.get("/health").json()["items"] == 48
            assert client.get("/items/3/image").status_code == 200
            assert client.get("/items/48/image").status_code == 404
            assert post(client, "/search", picture(), where="colour=red").status_code == 422
            refusals = [post(client, "/items", picture()), client.delete("/items/0", headers=AUTHORISED)]
            assert [answer.status_code for answer in refusals] == [403, 403]
            assert all("--added_images" in answer.json()["error"] for answer in refusals)


# Limits ---------------------------------------------------------------------------------------------------------------


def test_a_request_that_is_too_large_is_refused_whatever_it_says_of_its_length(client: "httpx.Client") -> None:
    assert post(client, "/search", bytes(300_000)).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield bytes(10_000)

    answer = client.post("/search", content=chunks(), headers=MULTIPART)
    assert answer.status_code == 413 and "0.2 MB" in answer.json()["error"]


def test_a_decompression_bomb_is_refused_before_it_is_decoded(client: "httpx.Client") -> None:
    answer = post(client, "/search", png_of(60_000, 60_000))
    assert answer.status_code == 413 and "at most 250,000" in answer.json()["error"]
    answer = post(client, "/search", png_of(500, 501))
    assert answer.status_code == 413 and "500 x 501" in answer.json()["error"]


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says so, with next to nothing inside."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_a_refusal_says_what_to_send_instead(client: "httpx.Client") -> None:
    def error(method: str, path: str, **sent: Any) -> str:
        return str(client.request(method, path, **sent).json()["error"])

    send = "send the file itself, as `curl -F image=@query.jpg` does"
    for sent in ({}, {"data": {"k": 2}}, {"content": picture()}):
        assert error("POST", "/search", **sent) == f"image: is missing; {send}"
    assert error("POST", "/embed", files={"image": (None, "query.jpg")}) == f"image: is text, not a file; {send}"
    assert error("GET", "/search").endswith("send POST")
    assert "/docs lists" in error("GET", "/nowhere")
    assert error("DELETE", "/items/0").startswith("changes need the operator's token")
    wrong = {"Authorization": "Bearer wrong"}
    assert error("DELETE", "/items/0", headers=wrong).startswith("this is not the operator's token")


@pytest.mark.parametrize(("k", "status"), [(0, 422), (21, 422), ("many", 422), (20, 200)])
def test_k_has_bounds(client: "httpx.Client", k: object, status: int) -> None:
    answer = post(client, "/search", picture(), k=k)
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"].startswith("k: ")


def test_too_many_at_once_and_too_slow_have_their_own_answers(
    run_folder: Path, small_catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = gallery_at(tmp_path / "gallery", run_folder, small_catalog)
    began, go_on = threading.Event(), threading.Event()

    def slow(self: BatchedEmbedder, squares: list[torch.Tensor]) -> list[torch.Tensor]:
        began.set()
        go_on.wait(20)
        return [torch.ones(16)] * len(squares)

    monkeypatch.setattr(BatchedEmbedder, "_embed", slow)
    with Running(folder, run_folder, Limits(queue=1, timeout=4.0)) as running:
        answers = []

        def ask() -> None:
            answers.append(httpx.post(f"{running.address}/embed", files={"image": picture()}, **TIMES))

        first = threading.Thread(target=ask)
        first.start()
        assert began.wait(20)
        second = httpx.post(f"{running.address}/embed", files={"image": picture()}, **TIMES)
        assert second.status_code == 429 and second.headers["retry-after"] == "1"
        first.join()
        assert answers[0].status_code == 503 and "within 4 s" in answers[0].json()["error"]
        go_on.set()


def test_few_images_are_decoded_at_a_time_however_many_ask(
    run_folder: Path, small_catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What bounds the memory: the pixels of one image may take a thousand times the room of its file."""
    folder = gallery_at(tmp_path / "gallery", run_folder, small_catalog)
    decoding, at_once, lock = 0, [0], threading.Lock()

    def watched(decode: Callable[..., Any]) -> Callable[..., Any]:
        def decoded(*arguments: Any) -> Any:
            nonlocal decoding
            with lock:
                decoding += 1
                at_once.append(decoding)
            time.sleep(0.05)  # so that others would have come, were they let in
            try:
                return decode(*arguments)
            finally:
                with lock:
                    decoding -= 1

        return decoded

    monkeypatch.setattr(DecoderPool, "decode", watched(DecoderPool.decode))
    with Running(folder, run_folder, Limits()) as running, ThreadPoolExecutor(16) as pool:
        ask = partial(httpx.post, f"{running.address}/embed", files={"image": picture()}, **TIMES)
        show = partial(httpx.get, f"{running.address}/items/0/image", **TIMES)
        answers = [pool.submit(request) for _ in range(16) for request in (ask, show)]
        assert {answer.result().status_code for answer in answers} == {200}
    assert len(at_once) == 1 + 32
    assert 1 <= max(at_once) <= DECODERS


@contextmanager
def half_a_request(running: Running) -> Iterator[socket.socket]:
    """A connection on which a request has begun, and does not go on."""
    with socket.create_connection(("127.0.0.1", running.socket.getsockname()[1]), timeout=30) as half:
        half.sendall(
            b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 1000\r\n\r\n--x\r\n"
        )
        yield half


def test_a_body_that_does_not_arrive_is_given_up(run_folder: Path, small_catalog: Path, tmp_path: Path) -> None:
    folder = gallery_at(tmp_path / "gallery", run_folder, small_catalog)
    with Running(folder, run_folder, Limits(timeout=0.5)) as running, half_a_request(running) as half:
        assert half.recv(100).startswith(b"HTTP/1.1 503")


def test_bodies_that_arrive_slowly_make_room_for_others(run_folder: Path, small_catalog: Path, tmp_path: Path) -> None:
    folder = gallery_at(tmp_path / "gallery", run_folder, small_catalog)
    limits = Limits(queue=3, timeout=60)
    with (
        Running(folder, run_folder, limits) as running,
        httpx.Client(base_url=running.address, **TIMES) as client,
        ExitStack() as stack,
    ):
        halves = [stack.enter_context(half_a_request(running)) for _ in range(8)]
        refused = set()
        while len(refused) < 5:  # at most three are arriving
            for half in select.select([half for half in halves if half not in refused], [], [], 60)[0]:
                assert half.recv(100).startswith(b"HTTP/1.1 429")
                refused.add(half)
        for _ in range(4):
            assert client.get("/health").status_code == 200  # nothing of it has to arrive
            assert post(client, "/embed", picture()).status_code == 200


# Hostile --------------------------------------------------------------------------------------------------------------


def hostile_uploads() -> Iterator[bytes]:
    """Some 240 files that are not what they should be."""
    random = np.random.default_rng(0)
    for kind in readable_formats():
        whole = picture(2, kind, side=40)
        for share in np.linspace(0.02, 0.98, 12):  # cut off
            yield whole[: int(share * len(whole))]
        for _ in range(14):  # damaged
            broken = bytearray(whole)
            for place in random.integers(len(broken), size=6):
                broken[place] = random.integers(256)
            yield bytes(broken)
        for rest in (
            b"<script>alert(1)</script>",
            b"<?php system($_GET[0]); ?>",
            picture(3, "PNG"),
            b"PK\x03\x04" + bytes(60),
        ):
            yield whole + rest  # polyglots: an image and something else
            yield rest + whole
        yield whole[:16] + bytes(random.integers(256, size=500, dtype=np.uint8))  # a right start, then noise
    for width, height in ((60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (0, 0), (0, 5), (500, 501), (100_000, 3)):
        yield png_of(width, height)
    yield b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(20)
    yield b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
    yield from (
        b"",
        b"\0",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"RIFF\xff\xff\xff\xffWEBP",
        b"%PDF-1.7\n",
        b"<svg onload='x'/>",
    )
    yield from (b"MZ" + bytes(100), b"\x7fELF" + bytes(100), b"II*\0" + bytes(100), b"%!PS\n(x) run", b"/etc/passwd")
    for _ in range(20):
        yield random.integers(256, size=int(random.integers(1, 3000)), dtype=np.uint8).tobytes()


NAMES = (
    "../../etc/passwd",
    "..\\..\\x",
    "/etc/passwd",
    "a\0b.png",
    "con",
    "x" * 3000,
    "%2e%2e%2f",
    "photo.png;rm",
    "'\"<>",
)


def test_no_hostile_upload_crashes_or_leaks(client: "httpx.Client", server: Running) -> None:
    uploads = list(hostile_uploads())
    assert len(uploads) >= 200
    before = sorted(Path(server.service.gallery.place).rglob("*"))
    for number, data in enumerate(uploads):
        answer = client.post("/embed", files={"image": (NAMES[number % len(NAMES)], data)})
        assert answer.status_code in (200, 413, 415, 422), (number, answer.text)
        if answer.status_code != 200:
            assert set(answer.json()) == {"error"}
            assert not re.search(r"/\w+/|Traceback|proxygml", answer.json()["error"]), answer.text
        else:
            assert np.isclose(np.linalg.norm(answer.json()["embedding"]), 1, atol=1e-4)
    assert client.get("/health").json()["items"] == 48
    assert sorted(Path(server.service.gallery.place).rglob("*")) == before


@pytest.mark.parametrize(
    "path",
    [
        "/items/../../etc/passwd/image",
        "/items/%2e%2e%2fetc%2fpasswd/image",
        "/items/-1/image",
        "/items/99999999999999999999999/image",
        "/items/1e3/image",
        "/static/..%2f..%2fetc/passwd",
        "//etc/passwd",
    ],
)
def test_no_path_leads_to_the_disk(client: "httpx.Client", path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (404, 422)
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize(
    "where", ["label=" + "x" * 10_000, "label='; drop table", "label=\0", "=", "id=x", "removed=True"]
)
def test_strange_filters_are_refused_or_find_nothing(client: "httpx.Client", where: str) -> None:
    answer = post(client, "/search", picture(), where=where)
    assert answer.status_code == 422
    assert set(answer.json()) == {"error"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_interface_keeps_to_its_description(server: Running) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    seen = set()
    for operation in (found.ok() for found in schema.get_all_operations()):
        seen.add(operation.path)

        @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def conforms(case: Any) -> None:
            # Bytes that are an image cannot be described there, so that what it makes up is mostly refused.
            case.call_and_validate(timeout=30, excluded_checks=[positive_data_acceptance])

        conforms()
    of_items = {"/items", "/items/{id}", "/items/{id}/image", "/items/{id}/neighbors"}
    assert seen == {"/search", "/embed", "/gallery", "/health", "/metrics", *of_items}


# Killed ---------------------------------------------------------------------------------------------------------------


def started(folder: Path, *options: object) -> tuple[subprocess.Popen[str], str]:
    """The command in a process of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "proxygml", "serve", str(folder), "--port", "0", "--page", "false", *map(str, options)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PROXYGML_TOKEN": TOKEN},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, line.rsplit(" ", 1)[1].strip()


def test_a_killed_server_has_lost_no_item_that_it_had_added(
    run_folder: Path, small_catalog: Path, tmp_path: Path
) -> None:
    folder = gallery_at(tmp_path / "gallery", run_folder, small_catalog)
    process, address = started(folder)
    added: list[int] = []
    searched: list[int] = []

    def keep_adding(worker: int) -> None:
        with httpx.Client(base_url=address, **TIMES) as client:
            for number in range(200):
                try:
                    answer = post(client, "/items", picture(1000 * worker + number), column=f"label={worker}")
                except httpx.HTTPError:
                    return
                if answer.status_code == 201:
                    added.append(answer.json()["id"])

    def keep_searching() -> None:
        with httpx.Client(base_url=address, **TIMES) as client:
            while True:
                try:
                    searched.append(post(client, "/search", picture()).status_code)
                except httpx.HTTPError:
                    return

    while True:
        try:
            httpx.get(f"{address}/health", **TIMES)
            break
        except httpx.HTTPError:
            time.sleep(0.05)
    threads = [threading.Thread(target=keep_adding, args=(worker,)) for worker in range(3)]
    threads.append(threading.Thread(target=keep_searching))
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    while (len(added) < 20 or len(searched) < 5) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for thread in threads:
        thread.join()
    assert len(added) >= 20 and len(searched) >= 5
    assert set(searched) == {200}
    left = Gallery.load(folder)
    assert set(added) <= set(left.items.index)
    assert all(Path(path).is_file() for path in left.items["path"])


def test_wrong_options_are_named(
    run_folder: Path, small_catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = gallery_at(tmp_path / "gallery", run_folder, small_catalog)
    assert "max_k is 0" in refused(capsys, "serve", folder, "--max_k", 0)
    assert str(tmp_path / "none") in refused(capsys, "serve", tmp_path / "none")
    assert "0-65535; choose others" in refused(capsys, "serve", folder, "--port", 99999, "--page", "false")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "cannot be listened on" in refused(capsys, "serve", folder, "--port", port, "--page", "false")


def test_connections_send_every_part_of_an_answer_at_once() -> None:
    """They have it from the socket that the command listens on."""
    with serving_process.listen("127.0.0.1", 0) as (listening, address):
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
