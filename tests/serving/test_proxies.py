"""The server behind a proxy and for other web sites: root paths, HEAD, and which origins may use it from a browser."""

import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from proxygml.errors import UserError
from proxygml.serving.limits import Limits
from tests.helpers.browser import chromium
from tests.helpers.server import AUTHORISED, TIMES, TOKEN, Running, gallery_at, picture, post

httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")
app = pytest.importorskip("proxygml.serving.api", reason="the extra serve is not installed")
page = pytest.importorskip("proxygml.serving.page", reason="the extra serve is not installed")

pytestmark = pytest.mark.xdist_group("serve")
SHOP = "https://shop.example.org"


class Proxy(ThreadingHTTPServer):
    """Shows a server under /birds of its own address, and nothing else; with or without /birds in what it sends on."""

    daemon_threads = True

    def __init__(self, port: int, strips: bool) -> None:
        self.upstream, self.strips = port, strips
        super().__init__(("127.0.0.1", 0), _Passing)
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass_on(self) -> None:
        path = self.path
        if not path.startswith("/birds") or (path == "/birds" and self.server.strips):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        upstream = HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        sent = path.removeprefix("/birds") if self.server.strips else path
        upstream.request(self.command, sent, body, dict(self.headers.items()))
        answer = upstream.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        upstream.close()

    do_GET = do_HEAD = do_POST = do_DELETE = do_OPTIONS = _pass_on  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


@pytest.fixture(scope="module")
def running(run_folder: Path, small_catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = gallery_at(tmp_path_factory.mktemp("served") / "gallery", run_folder, small_catalog)
    origins = [SHOP, "http://localhost:5173"]
    with Running(folder, run_folder, Limits(), root_path="/birds", cors_origins=origins) as running:
        page.add_page(running.app)
        yield running


@pytest.fixture(params=[True, False], ids=["stripped", "passed on"])
def proxy(request: pytest.FixtureRequest, running: Running) -> Iterator[Proxy]:
    with Proxy(running.port, request.param) as proxy:
        yield proxy


def test_the_interface_works_under_a_root_path(proxy: Proxy, running: Running) -> None:
    with httpx.Client(base_url=f"{proxy.address}/birds", **TIMES) as client:
        assert client.get("/health").json()["items"] == 48
        assert len(post(client, "/search", picture(), k=3).json()["items"]) == 3
        item = post(client, "/items", picture(), column="label=new").json()["id"]
        assert client.get(f"/items/{item}/image").headers["content-type"] == "image/jpeg"
        assert client.delete(f"/items/{item}", headers=AUTHORISED).status_code == 204
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/birds"}]
        for path in ("/", "/static/page.js", "/static/page.css", "/docs", "/docs/start.js"):
            assert client.get(path).status_code == 200, path
    assert httpx.get(f"{proxy.address}/birdsong", **TIMES).status_code == 404
    if not proxy.strips:  # else the proxy has to
        moved = httpx.get(f"{proxy.address}/birds", **TIMES)
        assert (moved.status_code, moved.headers["location"]) == (308, "/birds/")


def test_the_page_works_under_a_root_path(proxy: Proxy, small_catalog: Path) -> None:
    with chromium() as browser:
        view = browser.new_page()
        view.set_default_timeout(60_000)
        failed: list[str] = []

        def note(url: str, problem: object) -> None:
            # Pictures that a new answer replaces are given up; those of a busy server are loaded again.
            if problem not in ("net::ERR_ABORTED", 429, 503):
                failed.append(f"{url}: {problem}")

        view.on("requestfailed", lambda request: note(request.url, request.failure))
        view.on("response", lambda answer: note(answer.url, answer.status) if answer.status >= 400 else None)
        view.goto(f"{proxy.address}/birds/")
        view.locator("#file").set_input_files(small_catalog.parent / "12_0.png")
        view.locator("#title").filter(has_text="nearest to your image").wait_for()
        view.locator("#results[aria-busy=false]").wait_for()
        assert view.locator(".tile img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 320
        view.locator("#change summary").click()
        view.locator("#token").fill(TOKEN)
        view.locator("#add").click()
        view.locator("#status").filter(has_text="added").wait_for()
        view.wait_for_load_state("networkidle")
        view.goto(f"{proxy.address}/birds/docs")
        view.locator(".servers select").wait_for()
        assert view.locator(".servers select").input_value() == "/birds"
        assert not failed


@pytest.mark.parametrize("path", ["", "/", "/birds", "/birds/", "/a/b.c"])
def test_root_paths(path: str) -> None:
    assert app.checked_root_path(path) == path.rstrip("/")


@pytest.mark.parametrize("path", ["birds", "/a b", "//a", "/a?b", "/a/../b", "http://h/a", "/."])
def test_what_is_no_root_path_is_named(path: str) -> None:
    with pytest.raises(UserError, match="--root_path is "):
        app.checked_root_path(path)


@pytest.mark.parametrize(
    "path",
    ["/", "/static/page.js", "/health", "/gallery", "/metrics", "/docs", "/openapi.json", "/items/0/image",
     "/items/0/neighbors", "/items/99/image", "/none"],
)  # fmt: skip
def test_head_is_answered_as_get_without_the_body(path: str, running: Running) -> None:
    with httpx.Client(base_url=running.address, **TIMES) as client:
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        if path != "/metrics":  # whose figures have changed since
            assert head.headers["content-length"] == got.headers["content-length"] == str(len(got.content))
        assert {**head.headers, "date": "", "content-length": ""} == {**got.headers, "date": "", "content-length": ""}
        assert client.get(path).status_code == got.status_code  # the connection is whole


def test_head_changes_nothing_and_is_refused_where_there_is_no_get(running: Running) -> None:
    with httpx.Client(base_url=running.address, **TIMES) as client:
        for path in ("/search", "/items", "/items/0"):
            assert client.head(path, headers=AUTHORISED).status_code == 405
        assert client.get("/items/0/image").status_code == 200


def test_named_web_sites_may_use_the_interface_and_others_not(running: Running) -> None:
    with httpx.Client(base_url=running.address, **TIMES) as client:
        others = ("https://evil.example.org", "http://shop.example.org", f"{SHOP}.evil.org", "null")
        for origin in (SHOP, "http://localhost:5173", *others):
            allowed = origin not in others
            browser = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
            asked = {**browser, "Access-Control-Request-Method": "DELETE",
                     "Access-Control-Request-Headers": "authorization"}  # fmt: skip
            preflight = client.options("/items/0", headers=asked)
            assert (preflight.headers.get("access-control-allow-origin") == origin) == allowed
            assert (preflight.status_code == 200) == allowed
            seen = client.get("/health", headers=browser)
            assert (seen.status_code, seen.headers.get("access-control-allow-origin")) == (
                200,
                origin if allowed else None,
            )
            sent = client.post("/search", files={"image": picture()}, headers=browser)
            assert sent.status_code == (200 if allowed else 403)
            refused = client.post("/search", files={"image": b"none"}, headers=browser)
            assert refused.status_code == (415 if allowed else 403)  # and the site can read why
            assert (refused.headers.get("access-control-allow-origin") == origin) == allowed
            assert "access-control-allow-credentials" not in sent.headers
        several = [("Origin", SHOP), ("Origin", "https://evil.example.org")]
        assert client.post("/search", files={"image": picture()}, headers=several).status_code == 403
        site = {"Sec-Fetch-Site": "cross-site"}
        assert client.post("/search", files={"image": picture()}, headers=site).status_code == 403


def test_by_default_no_web_site_may(run_folder: Path, small_catalog: Path, tmp_path: Path) -> None:
    folder = gallery_at(tmp_path / "gallery", run_folder, small_catalog)
    with (
        Running(folder, run_folder, Limits()) as running,
        httpx.Client(base_url=running.address, **TIMES) as client,
    ):
        asked = {"Origin": SHOP, "Access-Control-Request-Method": "POST"}
        for answer in (client.options("/search", headers=asked), client.get("/health", headers={"Origin": SHOP})):
            assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["*", "shop.example.org", f"{SHOP}/x", "null", "ftp://h", "https://", "https://a b",
                                    "https://u@h", "https://h:x", ""])  # fmt: skip
def test_what_is_no_origin_is_named(origin: str) -> None:
    with pytest.raises(UserError, match="--cors_origin is "):
        app.web_origin(origin)


def test_origins_are_written_as_browsers_send_them() -> None:
    given = ["HTTPS://Shop.Example.Org/", "https://h:443", "http://h:80", "http://h:8080", "https://[::1]:8443"]
    expected = ["https://shop.example.org", "https://h", "http://h", "http://h:8080", "https://[::1]:8443"]
    assert list(map(app.web_origin, given)) == expected
