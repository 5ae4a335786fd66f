"""The page as a browser would read it: whole in itself, escaped, with a section for whatever there is to say."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from proxygml.data.catalog import Catalog
from proxygml.errors import UserError
from proxygml.evaluation.metrics import Evaluation, evaluate
from proxygml.reports import map_section
from proxygml.reports import run_report as report
from proxygml.reports.run_report import write_report
from tests.helpers.pages import Page

LABELS = ["<wren> & co", "owl", 'a "tern"']


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Catalog:
    """Eight pictures of each of three classes, each its own grey, of several shapes."""
    folder = tmp_path_factory.mktemp("birds")
    rows = []
    for index in range(24):
        size = [(40, 40), (60, 20), (15, 50)][index % 3]
        Image.new("RGB", size, (index * 10, 90, 200)).save(folder / f"{index}.png")
        rows.append({"path": f"{index}.png", "label": LABELS[index // 8], "split": "test"})
    return Catalog(pd.DataFrame(rows), folder)


def embedded(count: int = 24) -> torch.Tensor:
    """Three loose groups: most neighbours are right, some are wrong."""
    generator = torch.Generator().manual_seed(0)
    return torch.eye(3, 8).repeat_interleave(8, dim=0)[:count] + 0.45 * torch.randn(count, 8, generator=generator)


def written(path: Path, catalog: Catalog, **changes) -> Page:
    embeddings = embedded(len(catalog))
    given = {
        "title": "runs/<b>first</b>",
        "evaluation": evaluate(embeddings, catalog.labels),
        "history": pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "mean_cosine": [0.3, 0.2]}),
        "embeddings": embeddings,
        "catalog": catalog,
    }
    write_report(path, **(given | changes))
    return Page(path)


def test_the_page_is_whole_in_itself_and_its_pictures_lie_beside_it(birds, tmp_path):
    evaluation = evaluate(embedded(), birds.labels)
    page = written(
        tmp_path / "run" / "report.html",
        birds,
        before=evaluation,
        proxy_selections=np.arange(12).reshape(3, 4),
        facts=[("catalog", "a<b>.csv")],
    )
    assert page.fetched == []
    assert page.found["h1"] == ["runs/<b>first</b>"]
    headings = " / ".join(page.found["h2"])
    for part in ("How well", "trained", "finds", "fails", "works", "classes", "map", "proxy", "Settings"):
        assert part in headings
    names = {path.name: path.read_bytes() for path in (tmp_path / "run" / "figures").iterdir()}
    assert set(names) == {
        "recall.png", "curves.png", "retrieval_random.png", "retrieval_worst.png", "retrieval_best.png",
        "map.png", "proxies.png",
    }  # fmt: skip
    assert sorted(names.values()) == sorted(page.pictures)
    for content in page.pictures:
        Image.open(io.BytesIO(content)).verify()
    cells = page.found["td"]
    assert f"{100 * evaluation.map_at_r.value:.1f}" in cells
    assert set(LABELS) <= set(cells)
    assert "a<b>.csv" in cells
    assert "Each of the 24 test images searched all the others (3 classes)" in page.found["p"][1]


def test_what_there_is_nothing_to_say_about_is_left_out(birds, tmp_path):
    page = written(tmp_path / "report.html", birds, history=None)
    headings = " / ".join(page.found["h2"])
    for part in ("trained", "proxy", "Settings"):
        assert part not in headings
    assert not (tmp_path / "figures" / "curves.png").exists()


def test_an_evaluation_from_a_file_gives_the_same_page(birds, tmp_path):
    evaluation = evaluate(embedded(), birds.labels)
    page = written(tmp_path / "report.html", birds, evaluation=evaluation)
    again = written(tmp_path / "report.html", birds, evaluation=Evaluation.from_dict(evaluation.as_dict()))
    assert again.found == page.found
    assert again.pictures == page.pictures


def test_queries_search_only_their_gallery(birds, tmp_path, monkeypatch):
    table = birds.table.assign(is_query=np.arange(24) % 4 == 0, is_gallery=np.arange(24) % 4 > 1)
    masks = {name: table[name].to_numpy() for name in ("is_query", "is_gallery")}
    drawn = []
    monkeypatch.setattr(report.figures, "retrieval_grid", spy(report.figures.retrieval_grid, drawn))
    evaluation = evaluate(embedded(), birds.labels, **masks)
    page = written(tmp_path / "report.html", Catalog(table, birds.folder), evaluation=evaluation)
    assert "Each of 6 queries searched a gallery of 12 images" in page.found["p"][1]
    greys = {int(tile.image[0, 0, 0]) // 10 for rows in drawn for row in rows for tile in row[1:]}
    assert greys <= set(np.flatnonzero(masks["is_gallery"]))
    queries = {int(row[0].image[0, 0, 0]) // 10 for rows in drawn for row in rows}
    assert queries <= set(np.flatnonzero(masks["is_query"]))


def spy(function, calls):
    def called(rows):
        calls.append(rows)
        return function(rows)

    return called


def test_the_grids_show_what_is_right_and_the_worst_and_best_queries(birds, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report.figures, "retrieval_grid", spy(report.figures.retrieval_grid, drawn))
    evaluation = evaluate(embedded(), birds.labels)
    written(tmp_path / "report.html", birds, evaluation=evaluation)
    for rows in drawn:
        assert len({row[0].label for row in rows[:3]}) == 3  # different classes first
        for query, *neighbours in rows:
            assert query.right is None
            assert [tile.right for tile in neighbours] == [tile.label == query.label for tile in neighbours]
            similarity = [float(tile.note) for tile in neighbours]
            assert similarity == sorted(similarity, reverse=True)
    _, worst, best = ([int(row[0].image[0, 0, 0]) // 10 for row in rows] for rows in drawn)
    precision = evaluation.scores.average_precision
    assert precision[worst[0]] == precision.min()
    assert precision[best[0]] == precision.max()


def test_crops_are_what_is_shown(tmp_path):
    picture = np.zeros((20, 40, 3), dtype=np.uint8)
    picture[5:15, 30:40] = (250, 10, 10)
    Image.fromarray(picture).save(tmp_path / "a.png")
    row = {"path": "a.png", "label": "x", "split": "test", "x_1": 30, "y_1": 5, "x_2": 40, "y_2": 15}
    catalog = Catalog(pd.DataFrame([row, row]), tmp_path)
    split = report._TestSplit(torch.eye(2), catalog, evaluate(np.eye(2), ["x", "x"], nmi=False), seed=0)
    shown = split.picture(0, 30)
    assert shown.shape == (30, 30, 3)
    assert shown.min(axis=(0, 1)).tolist() == shown.max(axis=(0, 1)).tolist() == [250, 10, 10]


def test_a_picture_that_cannot_be_opened_is_grey(birds, tmp_path):
    table = birds.table.copy()
    table.loc[3, "path"] = "gone.png"
    page = written(tmp_path / "report.html", Catalog(table, birds.folder))
    assert len(page.pictures) == 6


def test_what_a_class_is_taken_for_is_counted(tmp_path):
    """Both queries of `a` find `b` first."""
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
    catalog = Catalog(pd.DataFrame({"path": "none.png", "label": ["a", "a", "b", "b"], "split": "test"}), tmp_path)
    split = report._TestSplit(embeddings, catalog, evaluate(embeddings, catalog.labels, nmi=False), seed=0)
    assert report._taken_for(split, "a") == "b (2 of 2)"


def test_a_map_of_many_images_takes_whole_classes(monkeypatch):
    monkeypatch.setattr(map_section, "MAP_POINTS", 50)
    labels = np.array([str(index // 7) for index in range(700)])
    chosen = map_section._whole_classes(labels, seed=0)
    assert len(chosen) == len(set(chosen.tolist())) == 50
    counts = sorted(np.unique(labels[chosen], return_counts=True)[1].tolist())
    assert counts == [1, 7, 7, 7, 7, 7, 7, 7]
    np.testing.assert_array_equal(chosen, map_section._whole_classes(labels, seed=0))


def test_the_smallest_test_split_has_a_report(tmp_path):
    catalog = Catalog(pd.DataFrame({"path": ["a.png", "b.png"], "label": "x", "split": "test"}), tmp_path)
    embeddings = torch.eye(2)
    written(tmp_path / "report.html", catalog, embeddings=embeddings, evaluation=evaluate(embeddings, ["x", "x"]))


def test_embeddings_of_another_catalog_are_refused(birds, tmp_path):
    with pytest.raises(UserError, match="embeddings has 23 rows, but the catalog has 24"):
        written(tmp_path / "report.html", birds, embeddings=embedded(23))
    assert not (tmp_path / "report.html").exists()
