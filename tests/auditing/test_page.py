"""The page of an audit, worked through in headless Chromium: by keyboard, by mouse, on a telephone, and to the end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import proxygml
from proxygml.data.catalog import Catalog
from proxygml.data.preparing.prepare import prepare
from tests.helpers.browser import chromium
from tests.helpers.commands import run
from tests.helpers.noise import clustered, mislabelled_at_random
from tests.helpers.pictures import write_picture
from tests.helpers.vector_files import write_file

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

expect = playwright.expect
TELEPHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
CLASSES = ["=ant", 'bee "b", <b>x</b>', "</script><script>alert(1)</script>", "dog"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of vectors with pictures; twelve of 120 labels are wrong, and two copies have two labels."""
    folder = tmp_path_factory.mktemp("audit page")
    vectors, right = clustered(120, classes=4)
    labels = mislabelled_at_random(right, 0.1)
    vectors[60] = vectors[0]
    labels[60] = (labels[0] + 1) % 4
    paths: list[object] = [f"pictures/{row}.png" for row in range(120)]
    for row in range(119):  # the last one is missing
        write_picture(folder / f"pictures/{row}.png", row)
    names: list[object] = ["train" if label < 2 else "test" for label in labels]
    file = write_file(folder / "raw.parquet", vectors, [CLASSES[label] for label in labels], path=paths, split=names)
    prepare("vectors", file, folder / "catalog.parquet", options={"label": "product"})
    run("audit", "--catalog", folder / "catalog.parquet", "--out", folder / "audit")
    return folder


@pytest.fixture
def visit(browser: Any, folder: Path) -> Iterator[Any]:
    """The page, freshly opened; at the end it has complained of nothing and has fetched nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield from _opened(context, folder)
    context.close()


def _opened(context: Any, folder: Path) -> Iterator[Any]:
    page = context.new_page()
    page.set_default_timeout(60_000)  # on a busy machine
    complaints: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((folder / "audit" / "audit.html").as_uri())
    page.locator("#progress").filter(has_text="decided").wait_for()
    yield page
    assert complaints == []
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [requests[0]]


def saved(page: Any, folder: Path) -> Path:
    with page.expect_download() as download:
        page.keyboard.press("s")
    path = folder / "corrections.csv"
    download.value.save_as(path)
    return path


def test_labels_are_corrected_by_keyboard_and_the_file_is_applied(visit: Any, folder: Path) -> None:
    table = pd.read_csv(folder / "audit" / "audit.csv", keep_default_na=False)
    source = Catalog.read(folder / "catalog.parquet")
    visit.keyboard.press("a")  # accept the first suggestion
    visit.keyboard.press("k")  # keep the second label
    visit.keyboard.press("r")  # remove the third image
    visit.keyboard.press("c")  # correct the fourth
    visit.keyboard.type("dog")
    visit.keyboard.press("Enter")
    expect(visit.locator("#progress")).to_contain_text("4 of")
    visit.keyboard.press("a")
    visit.keyboard.press("ArrowUp")
    visit.keyboard.press("u")  # not the fifth after all
    path = saved(visit, folder)
    rows = table["row"].iloc[:4].tolist()
    made = pd.read_csv(path, keep_default_na=False).set_index("row")
    assert made.loc[rows, "decision"].tolist()[:3] == ["correct", "keep", "remove"]
    assert len(made) == 4
    run(
        "prepare", "--labels", path, "--catalog", folder / "catalog.parquet", "--out", folder / "new.parquet", "--force"
    )
    after = Catalog.read(folder / "new.parquet").table.set_index("path")
    names = source.table["path"].iloc[rows].tolist()
    suggestion = table["suggestion"][0].removeprefix("'")
    assert after.loc[names[0], "label"] == suggestion
    assert after.loc[names[0], "split"] == ("train" if suggestion in CLASSES[:2] else "test")
    assert after.loc[names[1], "label"] == source.table["label"].iloc[rows[1]]
    assert names[2] not in after.index
    assert after.loc[names[3], ["label", "split"]].tolist() == ["dog", "test"]


def test_decisions_stay_when_the_page_is_opened_again_and_can_be_read_from_a_file(
    browser: Any, folder: Path, tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    for page in _opened(context, folder):
        page.get_by_role("button", name="Keep").nth(1).click()
        path = saved(page, tmp_path)
    for page in _opened(context, folder):
        expect(page.locator("#progress")).to_contain_text("1 of")
        expect(page.locator(".card").nth(1).locator(".said")).to_contain_text("Keep")
        page.on("dialog", lambda dialog: dialog.accept())
        page.locator("#clear").click()
        expect(page.locator("#progress")).to_contain_text("0 of")
        page.locator("#load").set_input_files(path)
        expect(page.locator("#progress")).to_contain_text("1 of")
    context.close()


def test_a_telephone_shows_it_in_one_column(browser: Any, folder: Path) -> None:
    context = browser.new_context(**TELEPHONE, color_scheme="dark")
    for page in _opened(context, folder):
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 23, 28)"
        page.get_by_role("button", name="Remove").first.tap()
        expect(page.locator("#progress")).to_contain_text("1 of")
    context.close()


def test_the_page_shows_pictures_examples_and_copies_and_says_what_it_leaves_out(
    visit: Any, folder: Path, tmp_path: Path
) -> None:
    expect(visit.locator(".card").first.locator("img")).to_have_count(7)
    expect(visit.get_by_role("heading", name="Near-duplicates under two labels")).to_be_visible()
    copies = pd.read_csv(folder / "audit" / "duplicates.csv")
    assert copies["row"].tolist() == [0, 60]
    assert copies["two_labels"].all()
    proxygml.audit(None, folder / "catalog.parquet", tmp_path / "short", page_images=3)
    text = (tmp_path / "short" / "audit.html").read_text(encoding="utf-8")
    assert "This page shows the first 3 of " in text
    assert len(text) < (folder / "audit" / "audit.html").stat().st_size


def test_without_wrong_labels_the_page_says_so(browser: Any, tmp_path: Path) -> None:
    vectors, labels = clustered(100, classes=4, spread=0.1)
    file = write_file(tmp_path / "raw.parquet", vectors, [f"c{label}" for label in labels])
    prepare("vectors", file, tmp_path / "catalog.parquet", options={"label": "product", "test_classes": "half"})
    proxygml.audit(None, tmp_path / "catalog.parquet", tmp_path / "audit")
    page = browser.new_page()
    page.goto((tmp_path / "audit" / "audit.html").as_uri())
    expect(page.locator("#cards")).to_contain_text("No label is contradicted")
    expect(page.locator("header")).to_contain_text("No wrong label was found among 100 vectors")
    page.close()
    assert np.isin(pd.read_csv(tmp_path / "audit" / "audit.csv")["keep"], True).all()
