"""The documentation: the site builds, every link and picture of it leads somewhere, and every command is described."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch

from proxygml.cli.main import COMMANDS
from proxygml.serving.limits import Limits
from tests.helpers.browser import chromium

ROOT = Path(__file__).parents[1]
LOADED = {"img": "src", "script": "src", "source": "src", "link": "href", "iframe": "src"}
RELATIONS_THAT_LOAD = {"stylesheet", "icon", "preload", "modulepreload", "manifest"}
README_WORDS = 900


class Page(HTMLParser):
    """The anchors of a page, the addresses that it links to, and those that a browser loads with it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "__top"}
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors.update(found[key] for key in ("id", "name") if key in found)
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in LOADED and LOADED[tag] in found:
            loads = tag != "link" or set(found.get("rel", "").split()) & RELATIONS_THAT_LOAD
            (self.loads if loads else self.links).append(found[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly from a copy, so that nothing is written into the checkout."""
    pytest.importorskip("zensical", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("documentation")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "site"


def test_every_link_and_picture_of_the_site_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}  # whose links start at /
    assert len(pages) >= len(list((ROOT / "docs").rglob("*.md")))
    broken = []
    for path, page in pages.items():
        for address in [*page.links, *page.loads]:
            if urlsplit(address).scheme or address.startswith("//"):
                continue
            target, _, anchor = address.partition("#")
            file = (path.parent / unquote(target.partition("?")[0])).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or (file in pages and unquote(anchor) not in pages[file].anchors):
                broken.append(f"{path.relative_to(site)}: {address}")
    assert broken == []


def test_the_pages_load_nothing_from_another_server(site: Path) -> None:
    loaded = {address for path in site.rglob("*.html") for address in Page(path).loads}
    assert loaded
    assert {address for address in loaded if urlsplit(address).netloc} == set()
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    fetched = {url for text in styles for url in re.findall(r"(?:url\(|@import )['\"]?([^'\")]+)", text)}
    assert {url for url in fetched if urlsplit(url).netloc} == set()


def test_the_files_that_style_sheets_name_are_there(site: Path) -> None:
    style = site / "vendor" / "katex" / "katex.min.css"
    fonts = set(re.findall(r"url\(([^)]+)\)", style.read_text(encoding="utf-8")))
    assert len(fonts) >= 10
    assert {font for font in fonts if not (style.parent / font).is_file()} == set()


def test_the_api_page_shows_the_arguments_of_what_is_public(site: Path) -> None:
    assert "neighbor_ratio" in (site / "api" / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_renders_the_equations_and_asks_no_other_server(address: str, scheme: str) -> None:
    with chromium() as browser:
        page = browser.new_page(color_scheme=scheme)
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(f"{address}/method/", wait_until="networkidle")
        assert page.locator(".katex-display math").count() >= 6
        assert page.locator(".katex-error").count() == 0
        assert page.locator(".arithmatex").count() == page.locator(".katex").count()
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert [url for url in requested if not url.startswith((address, "data:", "blob:"))] == []


def test_the_search_finds_a_word_of_a_page(site: Path) -> None:
    assert "relation-guided" in (site / "search.json").read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_described(command: str) -> None:
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")]
    assert any(f"proxygml {command}" in page for page in pages)


@pytest.mark.parametrize("limit", [field.name for field in fields(Limits)])
def test_every_limit_of_the_server_is_described(limit: str) -> None:
    assert f"`--{limit}`" in (ROOT / "docs" / "guide" / "serving.md").read_text(encoding="utf-8")


def test_every_recipe_is_described() -> None:
    page = (ROOT / "docs" / "guide" / "recipes.md").read_text(encoding="utf-8")
    recipes = {path.stem for path in (ROOT / "proxygml" / "recipes").glob("*.yaml")}
    assert {name for name in recipes if f"`{name}`" not in page} == set()


def test_every_folder_of_the_package_is_described() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "proxygml").glob("*/__init__.py")}
    assert {name for name in folders if f"`{name}/`" not in page} == set()


def test_the_readme_is_short() -> None:
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    assert len(words) <= README_WORDS


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block as it stands, in order, with data of a reader's kind under the names that it uses."""
    monkeypatch.chdir(tmp_path)
    batch = (torch.randn(32, 10), torch.randint(100, (32,)))
    training: dict[str, Any] = {"network": torch.nn.Linear(10, 512), "loader": [batch, batch]}
    vectors = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    kept: dict[str, Any] = {"vectors": vectors, "queries": vectors[:2], "labels": ["sparrow", "owl", "robin"] * 20}
    kept["paths"] = [f"{number}.jpg" for number in range(60)]
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block, given in zip(blocks, (training, kept), strict=True):
        exec(compile(block, "README.md", "exec"), given)
    assert set(kept["found"].rows(0)["label"]) == {"sparrow"}
    assert (tmp_path / "gallery").is_dir()


def test_every_file_that_the_architecture_names_is_there() -> None:
    pages = [(ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("architecture.md", "guide/extending.md")]
    named = {name.removeprefix("proxygml/") for page in pages for name in re.findall(r"`([\w/]+/[a-z_]+\.py)`", page)}
    assert named
    assert {name for name in named if not (ROOT / "proxygml" / name).is_file()} == set()


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_the_links_of_the_pages_beside_the_package_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not urlsplit(link).scheme}
    assert {link for link in links if link and not (ROOT / link).exists()} == set()
