"""Users learn whether a head is better than the vectors as they came, on validation and on test classes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from proxygml import Catalog, evaluate, evaluate_run
from proxygml.evaluation.estimates import Estimate
from proxygml.training.given_vectors import verdict
from proxygml.training.recipe import Recipe
from proxygml.training.train import train
from tests.helpers.vector_files import CLASSES, labelled_vectors, write_file

ADVICE = "Use the vectors as they are, unless you want 8 numbers in place of 12; or train on more classes (it had 8)"


@pytest.fixture(scope="module")
def misleading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog whose training labels say nothing about its validation and test classes."""
    vectors, labels = labelled_vectors()
    number = np.arange(len(labels)) % CLASSES
    split = np.array(["train"] * 8 + ["val"] * 4 + ["test"] * 12)[number]
    training = np.flatnonzero(split == "train")
    label = np.array(labels)
    label[training] = np.random.default_rng(0).permutation(label[training])
    path = tmp_path_factory.mktemp("misleading") / "c.parquet"
    return write_file(path, vectors, labels, label=label.tolist(), split=split.tolist())


@pytest.fixture(scope="module")
def worse(misleading: Path, recipe: Recipe) -> Recipe:
    return replace(recipe, catalog=str(misleading), epochs=2, milestones=(), validation_classes=0.0)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def figures_of_given(catalog: str, split: str) -> tuple[float, float]:
    part = Catalog.read(catalog).split(split)
    assert part.vectors is not None
    found = evaluate(torch.from_numpy(part.vectors.mapped()[part.vector_rows]), part.labels, (1,), nmi=False)
    return found.recall[1].value, found.map_at_r.value


@pytest.mark.parametrize("start", ["lda", "random"])
def test_a_head_that_makes_vectors_worse_is_named_with_what_to_do(
    start: str, worse: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The vectors themselves are measured: a network that starts at random does not rank as they do."""
    changes = {"embedding_start": start, "proxy_start": "random"} | ({} if start == "lda" else {"whitening": 0.0})
    run = train(Recipe.of(worse.content() | changes, "test"), tmp_path / "run")
    recall, map_at_r = figures_of_given(worse.catalog, "val")
    text = printed(capsys)
    given = (
        f"the vectors as they came: Recall@1 {100 * recall:.1f}, MAP@R {100 * map_at_r:.1f} on the validation classes"
    )
    assert f"warning: {given}; the model has no higher MAP@R. {ADVICE}" in text
    evaluate_run(run, before=True, report=False)
    text = printed(capsys)
    assert "on the test classes, the model is worse in MAP@R than the vectors as they came: Recall@1 -" in text
    assert ADVICE in text
    gain = json.loads(run.evaluation.read_text())["gain"]
    assert gain["MAP@R"]["high"] < 0
    points = re.search(r"MAP@R (\S+) \(", text)
    assert points is not None and float(points[1]) == pytest.approx(100 * gain["MAP@R"]["value"], abs=0.06)
    assert 100 * gain["MAP@R"]["value"] < -1


def test_a_head_that_makes_vectors_better_is_told_without_a_warning(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(replace(recipe, epochs=1, milestones=()), tmp_path / "run")
    text = printed(capsys)
    assert re.search(r"the vectors as they came: Recall@1 \S+, MAP@R \S+ on the validation classes", text)
    evaluate_run(run, before=True)
    text += printed(capsys)
    assert "on the test classes, the model is better in Recall@1 and MAP@R than the vectors as they came: Rec" in text
    assert "Use the vectors as they are" not in text
    page, kept = run.report.read_text(), run.evaluation.read_bytes()
    assert re.search(r"<td>\+\d+\.\d <span[^>]*>\(\d+\.\d to \d+\.\d\)</span></td>", page)
    evaluate_run(run)  # which does not measure them, and keeps what was measured
    assert run.evaluation.read_bytes() == kept
    assert "the vectors as they came" not in printed(capsys)


def test_nothing_is_said_in_training_where_nothing_was_measured(
    worse: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without validation classes; and of a random network that was never trained."""
    table = Catalog.read(worse.catalog)
    table.with_table(table.table[table.table["split"] != "val"]).write(tmp_path / "c.parquet")
    train(replace(worse, catalog=str(tmp_path / "c.parquet"), epochs=1), tmp_path / "run")
    train(replace(worse, epochs=0, embedding_start="random", whitening=0.0), tmp_path / "untrained")
    assert "the vectors as they came" not in printed(capsys)


def test_a_verdict_counts_only_what_lies_beyond_the_interval() -> None:
    up, down, unsure = Estimate(0.1, 0.05, 0.2), Estimate(-0.1, -0.2, -0.05), Estimate(0.01, -0.01, 0.02)
    assert verdict({"a": up, "b": unsure}) == ("better in a than", False)
    assert verdict({"a": down, "b": down}) == ("worse in a and b than", True)
    assert verdict({"a": up, "b": down}) == ("better in a but worse in b than", True)
    assert verdict({"a": unsure, "b": Estimate(0.0, 0.0, 0.0)}) == ("neither surely better nor surely worse than", True)
