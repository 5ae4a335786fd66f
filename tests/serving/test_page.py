"""The page as a person uses it, in headless Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxygml import Gallery
from proxygml.data.catalog import Catalog
from proxygml.serving.limits import Limits
from tests.helpers.models import untrained
from tests.helpers.server import Running, gallery_at

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
page_room = pytest.importorskip("proxygml.serving.page", reason="the extra serve is not installed")

pytestmark = [pytest.mark.xdist_group("serve"), pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture
def page() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(30_000)
        yield page
        browser.close()


@pytest.fixture
def server(small_catalog: Path, tmp_path: Path) -> Iterator[Running]:
    run = untrained(tmp_path / "run")
    folder = gallery_at(tmp_path / "gallery", run, small_catalog)
    running = Running(folder, run, Limits(max_pixels=250_000))
    page_room.add_page(running.app, running.service)
    with running:
        yield running


def captions(page: Any) -> list[str]:
    return [text.strip() for text in page.locator(".caption-label").all_inner_texts()]


def test_an_image_is_dropped_and_a_result_searched_on_from(
    server: Running, page: Any, small_catalog: Path, tmp_path: Path
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.address)
    page.get_by_text("Search 48 images").wait_for()
    catalog = Catalog.read(small_catalog).split("test")
    page.locator("input[type=file]").first.set_input_files(catalog.paths[3])
    page.locator(".caption-label").first.wait_for()
    first = captions(page)
    assert len(first) == 12
    assert first[0].startswith("1.000") and catalog.labels[3] in first[0]
    found = Gallery.load(server.service.gallery.place).search(server.service.embedder.embed([catalog.paths[3]]), 3)
    page.locator(".caption-label").nth(2).click()
    item = int(found.ids[0, 2])
    page.get_by_text(f"Nearest to item {item}.").wait_for()
    page.wait_for_function("old => document.querySelector('.caption-label').innerText.trim() !== old", arg=first[0])
    assert captions(page)[0].startswith("1.000")
    page.screenshot(path=tmp_path / "page.png")
    # It works on a machine without any other network.
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {server.address.split("/")[2]}


def test_what_is_no_image_is_said_on_the_page(server: Running, page: Any, tmp_path: Path) -> None:
    page.goto(server.address)
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"no picture at all")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "photo.png")
    page.get_by_text("no PNG file that can be read").wait_for()


def test_a_click_on_results_that_are_forgotten_is_answered(server: Running) -> None:
    """As of a person who comes back after a while: the server knows the session no more."""
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=f"{server.address}/page", trust_env=False, timeout=60) as client:
        functions = client.get("/config").json()["dependencies"]
        clicked = next(one["id"] for one in functions if any(event == "select" for _, event in one["targets"]))
        question = {
            "fn_index": clicked,
            "session_hash": "anew",
            "data": [None, 12],
            "event_data": {"index": 2, "value": None},
        }
        assert client.post("/gradio_api/queue/join", json=question).status_code == 200
        told = client.get("/gradio_api/queue/data", params={"session_hash": "anew"}).text
    assert "These results are too old" in told


def test_what_the_page_is_sent_has_the_limit_of_all(server: Running) -> None:
    httpx = pytest.importorskip("httpx")
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    chunks = [head, *[bytes(10**6)] * 30]
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    address = f"{server.address}/page/gradio_api/upload"
    answer = httpx.post(address, content=iter(chunks), headers=headers, trust_env=False, timeout=60)
    assert (answer.status_code, set(answer.json())) == (413, {"error"})


@pytest.mark.parametrize("route", ["file=/etc/passwd", "file=../../etc/passwd", "file=..%2f..%2fetc%2fpasswd"])
def test_the_page_leads_to_no_file_of_the_server(server: Running, route: str) -> None:
    httpx = pytest.importorskip("httpx")
    place = Path(server.service.gallery.place)
    for base in ("/page/gradio_api/", "/page/", "/gradio_api/"):
        for wanted in (route, f"file={place / 'gallery.json'}"):
            answer = httpx.get(server.address + base + wanted, trust_env=False)
            assert answer.status_code in (403, 404), (base, wanted)
