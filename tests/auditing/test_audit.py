"""`proxygml audit`, as a person types it: on vectors, and on images of a run that has learned their labels."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import save_file

import proxygml
from proxygml.data.preparing.prepare import prepare
from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import find_recipe
from tests.helpers.commands import refused, run
from tests.helpers.noise import clustered, mislabelled_at_random
from tests.helpers.vector_files import write_file


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Vectors of 20 classes, a tenth of whose labels are wrong; the column `true` has the right ones."""
    vectors, right = clustered(1000, classes=20)
    labels = [f"c{label:02d}" for label in mislabelled_at_random(right, 0.1)]
    true: list[object] = [f"c{label:02d}" for label in right]
    file = write_file(tmp_path / "features.parquet", vectors, labels, true=true)
    prepare("vectors", file, tmp_path / "catalog.parquet", options={"label": "product", "test_classes": "half"})
    return tmp_path / "catalog.parquet"


def test_the_table_lists_every_label_the_wrong_ones_first(
    catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("audit", "--catalog", catalog, "--out", tmp_path / "audit")
    printed = capsys.readouterr().out
    assert "labels are wrong" in printed
    table = pd.read_csv(tmp_path / "audit" / "audit.csv", dtype={"id": str})
    source = proxygml.Catalog.read(catalog).table
    assert table["rank"].tolist() == list(range(1, 1001))
    assert sorted(table["row"]) == list(range(1000))
    assert (source.loc[table["row"], "label"].to_numpy() == table["label"]).all()
    assert (source.loc[table["row"], "id"].to_numpy() == table["id"]).all()
    true = source.loc[table["row"], "true"].to_numpy()
    wrong = true != table["label"].to_numpy()
    assert wrong[: wrong.sum()].mean() > 0.95
    assert (table["suggestion"][: wrong.sum()] == true[: wrong.sum()]).mean() > 0.95
    assert np.array_equal(~table["keep"], table["probability"] >= 0.5)
    assert table["probability"].is_monotonic_decreasing
    assert "closer to the proxy of" in table["reasons"][0]


def test_the_function_returns_what_it_wrote_and_one_split_can_be_audited(catalog: Path, tmp_path: Path) -> None:
    found = proxygml.audit(None, catalog, tmp_path / "audit", split="test")
    assert set(found.table["split"]) == {"test"}
    assert found.low <= found.share <= found.high
    written = pd.read_csv(tmp_path / "audit" / "audit.csv")
    assert written["row"].tolist() == found.table["row"].tolist()
    source = proxygml.Catalog.read(catalog).table
    assert (source.loc[written["row"], "id"].to_numpy() == written["id"]).all()


def test_ten_vectors_of_two_classes_are_audited_without_a_warning(tmp_path: Path) -> None:
    vectors, labels = clustered(10, classes=2)
    names: list[object] = [f"class {label}" for label in labels]
    catalog = write_file(tmp_path / "ten.parquet", vectors, ["-"] * 10, label=names, split=["train"] * 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = proxygml.audit(None, catalog, tmp_path / "audit")
    assert len(found.table) == 10


def test_mistakes_are_refused_in_one_message(catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    assert "no result of" in refused(capsys, "audit", "--catalog", catalog, "--out", tmp_path / "own", "--force")
    run("audit", "--catalog", catalog, "--out", tmp_path / "audit")
    assert "--force" in refused(capsys, "audit", "--catalog", catalog, "--out", tmp_path / "audit")
    run("audit", "--catalog", catalog, "--out", tmp_path / "audit", "--force")
    assert "no run folder" in refused(capsys, "audit", tmp_path / "no", "--catalog", catalog, "--out", tmp_path / "b")
    images = tmp_path / "images.csv"
    images.write_text("path,label,split\na.jpg,x,train\nb.jpg,y,train\n")
    assert "give the folder of a run" in refused(capsys, "audit", "--catalog", images, "--out", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_run_that_has_learned_the_wrong_labels_does_not_hide_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its backbone was trained on them, so the features are those of the backbone before training."""
    images = prepare("glyphs", None, tmp_path / "glyphs.parquet", options={})
    classes = images.split("train").classes[:8]
    table = images.table[images.table["label"].isin(classes)].reset_index(drop=True)
    right = np.array([classes.index(label) for label in table["label"]])
    wrong = mislabelled_at_random(right, 0.1)
    noisy = images.with_table(table.assign(label=[classes[label] for label in wrong]))
    noisy.write(tmp_path / "noisy.csv")
    recipe = replace(Recipe.read(find_recipe("glyphs")), catalog=str(tmp_path / "noisy.csv"), epochs=1, milestones=())
    first = proxygml.train(recipe, tmp_path / "first")
    capsys.readouterr()
    run("audit", first.path, "--catalog", tmp_path / "noisy.csv", "--out", tmp_path / "audit")
    assert "may have learned" in " ".join(capsys.readouterr().err.split())  # it began with random weights
    weights = tmp_path / "backbone.safetensors"
    save_file(proxygml.Embedder.load(first.path).backbone.state_dict(), weights)
    recipe = replace(recipe, embedder=replace(recipe.embedder, weights=str(weights)))
    learned = proxygml.train(recipe, tmp_path / "run")
    run("audit", learned.path, "--catalog", tmp_path / "noisy.csv", "--out", tmp_path / "second")
    one, other = (pd.read_csv(tmp_path / name / "audit.csv") for name in ("audit", "second"))
    pd.testing.assert_frame_equal(one, other)
    assert len(other) == len(table)
