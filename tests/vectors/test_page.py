"""The page of a gallery that is searched with vectors, in headless Chromium."""

from pathlib import Path
from typing import Any

import pytest

from proxygml import Embedder, Gallery, index
from proxygml.serving.limits import Limits
from proxygml.training.run_folder import RunFolder
from tests.helpers.browser import chromium
from tests.helpers.server import Running
from tests.helpers.vector_files import SIZE, labelled_vectors, write_file

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
serving_page = pytest.importorskip("proxygml.serving.page", reason="the extra serve is not installed")


def test_the_page_says_what_it_takes_and_searches_with_a_vector(run: RunFolder, tmp_path: Path) -> None:
    vectors, labels = labelled_vectors()
    write_file(tmp_path / "f.parquet", vectors, labels, label=labels)
    index(run.path, tmp_path / "gallery", vectors=tmp_path / "f.parquet")
    nearest = Gallery.load(tmp_path / "gallery").search(Embedder.load(run.path).embed(vectors[:1]), 3).ids[0].tolist()
    with Running(tmp_path / "gallery", run.path, Limits()) as server, chromium() as browser:
        serving_page.add_page(server.app)
        page: Any = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(server.address)
        expect = playwright.expect
        expect(page.get_by_role("heading", name="Search by vector")).to_be_visible()
        expect(page.get_by_text(f"{SIZE} numbers, as JSON or separated by commas")).to_be_visible()
        expect(page.get_by_text("Drop an image here")).not_to_be_visible()
        page.get_by_label("Vector").fill("1, 2")
        page.get_by_role("button", name="Search", exact=True).click()
        expect(page.get_by_text("Vector has 2 numbers")).to_be_visible()
        page.get_by_label("Results").fill("3")
        page.get_by_label("Vector").fill(str(vectors[0].tolist()))
        page.get_by_role("button", name="Search", exact=True).click()
        expect(page.get_by_role("heading", name="3 nearest to your vector")).to_be_visible()
        assert [int(tile.get_attribute("data-item")) for tile in page.locator(".tile").all()] == nearest
        page.locator(".tile").first.click()
        expect(page.get_by_role("heading", name=f"3 nearest to item {nearest[0]}")).to_be_visible()
