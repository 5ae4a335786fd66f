"""The map of a report as a person uses it, in headless Chromium, from a file and without a network."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from proxygml.data.catalog import Catalog
from proxygml.data.columns import EMBEDDING_ROW
from proxygml.data.vectors.source import VectorSource
from proxygml.evaluation.metrics import evaluate
from proxygml.reports import embedding_map as maps
from proxygml.reports.html import write_page
from proxygml.reports.map_section import MapItems, map_section
from tests.helpers.browser import chromium

HOSTILE = "</script><img src=x onerror=alert(1)>"
CLASSES = [HOSTILE, "owl", "Großer <b>Wal</b>", "\u3042\u3044"]
COUNT = 40
PLACE = """(index) => {
    const page = Bokeh.documents[0], plot = page.get_model_by_name("embedding_map");
    const data = page.get_model_by_name("points").data;
    const column = (name) => data instanceof Map ? data.get(name) : data[name];
    const { x_range: x, y_range: y } = plot;
    return [(column("x")[index] - x.start) / (x.end - x.start), (y.end - column("y")[index]) / (y.end - y.start)];
}"""
WIDTH = '() => { const r = Bokeh.documents[0].get_model_by_name("embedding_map").x_range; return r.end - r.start; }'


def embedded() -> torch.Tensor:
    """Four groups in 8 dimensions; two points lie in the group of another class."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.eye(4, 8).repeat_interleave(10, dim=0) + 0.08 * torch.randn(COUNT, 8, generator=generator)
    embeddings[[4, 18]] = embeddings[[34, 38]] + 0.01
    return embeddings


def catalog_in(folder: Path, **columns: Any) -> Catalog:
    return Catalog(pd.DataFrame({"label": np.repeat(CLASSES, 10), "split": "test", **columns}), folder)


def vectors_in(folder: Path, **columns: Any) -> Catalog:
    """The same items as vectors, without images."""
    np.save(folder / "vectors.npy", embedded().numpy())
    table = pd.DataFrame({"label": np.repeat(CLASSES, 10), EMBEDDING_ROW: range(COUNT)} | {"split": "test"} | columns)
    return Catalog(table, folder, VectorSource(folder / "vectors.npy"))


def page_of(catalog: Catalog, others: tuple[torch.Tensor, Catalog] | None = None) -> Path:
    """A page with the map alone."""
    embeddings = embedded()
    evaluation = evaluate(embeddings, catalog.labels, nmi=False, **catalog.rules)
    section = map_section(MapItems(embeddings, catalog, evaluation.scores, seed=0, others=others))
    write_page(catalog.folder / "report.html", "runs/first", "", [section])
    return catalog.folder / "report.html"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("map")
    for index in range(COUNT):
        Image.new("RGB", (40, 30), (6 * index, 90, 200)).save(folder / f"{index:02d}.png")
    roles = {"is_query": np.arange(COUNT) % 2 == 0, "is_gallery": True}
    return page_of(catalog_in(folder, path=[f"{index:02d}.png" for index in range(COUNT)], **roles))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


class Visit:
    """A page in the browser, what it fetched and what it complained of."""

    def __init__(self, browser: Any, path: Path, **settings: Any) -> None:
        self.page = browser.new_page(**({"viewport": {"width": 1200, "height": 900}} | settings))
        self.page.set_default_timeout(60_000)  # on a busy machine
        self.fetched: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.goto(path.as_uri())
        self.address = path.as_uri()

    def ready(self) -> "Visit":
        self.page.locator("#map[data-ready]").wait_for()
        self.page.locator("#map-plot").scroll_into_view_if_needed()
        return self

    def place(self, index: int) -> tuple[float, float]:
        """Where a point is drawn, in pixels of the window."""
        box = self.page.locator("#map-plot").bounding_box()
        x, y = self.page.evaluate(PLACE, index)
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def card(self) -> list[str]:
        self.page.locator("#map-card:not([hidden])").wait_for()
        return str(self.page.locator("#map-card").inner_text()).splitlines()

    def search(self, words: str) -> str:
        self.page.locator("#map-search").fill(words)
        self.page.locator("#map-found").filter(has_text="ound").wait_for()
        self.page.wait_for_timeout(0)
        return str(self.page.locator("#map-found").inner_text())

    def close(self) -> None:
        """Check that nothing but the file was fetched and nothing was complained of."""
        assert [url for url in self.fetched if not url.startswith("data:image/")] == [self.address]
        assert self.complaints == []
        self.page.close()


@pytest.mark.parametrize("index", [0, 18, 25])
def test_pointing_at_a_mark_shows_its_class_its_path_and_its_picture(browser, path, index):
    visit = Visit(browser, path).ready()
    visit.page.mouse.move(*visit.place(index))
    shown = visit.card()
    assert shown[0] == CLASSES[index // 10]
    assert shown[-1] == f"{index:02d}.png"
    if index == 18:
        assert "nearest neighbour: another class" in shown
    source = visit.page.locator("#map-card img").get_attribute("src").removeprefix("data:image/webp;base64,")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB"))
    np.testing.assert_allclose(picture.mean(axis=(0, 1)), (6 * index, 90, 200), atol=6)
    visit.close()


def test_the_search_finds_classes_and_paths_and_zooms_to_them(browser, path):
    visit = Visit(browser, path).ready()
    whole = visit.page.evaluate(WIDTH)
    assert visit.search("WAL</b") == "10 of 40 found"
    assert visit.page.evaluate(WIDTH) < whole
    legend = visit.page.locator("#map-legend button")
    assert legend.locator("span").all_inner_texts() == [CLASSES[2]]
    visit.page.locator("#map-search").press("Enter")
    assert visit.card()[0] == CLASSES[2]
    visit.page.locator("#map-search").fill("no such thing")
    visit.page.locator("#map-found").filter(has_text="Nothing found").wait_for()
    visit.page.locator("#map-search").fill("31.png")
    visit.page.locator("#map-found").filter(has_text="1 of 40 found").wait_for()
    visit.page.locator("#map-search").press("Enter")
    assert visit.card()[-1] == "31.png"
    visit.page.get_by_role("button", name="Whole map").click()
    assert visit.page.evaluate(WIDTH) == pytest.approx(whole)
    visit.close()


def test_points_are_coloured_by_class_outcome_and_role_and_the_legend_picks_one_out(browser, path):
    visit = Visit(browser, path).ready()
    rows = visit.page.locator("#map-legend button")
    assert set(rows.locator("span").all_inner_texts()) == set(CLASSES)
    options = visit.page.locator("#map-colour option").all_inner_texts()
    assert options == ["class", "nearest neighbour", "role"]
    vectors = torch.nn.functional.normalize(embedded(), dim=1).numpy()
    found = (vectors @ vectors.T - 9 * np.eye(COUNT)).argmax(axis=1)
    wrong = int((found // 10 != np.arange(COUNT) // 10)[::2].sum())  # of the queries
    assert wrong > 0
    outcomes = ["20", str(20 - wrong), str(wrong)]
    for choice, counts in (("role", ["20", "20"]), ("nearest neighbour", outcomes), ("role", ["20", "20"])):
        visit.page.locator("#map-colour").select_option(choice)
        assert rows.locator("small").all_inner_texts() == counts
    rows.filter(has_text="query and gallery").click()
    assert visit.page.locator("#map-found").inner_text() == "20 of 40 found"
    visit.close()


def test_the_wheel_scrolls_the_page_until_the_map_was_clicked(browser, path):
    visit = Visit(browser, path).ready()
    whole = visit.page.evaluate(WIDTH)
    visit.page.get_by_role("button", name="Zoom in").click()
    assert visit.page.evaluate(WIDTH) < whole
    visit.page.get_by_role("button", name="Whole map").click()
    x, y = visit.place(0)
    visit.page.evaluate("scrollTo({ top: 40, behavior: 'instant' })")
    visit.page.mouse.move(x, y)
    visit.page.mouse.wheel(0, -100)
    visit.page.wait_for_function("scrollY === 0")  # the page moves, and places on it are known when it has come to rest
    assert visit.page.evaluate(WIDTH) == pytest.approx(whole)
    x, y = visit.place(0)
    visit.page.mouse.move(x, y)
    visit.page.mouse.wheel(0, -100)  # the page does not move further
    notice = visit.page.locator("#map-notice")
    notice.filter(has_text="Click the map").wait_for(state="visible")  # said to those who wanted to zoom
    assert visit.page.evaluate(WIDTH) == pytest.approx(whole)
    visit.page.mouse.click(x, y)
    assert notice.is_hidden()
    visit.page.mouse.wheel(0, -100)
    assert notice.is_hidden()
    visit.page.wait_for_function(f"() => ({WIDTH})() < {whole} * 0.99")
    visit.close()


def test_scripts_of_others_do_not_run_and_nothing_is_fetched(browser, path):
    visit = Visit(browser, path).ready()
    visit.page.evaluate(
        "() => { const added = document.createElement('script'); added.textContent = 'window.ran = true';"
        "document.body.append(added, Object.assign(new Image(), { src: 'https://example.org/x' })); }"
    )
    assert visit.page.evaluate("window.ran === undefined")
    assert len(visit.complaints) == 2
    assert all("Content Security Policy" in complaint for complaint in visit.complaints)
    visit.page.close()


def test_without_scripts_and_on_paper_the_map_is_a_picture(browser, path):
    still = Visit(browser, path, java_script_enabled=False)
    assert still.page.get_by_alt_text("Map of the embeddings").is_visible()
    assert not still.page.locator("#map").is_visible()
    still.close()
    visit = Visit(browser, path).ready()
    picture = visit.page.get_by_alt_text("Map of the embeddings")
    assert not picture.is_visible()
    visit.page.emulate_media(media="print")
    assert picture.is_visible()
    assert not visit.page.locator("#map").is_visible()
    visit.close()


def test_the_map_fits_a_telephone_and_a_dark_screen(browser, path):
    telephone = {
        "viewport": {"width": 390, "height": 844},
        "is_mobile": True,
        "has_touch": True,
        "color_scheme": "dark",
    }
    visit = Visit(browser, path, **telephone).ready()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    visit.page.touchscreen.tap(*visit.place(25))
    assert visit.card()[-1] == "25.png"
    colours = visit.page.evaluate(
        "() => (({ color, backgroundColor }) => [color, backgroundColor])"
        "(getComputedStyle(document.querySelector('#map-card')))"
    )
    ink, card = (sum(map(int, colour[4:-1].split(",")[:3])) for colour in colours)
    assert ink > 600
    assert card < 200
    visit.close()


def test_vectors_of_several_splits_have_a_map_that_shows_their_ids_and_splits(browser, tmp_path):
    ids = [f"item-{index}" for index in range(COUNT)]
    trained = vectors_in(tmp_path, id="trained", split="train")
    path = page_of(vectors_in(tmp_path, id=ids), (-embedded(), trained))
    visit = Visit(browser, path).ready()
    visit.page.mouse.move(*visit.place(5))
    assert visit.card()[-1] == "item-5"
    assert "split: test" in visit.card()
    visit.page.mouse.move(*visit.place(COUNT + 5))
    visit.page.locator("#map-card").filter(has_text="trained").wait_for()
    assert {"split: train", "nearest neighbour: not a query, or alone in its class"} <= set(visit.card())
    visit.page.locator("#map-colour").select_option("split")
    assert visit.page.locator("#map-legend button span").all_inner_texts() == ["test", "train"]
    assert visit.page.locator("#map-card img").count() == 0
    visit.close()


def test_pictures_stop_at_the_budget_and_long_or_broken_texts_are_bounded():
    noise = np.random.default_rng(0).integers(0, 255, (30, 30, 3), dtype=np.uint8)
    small = maps.thumbnails(50, lambda index: noise + np.uint8(index), seed=0, budget=5_000)
    assert 0 < len(small) < 50
    assert sum(map(len, small.values())) <= 5_000
    assert min(small) > 0 or max(small) > len(small), "drawn at random, not the first ones"
    codes = maps.by_class(np.array(["a", "b"]))
    made = maps.interactive_map(np.eye(2), [codes], ["x" * 1000, "half \udc80 </script>"], {})
    assert "<" not in made.data
    long, broken = json.loads(made.data)["texts"]
    assert len(long) <= maps.LETTERS
    assert broken == "half ? </script>"


def test_hundreds_of_classes_have_colours_of_their_own():
    assert len(set(maps.class_colours(500))) == 500
