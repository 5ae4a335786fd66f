"""Evaluating runs: each catalog's figures have a place of their own."""

import json
from dataclasses import replace
from pathlib import Path

from proxygml.data.catalog import Catalog
from proxygml.training.evaluate_run import evaluate_run
from proxygml.training.recipe import Recipe
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
