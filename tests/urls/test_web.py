"""Images and tables of a web server: single files are read, nothing is listed or written."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from proxygml import embed
from proxygml.data.catalog import Catalog
from proxygml.data.images.image_list import ImageList
from proxygml.data.preparing.prepare import prepare
from proxygml.errors import ImageError, RunError, UserError
from proxygml.remote import local_folder
from proxygml.urls import Url
from tests.helpers.models import untrained

pytest.importorskip("aiohttp", reason="the extra http is not installed")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path, handler: type[_Quiet] = _Quiet) -> Iterator[str]:
    """The address of a server of the files in a folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def web(few: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(few.parent) as address:
        yield address


def test_a_catalog_of_web_addresses_and_one_that_lies_at_one(few: Path, web: str, tmp_path: Path) -> None:
    """The vectors of the files; a name with a blank and a question mark is one path."""
    run = untrained(tmp_path / "run")
    expected = np.concatenate([v for v, _ in embed(run, tmp_path / "a.parquet", catalog=few, workers=0).blocks()])
    here = Catalog.read(few)
    table = here.table.assign(path=[f"{web}/{path}?size=full" for path in here.table["path"]])
    table.to_csv(tmp_path / "urls.csv", index=False)
    catalog = prepare("table", tmp_path / "urls.csv", tmp_path / "prepared.csv")
    assert catalog.paths[0] == f"{web}/{here.table['path'][0]}?size=full"
    for number, source in enumerate((tmp_path / "prepared.csv", f"{web}/few.parquet")):
        found = embed(run, tmp_path / f"{number}.parquet", catalog=source, workers=number)
        assert np.array_equal(np.concatenate([vectors for vectors, _ in found.blocks()]), expected)


def test_what_a_web_server_cannot_do_is_named(web: str, tmp_path: Path) -> None:
    run = untrained(tmp_path / "run")
    with pytest.raises(ImageError, match=r"there is no http://127.*/gone\.png"):
        ImageList.from_files([f"{web}/gone.png"])  # type: ignore[list-item]
    with pytest.raises(UserError, match="a web server, which lists no folders: give a catalog of the images"):
        prepare("folder", web, tmp_path / "c.csv", options={"test_classes": "half"})
    with pytest.raises(UserError, match="a web server, where nothing can be written"):
        embed(run, f"{web}/v.parquet", images=f"{web}/0_0.png")
    with pytest.raises(UserError, match="a web server, where nothing can be written"):
        embed(run, f"{web}/vectors", images=f"{web}/0_0.png", ray="local")


class _Endless(_Quiet):
    """Says nothing of sizes, and does not end."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        with suppress(OSError):  # when the other side has had enough
            while True:
                self.wfile.write(bytes(2**16))


def test_a_file_that_does_not_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model has few files, and each has a largest size, whatever the server says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(tmp_path, _Endless) as address, pytest.raises(RunError, match="it has more than 1,000,000 bytes"):
        local_folder(Url(f"{address}/run"), {"model.json": 10**6}, RunError)
    assert not any(path.is_file() and path.stat().st_size for path in (tmp_path / "cache").rglob("*"))
