"""Requests that are not as described: each has its own refusal, none an answer of 500, none finds out about files."""

import contextlib
import errno
import math
import os
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proxygml import Gallery
from proxygml.serving.body_limit import TOGETHER
from proxygml.serving.columns import json_cell
from proxygml.serving.limits import Limits
from tests.helpers.server import AUTHORISED, TIMES, Running, picture, post

httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")
changes = pytest.importorskip("proxygml.serving.changes", reason="the extra serve is not installed")
ImageStore = pytest.importorskip("proxygml.serving.image_store").ImageStore

pytestmark = pytest.mark.xdist_group("serve")


def gallery(folder: Path) -> Path:
    """A gallery of which one column, beside `path`, holds paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(4):
        files.append(folder / f"photo{number}.png")
        files[-1].write_bytes(picture(number))
    items = pd.DataFrame(
        {
            "path": list(map(str, files)),
            "label": ["a", "a", "b", "b"],
            "mask": list(map(str, files)),
            "code": ["/m/0bt9lr", "/m/01yrx", "/m/02", "/m/03"],  # no path, though it looks like one
        }
    )
    Gallery.create(np.eye(4, 16, dtype=np.float32), items).save(folder / "gallery")
    return folder / "gallery"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, run_folder: Path) -> Iterator[Running]:
    with Running(
        gallery(tmp_path_factory.mktemp("served")), run_folder, Limits(max_upload_mb=3, timeout=10)
    ) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator["httpx.Client"]:
    with httpx.Client(base_url=server.address, **TIMES) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "form", "named"),
    [
        ("/search", {"kk": "1"}, "'kk'"),
        ("/search", {"K": "1"}, "'K'"),
        ("/search", {"k": ["1", "2"]}, "'k' is given twice"),
        ("/search", {"column": "label=a"}, "'column'"),
        ("/embed", {"k": "1"}, "'k'"),
        ("/items", {"where": "label=a"}, "'where'"),
        ("/items", {"label": "a"}, "'label'"),
        ("/items", {"column": ["label=a", "label=b"]}, "twice"),
        ("/items", {"column": "path=/etc/passwd"}, "'path'"),
        ("/items", {"column": "mask=/etc/passwd"}, "'mask'"),
        ("/items", {"column": "x_1=0"}, "'x_1'"),
        ("/items", {"column": "label=" + 201 * "x"}, "too long"),
        ("/items", {"column": "label=" + 200 * "\U0001d49c" + 200 * "\u0301"}, "too long"),
        ("/items", {"column": "label=a\x1b[2Jb"}, "control characters"),
        ("/items", {"column": "label=a\nb"}, "control characters"),
        ("/items", {"column": "label=a\u202eb"}, "control characters"),
        ("/items", {"column": "label=a\u0085b"}, "control characters"),
        ("/items", {"column": "la\x07bel=a"}, "control characters"),
        ("/search", {"where": "label=a\x00"}, "control characters"),
        ("/search", {"where": "path=/etc/passwd"}, "'path'"),
        ("/search", {"where": "mask=/etc/passwd"}, "'mask'"),
        ("/search", {"where": ["label=a"] * 65}, "Too many fields"),
        ("/search", {"where": "label=" + 60_000 * "x"}, "too long"),
    ],
)
def test_a_field_that_is_not_as_described_is_named(
    client: "httpx.Client", path: str, form: dict[str, object], named: str
) -> None:
    answer = post(client, path, picture(), **form)
    assert answer.status_code == 422, answer.text
    assert named in answer.json()["error"]
    assert len(answer.json()["error"]) < 1000 and answer.json()["error"].isprintable()


def test_misplaced_and_repeated_fields_are_refused(client: "httpx.Client") -> None:
    image = ("photo", picture())
    assert "'k'" in client.post("/search?k=1", files={"image": image}).json()["error"]
    assert "'x'" in client.get("/items/0/image?x=1").json()["error"]
    assert "'kk'" in client.get("/items/0/neighbors?kk=1").json()["error"]
    assert client.delete("/items/0?force=1", headers=AUTHORISED).status_code == 422
    twice = client.post("/search", files=[("image", image), ("image", image)])
    assert twice.status_code == 422 and "'image' is given twice" in twice.json()["error"]
    many = client.post("/search", files=[("image", image)] * 20)
    assert many.status_code == 422 and "Too many files" in many.json()["error"]
    assert client.post("/search", files={"image": image, "k": image}).status_code == 422
    assert client.post("/search", data={"image": "no file"}).status_code == 422
    assert client.get("/health").json()["items"] == 4


@pytest.mark.parametrize("name", ["where", "k", "other"])
def test_a_text_field_that_is_too_large_is_refused_as_such(client: "httpx.Client", name: str) -> None:
    answer = post(client, "/search", picture(), **{name: 2_000_000 * "x"})
    assert answer.status_code == 413
    assert repr(name) in answer.json()["error"]


@pytest.mark.parametrize("charset", ["utf-16", "utf-7", "unicode_escape", "rot13", "idna", "nonsense", "\x00"])
def test_another_character_set_is_refused(client: "httpx.Client", charset: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="where"\r\n\r\nlabel=\\ud800\r\n--x--\r\n'
    headers = {"Content-Type": f'multipart/form-data; boundary=x; charset="{charset}"'}
    with contextlib.suppress(httpx.LocalProtocolError):
        answer = client.post("/search", content=body, headers=headers)
        assert answer.status_code in (400, 422) and set(answer.json()) == {"error"}


BODIES = {
    "empty": b"",
    "no boundary": b"abc",
    "no name": b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n",
    "no disposition": b"--x\r\n\r\na\r\n--x--\r\n",
    "not closed": b'--x\r\nContent-Disposition: form-data; name="k"\r\n\r\n1',
    "no line ends": b'--x\nContent-Disposition: form-data; name="k"\n\n1\n--x--',
    "null in name": b'--x\r\nContent-Disposition: form-data; name="\x00k"\r\n\r\n1\r\n--x--\r\n',
    "bytes in name": b'--x\r\nContent-Disposition: form-data; name="\xff\xfe"\r\n\r\n1\r\n--x--\r\n',
    "bytes in value": b'--x\r\nContent-Disposition: form-data; name="where"\r\n\r\nlabel=\xed\xa0\x80\xff\r\n--x--\r\n',
    "long header": b"--x\r\nX-" + 1_000_000 * b"a" + b": b\r\n\r\na\r\n--x--\r\n",
    "many headers": b"--x\r\n" + 200_000 * b"X: a\r\n" + b"\r\na\r\n--x--\r\n",
    "many parts": 50_000 * b'--x\r\nContent-Disposition: form-data; name="k"\r\n\r\n1\r\n' + b"--x--\r\n",
    "carriage returns": b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    + 2_900_000 * b"\r",
    "near boundaries": b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    + 500_000 * b"\r\n--y",
    "epilogue": b'--x\r\nContent-Disposition: form-data; name="k"\r\n\r\n1\r\n--x--\r\n' + 2_900_000 * b"\r\n-"[:3],
    "preamble": 2_900_000 * b"\n",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_form_is_refused_and_keeps_nobody_out(
    server: Running, client: "httpx.Client", name: str
) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for path in ("/search", "/embed", "/items"):
        answer = client.post(path, content=BODIES[name], headers={**headers, **AUTHORISED})
        assert answer.status_code in (400, 413, 415, 422), answer.text
        assert set(answer.json()) == {"error"}
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "application/json",
        "text/plain",
        "x",
        "\xff",
        ";;=",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=" + 500 * "x",
        "multipart/mixed; boundary=x",
    ],
)
def test_every_content_type_has_an_answer(client: "httpx.Client", kind: str) -> None:
    for body in (b"", b"{}", b"k=1", b"--x--\r\n", b'{"image": {"path": "/etc/passwd"}}'):
        answer = client.post("/search", content=body, headers={"Content-Type": kind.encode("latin-1")})
        assert answer.status_code in (400, 422) and set(answer.json()) == {"error"}


def test_nothing_says_where_the_files_are(client: "httpx.Client", server: Running, tmp_path: Path) -> None:
    place = str(Path(server.service.gallery.place).parent)
    answers = [
        post(client, "/search", picture(), k=4),
        post(client, "/search", picture(), where=f"mask={place}/photo0.png"),
        post(client, "/items", picture(), column=f"mask={place}/photo0.png"),
        client.get("/items/0/neighbors"),
        *map(client.get, ("/health", "/metrics", "/openapi.json", "/gallery", "/docs", "/none", "/items/99/image")),
    ]
    for answer in answers:
        text = answer.text + str(answer.headers)
        assert place not in text and "photo0" not in text and str(Path.cwd()) not in text
    found = answers[0].json()["items"]
    assert {item["code"] for item in found} == {"/m/0bt9lr", "/m/01yrx", "/m/02", "/m/03"}
    assert not {"path", "mask"} & {name for item in found for name in item}


def test_the_description_needs_no_other_server(client: "httpx.Client") -> None:
    page = client.get("/docs")
    assert page.status_code == 200 and "http" not in page.text.replace("HTTP", "")
    assert "unsafe" not in page.headers["content-security-policy"]
    for name in ("swagger-ui.css", "swagger-ui-bundle.js", "start.js"):
        assert client.get(f"/docs/{name}").status_code == 200
    assert client.get("/docs/../docs.py").status_code == 404


# Images that no item shows --------------------------------------------------------------------------------------------


def test_the_image_of_a_removed_item_is_deleted_with_it(tmp_path: Path, run_folder: Path) -> None:
    folder = gallery(tmp_path)
    with Running(folder, run_folder, Limits()) as running, httpx.Client(base_url=running.address, **TIMES) as client:
        first, second = (post(client, "/items", picture(9)).json()["id"] for _ in range(2))
        assert len(list((folder / "images").iterdir())) == 2
        (folder / "images" / "pending.png").write_bytes(picture())  # as another server has it before it saves the item
        assert client.delete(f"/items/{first}", headers=AUTHORISED).status_code == 204
        left = {path.name for path in (folder / "images").iterdir()}
        assert left == {Path(Gallery.load(folder).items.loc[second, "path"]).name, "pending.png"}
        assert client.delete("/items/0", headers=AUTHORISED).status_code == 204
        assert (tmp_path / "photo0.png").exists()  # it was here before the gallery, and stays


def test_an_image_that_another_item_shows_stays(tmp_path: Path, run_folder: Path) -> None:
    folder = gallery(tmp_path)
    with Running(folder, run_folder, Limits()) as running, httpx.Client(base_url=running.address, **TIMES) as client:
        item = post(client, "/items", picture(9)).json()["id"]
        other = Gallery.load(folder)
        other.add(np.ones((1, 16), np.float32), other.items.loc[[item]])
        other.save()
        assert client.delete(f"/items/{item}", headers=AUTHORISED).status_code == 204
        assert all(Path(path).exists() for path in Gallery.load(folder).items["path"])


def test_what_broken_additions_left_is_swept_while_the_server_runs(
    tmp_path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "SWEEP_EVERY", 0.05)
    folder = gallery(tmp_path)
    with Running(folder, run_folder, Limits()) as running, httpx.Client(base_url=running.address, **TIMES) as client:
        kept = post(client, "/items", picture(9)).json()["id"]
        other = Gallery.load(folder)  # another server adds an item, which this one has not seen
        theirs = folder / "images" / "theirs.png"
        theirs.write_bytes(picture())
        other.add(np.ones((1, 16), np.float32), pd.DataFrame({"path": [str(theirs)]}))
        other.save()
        left = folder / "images" / "left.png"
        left.write_bytes(picture())
        for path in (folder / "images").iterdir():
            os.utime(path, (0, 0))
        end = time.monotonic() + 30
        while left.exists() and time.monotonic() < end:
            time.sleep(0.02)
        assert not left.exists() and theirs.exists()
        assert Path(Gallery.load(folder).items.loc[kept, "path"]).exists()


def test_a_full_disk_has_its_own_answer(tmp_path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = gallery(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(folder / "secret"))

    with Running(folder, run_folder, Limits()) as running, httpx.Client(base_url=running.address, **TIMES) as client:
        monkeypatch.setattr(ImageStore, "write", full)
        answer = post(client, "/items", picture())
        assert answer.status_code == 507 and "secret" not in answer.text
        assert client.get("/health").json()["items"] == 4


def test_a_gallery_that_cannot_be_written_to_is_served(
    tmp_path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "SWEEP_EVERY", 0.05)
    folder = gallery(tmp_path)
    stuck, left = folder / "images" / "a.png", folder / "images" / "b.png"
    stuck.mkdir(parents=True)  # what cannot be deleted, even by root
    left.write_bytes(picture())
    for path in (stuck, left):
        os.utime(path, (0, 0))

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(folder / "secret"))

    with Running(folder, run_folder, Limits()) as running, httpx.Client(base_url=running.address, **TIMES) as client:
        monkeypatch.setattr(ImageStore, "write", read_only)
        answer = post(client, "/items", picture())
        assert answer.status_code == 409 and "secret" not in answer.text
        assert post(client, "/search", picture()).status_code == 200
        end = time.monotonic() + 30
        while left.exists() and time.monotonic() < end:
            time.sleep(0.02)
        assert not left.exists() and stuck.exists()


# Item tables of every kind --------------------------------------------------------------------------------------------

CELLS = {
    "tags": ([["x", "y"], [], None, ["z"]], [["x", "y"], [], None, ["z"]]),
    "numbers": ([[1.5, 2.0], [0.5], None, []], [[1.5, 2.0], [0.5], None, []]),
    "facts": ([{"a": 1}, {"a": None}, None, {"a": 3}], [{"a": 1}, {"a": None}, None, {"a": 3}]),
    "nested": ([[["x"]], [[]], None, []], [[["x"]], [[]], None, []]),
    "times": (
        pd.to_datetime(["2021-01-01T12:30:00", None, None, "2023-01-01"], format="ISO8601"),
        ["2021-01-01 12:30:00", None, None, "2023-01-01 00:00:00"],
    ),
    "zoned": (pd.to_datetime(["2021-01-01"] * 4, utc=True), ["2021-01-01 00:00:00+00:00"] * 4),
    "days": ([date(2021, 1, 31), None, None, None], ["2021-01-31", None, None, None]),
    "lists of times": ([np.array(["2021-01-31"], "M8[ms]")] * 4, [["2021-01-31 00:00:00"]] * 4),
    "decimals": ([Decimal("1.20"), None, Decimal(3), None], ["1.20", None, "3.00", None]),
    "bytes": ([b"abc", b"\xff", None, b""], ["abc", "\\xff", None, ""]),
    "floats": ([math.nan, 1e308, -0.0, 1.5], [None, 1e308, 0.0, 1.5]),
    "whole": (pd.array([2**63 - 1, None, 3, 4], dtype="Int64"), [2**63 - 1, None, 3, 4]),
    "unsigned": (np.array([2**64 - 1, 1, 2, 3], np.uint64), [2**64 - 1, 1, 2, 3]),
    "truths": (pd.array([True, None, False, True], dtype="boolean"), [True, None, False, True]),
    "categories": (pd.Categorical(["a", "b", None, "a"]), ["a", "b", None, "a"]),
    "label": ([b"\xff", b"a", None, b"a"], ["\\xff", "a", None, "a"]),
    "x_1": ([[1], [2], None, []], [[1], [2], None, []]),
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, run_folder: Path) -> Iterator[Running]:
    """A server whose item table has a column of every kind, and paths inside of lists and objects."""
    folder = tmp_path_factory.mktemp("tables")
    file = folder / "secret.png"
    file.write_bytes(picture())
    items = pd.DataFrame({"path": [str(file)] * 4} | {name: cells for name, (cells, _) in CELLS.items()})
    items["views"] = [[str(file), str(file)]] * 4
    items["source"] = [{"file": str(file), "size": 1}] * 4
    Gallery.create(np.eye(4, 16, dtype=np.float32), items).save(folder / "gallery")
    with Running(folder / "gallery", run_folder, Limits()) as running:
        yield running


def test_numbers_that_json_lacks_are_text() -> None:
    cells = [math.inf, [math.nan, -math.inf], np.float32(math.inf), np.array([math.nan]), pd.NA, pd.NaT]
    assert [json_cell(cell) for cell in cells] == ["inf", [None, "-inf"], "inf", [None], None, None]


def test_cells_of_every_kind_are_answered(tables: Running) -> None:
    with httpx.Client(base_url=tables.address, **TIMES) as client:
        found = {item["id"]: item for item in post(client, "/search", picture(), k=4).json()["items"]}
        assert [client.get(f"/items/{number}/image").status_code for number in range(4)] == [200] * 4
        text = client.get("/items/0/neighbors").text + client.get("/gallery").text
    assert "secret" not in text and not {"path", "views", "source"} & {*found[0]}
    for name, (_, expected) in CELLS.items():
        assert [found[number][name] for number in range(4)] == expected, name


@pytest.mark.parametrize("name", CELLS)
def test_every_value_of_a_filter_or_a_new_item_has_an_answer(tables: Running, name: str) -> None:
    values = [
        "x",
        "1",
        "['x', 'y']",
        "nan",
        "1e399",
        "-1e399",
        199 * "9",
        "2021-01-01",
        "99999-01-01",
        "\u0663",
        "true",
    ]
    with httpx.Client(base_url=tables.address, **TIMES) as client:
        for value in values:
            asked = client.get("/items/0/neighbors", params={"where": f"{name}={value}"})
            added = post(client, "/items", picture(), column=f"{name}={value}")
            assert asked.status_code in (200, 422) and added.status_code in (201, 422), (value, asked.text, added.text)
            if added.status_code == 201:
                assert client.delete(f"/items/{added.json()['id']}", headers=AUTHORISED).status_code == 204


def test_an_addition_that_cannot_be_stored_is_refused_alone(tables: Running) -> None:
    """Additions are saved together; one whose cell no file can hold is not the others' fault."""
    with httpx.Client(base_url=tables.address, **TIMES) as client, ThreadPoolExecutor(12) as threads:
        columns = ["decimals=1e399", "decimals=1.25"] * 6
        answers = list(threads.map(lambda column: post(client, "/items", picture(), column=column), columns))
        assert [answer.status_code for answer in answers] == [422, 201] * 6
        for answer in answers[1::2]:
            assert client.delete(f"/items/{answer.json()['id']}", headers=AUTHORISED).status_code == 204


# Bodies together ------------------------------------------------------------------------------------------------------


def test_the_bodies_of_all_requests_together_are_bounded(tmp_path: Path, run_folder: Path) -> None:
    """Forty clients send a megabyte each and never finish: some are refused, and small requests are taken."""
    head = (
        b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 1900000\r\n\r\n"
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    )
    limits = Limits(max_upload_mb=2, timeout=60)
    most = limits.max_upload_mb * TOGETHER * 10**6
    with Running(gallery(tmp_path), run_folder, limits) as running, contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=60)) for _ in range(40)
        ]
        for client in clients:
            client.sendall(head + bytes(1_000_000))
        refused = 0
        while refused < 40 - most // 10**6:
            for client in select.select(clients, [], [], 60)[0]:
                assert client.recv(12) == b"HTTP/1.1 429"
                clients.remove(client)
                refused += 1
        with httpx.Client(base_url=running.address, **TIMES) as honest:
            assert post(honest, "/search", picture()).status_code == 200
            assert post(honest, "/search", picture(1, side=300)).status_code == 200
