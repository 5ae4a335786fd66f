"""Evaluating runs: each catalog's figures have a place of their own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proxygml.data.catalog import Catalog
from proxygml.evaluation.metrics import evaluate, score_queries
from proxygml.models.embedder import Embedder
from proxygml.training.evaluate_run import evaluate_run
from proxygml.training.recipe import Recipe
from tests.helpers.launch import finish, launched
from tests.helpers.runs import train


def test_evaluation_on_other_data_leaves_the_runs_own_alone(small_recipe: Recipe, tmp_path: Path) -> None:
    run = train(replace(small_recipe, epochs=0), tmp_path / "run")
    evaluate_run(run)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    catalog = Catalog.read(small_recipe.catalog)
    others = [tmp_path / name / "others.parquet" for name in ("one", "two")]
    for number, path in enumerate(others):
        table = catalog.table[catalog.table["label"] != f"class {12 + number}"]
        Catalog(table, catalog.folder).write(path)
    for path in (*others, others[0]):
        evaluate_run(run, path)
    evaluate_run(run, Path(small_recipe.catalog), report=False)  # the run's own, though it is given
    assert {path: path.read_bytes() for path in before} == before
    places = [run.path / "evaluations" / name for name in ("others", "others-2")]
    assert sorted((run.path / "evaluations").iterdir()) == places
    for path, place in zip(others, places, strict=True):
        assert json.loads((place / "evaluation.json").read_text())["protocol"]["catalog"] == str(path)
        assert (place / "report.html").stat().st_size > 0
        assert list((place / "figures").iterdir())


@pytest.fixture
def ruled_recipe(small_recipe: Recipe, tmp_path: Path) -> Recipe:
    """The small catalog with every rule, four of its classes for validation, of which one image each is junk."""
    catalog = Catalog.read(small_recipe.catalog)
    place = np.arange(len(catalog)) % 8
    split = catalog.table["split"].where(~catalog.table["label"].isin([f"class {n:02d}" for n in range(8, 12)]), "val")
    table = catalog.table.assign(
        split=split,
        sequence=catalog.table["label"] + (place // 2).astype(str),
        camera=np.where(place < 6, "a", "b"),
        is_junk=(place == 7) & (split != "train"),
        is_distractor=(place == 6) & (catalog.table["label"] == "class 17"),
    )
    Catalog(table, catalog.folder).write(tmp_path / "ruled.csv")
    return replace(small_recipe, catalog=str(tmp_path / "ruled.csv"), epochs=1)


def test_the_rules_of_a_table_hold_in_validation_and_evaluation(ruled_recipe: Recipe, tmp_path: Path) -> None:
    run = train(ruled_recipe, tmp_path / "run")
    embedder, catalog = Embedder.load(run.path), Catalog.read(ruled_recipe.catalog)
    val, test = catalog.split("val"), catalog.split("test")
    scores = score_queries(embedder.embed(val.paths), val.labels, **val.rules)
    assert pd.read_csv(run.metrics)["val_map_at_r"].iloc[-1] == pytest.approx(scores.average_precision.mean(), abs=1e-6)
    evaluation = evaluate_run(run)
    assert evaluation is not None
    vectors = embedder.embed(test.paths)
    assert evaluation.recall == evaluate(vectors, test.labels, nmi=False, **test.rules).recall
    assert evaluation.recall != evaluate(vectors, test.labels, nmi=False).recall
    assert evaluation.mean_average_precision is not None
    content = json.loads(run.evaluation.read_text())
    assert content["rules"] == evaluation.rules == {
        "excluded_matches_of_same_sequence": 36,
        "excluded_matches_of_same_camera": 180,
        "queries_with_matches_in_own_sequence_only": 0,
        "junk_images": 6,
        "distractor_images": 1,
    }  # fmt: skip
    assert "Matches that do not count: 180" in content["protocol"]["rules"]
    assert "Matches that do not count: 180" in run.report.read_text()


def test_two_processes_evaluate_like_one(ruled_recipe: Recipe, tmp_path: Path) -> None:
    """Every figure, and NMI, to the digit, and the report's neighbours; the main process writes and prints, once."""
    run = train(ruled_recipe, tmp_path / "run")
    judged, drawn = [], []
    for processes in (1, 2):
        printed, errors = finish(processes, "evaluate", run.path, "--before")
        assert printed.count("figures:") == 1
        assert errors.count("has no other image that counts") == 1
        judged.append(json.loads(run.evaluation.read_text()))
        drawn.append({path.name: path.read_bytes() for path in run.path.glob("figures/retrieval_*.png")})
        shutil.rmtree(run.path / "figures")
    assert len(drawn[0]) == 3
    assert drawn[0] == drawn[1]
    assert [content["protocol"].pop("processes") for content in judged] == [1, 2]
    assert judged[0] == judged[1]


def test_figures_before_training_are_kept_and_no_report_lies_beside_other_figures(
    small_recipe: Recipe, tmp_path: Path
) -> None:
    run = train(replace(small_recipe, epochs=0), tmp_path / "run")
    evaluate_run(run, before=True)
    first = run.evaluation.read_bytes()
    assert "before_training" in json.loads(first)
    evaluate_run(run, report=False)
    assert run.evaluation.read_bytes() == first
    assert run.report.is_file()
    run.evaluation.write_text(json.dumps(json.loads(first) | {"map_at_r": None}))
    evaluate_run(run, report=False)  # as if it was killed before it wrote the report
    assert json.loads(run.evaluation.read_text())["map_at_r"] == json.loads(first)["map_at_r"]
    assert not run.report.exists()


def test_what_only_one_of_several_processes_finds_is_printed(
    small_recipe: Recipe, small_catalog: Path, tmp_path: Path
) -> None:
    """The second process reads the second half. The first one, which waits for it, ends without a traceback."""
    run = train(replace(small_recipe, epochs=1), tmp_path / "run")
    shutil.copytree(small_catalog.parent, tmp_path / "damaged")
    (tmp_path / "damaged/17_1.png").write_bytes(b"no image")
    with launched(2, "evaluate", run.path, "--catalog", tmp_path / "damaged" / small_catalog.name) as started:
        printed = [command.finish()[1] for command in started]
        assert [command.status for command in started] == [1, 2]
    assert "process 1: " in printed[1]
    assert "17_1.png is no image" in printed[1]
    assert "process 0 stops" in printed[0]
    assert not any("Traceback" in text for text in printed)
