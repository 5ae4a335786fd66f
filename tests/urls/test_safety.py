"""What a stranger wrote, in a table on a URL or in a request, leads to no file of this machine and to no URL."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest

from proxygml import Gallery, embed, index
from proxygml.data.catalog import Catalog
from proxygml.data.images.image_list import ImageList
from proxygml.data.preparing.prepare import prepare
from proxygml.errors import UserError
from tests.helpers.models import untrained
from tests.helpers.object_store import forget, put
from tests.helpers.pictures import write_picture

STORE = "memory://hostile"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """An image of this machine that nobody may see."""
    return write_picture(tmp_path / "secret.png", 0)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    forget(STORE)


def hostile(secret: Path) -> list[str]:
    urls = [f"{scheme}{secret}" for scheme in ("", "file://", "FILE:", "local://")]
    return [*urls, "~/x.png", "C:\\x.png", "\\\\host\\x.png"]


def table(path: str) -> pd.DataFrame:
    return pd.DataFrame({"path": ["a.png", path], "label": ["a", "b"], "split": ["train", "test"]})


def test_a_table_on_a_url_names_nothing_of_this_machine(secret: Path, tmp_path: Path) -> None:
    for path in hostile(secret):
        put(STORE, {"c.csv": table(path).to_csv(index=False).encode()})
        for read in (
            lambda: Catalog.read(f"{STORE}/c.csv"),
            lambda: prepare("table", f"{STORE}/c.csv", tmp_path / "out.csv", on_bad="drop"),
            lambda: embed(untrained(tmp_path / "run"), tmp_path / "v.parquet", catalog=f"{STORE}/c.csv", on_bad="drop"),
        ):
            with pytest.raises(UserError, match="the path in row 1 is .*(a file on|leave out)"):
                read()
    assert {path.name for path in tmp_path.iterdir()} == {"secret.png", "run"}


def test_a_file_of_vectors_on_a_url_names_nothing_of_this_machine(secret: Path, tmp_path: Path) -> None:
    run = untrained(tmp_path / "run")
    for path in hostile(secret):
        vectors = table(path).assign(embedding=list(np.eye(2, 16, dtype=np.float32)))
        vectors.to_parquet(tmp_path / "v.parquet")
        put(STORE, {"v.parquet": (tmp_path / "v.parquet").read_bytes()})
        with pytest.raises(UserError, match="the path in row 1 is"):
            index(run, tmp_path / "gallery", vectors=f"{STORE}/v.parquet")
        with pytest.raises(UserError, match="the path in row 1 is"):
            prepare("vectors", f"{STORE}/v.parquet", tmp_path / "c.parquet")
    assert not (tmp_path / "gallery").exists() and not (tmp_path / "c.parquet").exists()


STARTS = ("simplecache::file://", "filecache::", "zip://x.png::", "dir::", "reference::", "../" * 20)


@pytest.mark.parametrize("start", STARTS)
def test_no_url_holds_another_one(secret: Path, tmp_path: Path, start: str) -> None:
    """fsspec's own way of opening would open the local file."""
    put(STORE, {"c.csv": table(f"{start}{secret}").to_csv(index=False).encode()})
    try:
        images = ImageList.from_catalog(Catalog.read(f"{STORE}/c.csv"))
    except UserError as error:
        assert "are not read" in str(error)
        return
    assert all(path.startswith(f"{STORE}/") or path.startswith("memory://") for path in images.paths)
    put(STORE, {"a.png": secret.read_bytes()})
    run = untrained(tmp_path / "run")
    found = embed(run, tmp_path / "v.parquet", catalog=f"{STORE}/c.csv", on_bad="drop", workers=0)
    assert [table["path"].tolist() for _, table in found.blocks()] == [[f"{STORE}/a.png"]]


def test_a_table_of_your_own_may_name_urls_but_no_url_of_a_file(secret: Path, tmp_path: Path) -> None:
    put(STORE, {"b.png": secret.read_bytes()})
    table(f"{STORE}/b.png").to_csv(tmp_path / "c.csv", index=False)
    assert Catalog.read(tmp_path / "c.csv").paths == [tmp_path / "a.png", f"{STORE}/b.png"]
    table(f"file://{secret}").to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(UserError, match="leave out file://"):
        Catalog.read(tmp_path / "c.csv")


def test_the_service_opens_nothing_that_a_client_names(
    secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")
    server = pytest.importorskip("tests.helpers.server", reason="the extra serve is not installed")
    put(STORE, {f"{n}.png": write_picture(tmp_path / "shown" / f"{n}.png", n).read_bytes() for n in (1, 2, 3)})
    run = untrained(tmp_path / "run")
    rows = [{"path": f"{STORE}/{n}.png", "label": "a", "split": "test"} for n in (1, 2)]
    pd.DataFrame(rows).assign(note="x").to_csv(tmp_path / "c.csv", index=False)
    gallery = server.gallery_at(tmp_path / "gallery", run, tmp_path / "c.csv")
    opened: list[str] = []
    monkeypatch.setattr("proxygml.serving.pictures.read_file", _recorded(opened))
    names = [str(secret), f"file://{secret}", f"{STORE}/3.png", "http://127.0.0.1:9/x.png"]
    with (
        server.Running(gallery, run, server.Limits()) as running,
        httpx.Client(base_url=running.address, **server.TIMES) as client,
    ):
        for name in names:
            quoted = quote(name, safe="")
            for answer in (
                client.post("/search", data={"image": name, "k": 1}),
                client.post("/search", files={"image": (name, name.encode())}),
                client.post("/search", files={"image": ("a.png", b"")}, data={"url": name, "path": name}),
                client.post("/items", data={"image": name}, headers=server.AUTHORISED),
                server.post(client, "/items", server.picture(), column=f"path={name}"),
                server.post(client, "/search", server.picture(), where=f"path={name}"),
                client.get(
                    f"/items/{httpx.URL(scheme='http', host='x', path='/' + quoted).raw_path.decode()[1:]}/image"
                ),
                client.get("/items/0/image/" + quoted),
            ):
                assert 400 <= answer.status_code < 500, (name, answer.request.url, answer.status_code)
            added = server.post(client, "/items", server.picture(), column=[f"label={name}", f"note={name}"])
            assert added.status_code == 201
            shown = client.get(f"/items/{added.json()['id']}/image").content
            assert shown[:2] == b"\xff\xd8"
        assert not [path for path in opened if "added" not in path and "images" not in path]
        assert client.get("/items/0/image").status_code == 200 and opened == [f"{STORE}/1.png"]
    paths = Gallery.load(gallery).items["path"]
    assert not set(names) & set(paths)


def _recorded(opened: list[str]):  # type: ignore[no-untyped-def]
    from proxygml.data.images.decode import read_file

    def read(path: str) -> bytes:
        opened.append(path)
        return read_file(path)

    return read
