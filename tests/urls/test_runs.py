"""Run folders, models and weights at URLs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from proxygml import Embedder, evaluate_run
from proxygml.errors import OverwriteError, RunError, UserError
from proxygml.remote import files_below, read
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.train import train
from proxygml.urls import Url
from tests.helpers.commands import refused
from tests.helpers.commands import run as command
from tests.helpers.models import untrained
from tests.helpers.object_store import forget, put
from tests.helpers.runs import assert_same_run, contents
from tests.helpers.runs import train as train_here

FILES = {"recipe.yaml", "metrics.csv", "proxies.csv", "model.json", "model.safetensors"}


@pytest.fixture
def recipe(few: Path, small_recipe: Recipe) -> Recipe:
    return replace(small_recipe, catalog=str(few), epochs=2, batch_size=8)


def test_a_run_is_trained_to_a_url_and_evaluated_there(
    recipe: Recipe, few: Path, store: str, tmp_path: Path, own_cache: Path
) -> None:
    put(store, contents(few.parent))
    recipe = replace(recipe, catalog=f"{store}/few.parquet")
    run = f"{store}/run"
    trained = train(recipe, run)
    assert set(files_below(Url(run))) == FILES
    assert_same_run(trained, train_here(recipe, tmp_path / "here"))
    assert not list(own_cache.rglob("epoch-*"))
    with pytest.raises(OverwriteError, match="holds a run already"):
        train(recipe, run)
    evaluation = evaluate_run(run, report=False)
    assert evaluation is not None
    written = json.loads(read(Url(f"{run}/evaluation.json"), 10**7))
    assert written["recall"]["1"]["value"] == evaluation.recall[1].value
    other = evaluate_run(run, few, report=False)
    assert other is not None and other.recall[1].value == evaluation.recall[1].value
    assert "evaluations/few/evaluation.json" in set(files_below(Url(run)))
    assert not list(own_cache.rglob("*.tmp"))


def test_a_stopped_run_goes_on_where_it_was_started(
    recipe: Recipe, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, {"x": b""})
    run = f"{store}/run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("proxygml.training.trainer.Training._write_model", _stop)
        train(recipe, run)
    assert set(files_below(Url(store))) == {"x"}
    again = train(None, run)
    assert_same_run(again, train_here(recipe, tmp_path / "here"))
    with pytest.raises(RunError, match="continue it where it was started"):
        train(None, f"{store}/other")


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_train_and_evaluate_on_the_command_line(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = put("memory://runs", {})
    recipe.write(tmp_path / "recipe.yaml")
    command("train", "--recipe", tmp_path / "recipe.yaml", "--run", f"{store}/run")
    assert f"report:  {store}/run/report.html" in capsys.readouterr().out
    assert {*FILES, "evaluation.json", "report.html"} <= set(files_below(Url(f"{store}/run")))
    message = refused(capsys, "evaluate", f"{store}/run")
    assert f"{store}/run was trained on {recipe.catalog}, a file on the machine of its training: give" in message
    forget(store)


def test_a_model_at_a_url_is_the_same(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = untrained(tmp_path / "run")
    put(f"{store}/run", contents(folder))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(Embedder.load(folder).embed(images), Embedder.load(f"{store}/run").embed(images))
    put(f"{store}/run", contents(untrained(tmp_path / "other", seed=1)))
    assert not torch.equal(Embedder.load(folder).embed(images), Embedder.load(f"{store}/run").embed(images))
    with pytest.raises(RunError, match=r"holds no model\.json"):
        Embedder.load(f"{store}/none")
    assert f"{store}/none is no run folder" in refused(
        capsys, "embed", f"{store}/none", "--images", tmp_path, "--out", tmp_path / "v.parquet"
    )


def test_training_starts_from_weights_at_a_url(recipe: Recipe, store: str, tmp_path: Path) -> None:
    folder = untrained(tmp_path / "start")
    weights = {f"backbone.{n}": t for n, t in Embedder.load(folder).backbone.state_dict().items()}
    torch.save(weights, tmp_path / "weights.pth")
    put(store, {"weights.pth": (tmp_path / "weights.pth").read_bytes()})
    here = replace(recipe, embedder=replace(recipe.embedder, weights=str(tmp_path / "weights.pth")))
    there = replace(recipe, embedder=replace(recipe.embedder, weights=f"{store}/weights.pth"))
    assert_same_run(train_here(here, tmp_path / "here"), train_here(there, tmp_path / "there"))
    with pytest.raises(UserError, match=f"there is no {store}/none.pth"):
        train_here(replace(recipe, embedder=replace(recipe.embedder, weights=f"{store}/none.pth")), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_several_machines_share_no_run_at_a_url(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(RunError, match="several machines train"):
        train(recipe, "memory://run")


def test_a_web_server_takes_no_run(recipe: Recipe) -> None:
    for call in (lambda: train(recipe, "http://127.0.0.1:1/run"), lambda: evaluate_run("http://127.0.0.1:1/run")):
        with pytest.raises(UserError, match="web server, where nothing can be written"):
            call()


def test_what_messages_call_a_file_of_a_run(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).shown(tmp_path / "a" / "b.txt") == str(tmp_path / "a" / "b.txt")
    assert RunFolder(tmp_path, Url("s3://b/run")).shown(tmp_path / "a" / "b.txt") == "s3://b/run/a/b.txt"
