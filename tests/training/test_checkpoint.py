"""Checkpoints: a run that was stopped or killed ends like one that was not; wrong ones are named."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from proxygml.data.catalog import Catalog
from proxygml.errors import OverwriteError, RunError, UserError
from proxygml.training.checkpoint import export_proxies
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import fit, resume
from tests.helpers.commands import run as command
from tests.helpers.launch import kill_once
from tests.helpers.runs import assert_same_run, metrics, train


def test_killed_and_resumed_run_ends_like_one_that_was_not(small_recipe: Recipe, tmp_path: Path) -> None:
    """A real kill -9 of a real process, in the middle of whatever it does after its first epochs."""
    recipe = replace(small_recipe, epochs=12, validation_classes=0.25, images_per_class=2)
    whole = train(recipe, tmp_path / "whole")
    recipe.write(tmp_path / "recipe.yaml")
    run = RunFolder(tmp_path / "killed")
    command = ("train", "--recipe", tmp_path / "recipe.yaml", "--run", run.path)
    kill_once(lambda: run.metrics.exists() and len(metrics(run)) >= 2, 1, *command)
    assert not run.model.exists(), "the run had finished before it was killed"
    resume(run)
    assert_same_run(run, whole)
    resume(run)  # a finished run is left as it is
    assert_same_run(run, whole)


def test_resumed_run_with_workers_ends_like_one_that_was_not_stopped(small_recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(small_recipe, workers=2)
    whole = train(recipe, tmp_path / "whole")
    run = train(replace(recipe, epochs=1), tmp_path / "run")
    recipe.write(run.recipe)
    resume(run)
    assert_same_run(run, whole)


def test_resume_refuses_another_catalog(small_recipe: Recipe, small_catalog: Path, tmp_path: Path) -> None:
    catalog = Catalog.read(small_catalog)
    catalog.write(tmp_path / "catalog.parquet")
    run = train(replace(small_recipe, catalog=str(tmp_path / "catalog.parquet"), epochs=1), tmp_path / "run")
    fewer = catalog.table[catalog.table["label"] != "class 03"]
    Catalog(fewer, catalog.folder).write(tmp_path / "catalog.parquet", force=True)
    with pytest.raises(RunError, match="88 training images of 11 classes.*96 training images of 12 classes"):
        resume(run)
    swapped = catalog.table["label"].replace({"class 03": "class 04", "class 04": "class 03"})
    Catalog(catalog.table.assign(label=swapped), catalog.folder).write(tmp_path / "catalog.parquet", force=True)
    with pytest.raises(RunError, match="put the old catalog back"):
        resume(run)


def test_damaged_checkpoint_is_named(small_recipe: Recipe, tmp_path: Path) -> None:
    run = train(replace(small_recipe, epochs=1), tmp_path / "run")
    assert run.checkpoint is not None
    for name in ("checkpoint.json", "part-00000-of-00001.safetensors"):
        path = run.checkpoint / name
        whole = path.read_bytes()
        for damaged in (whole[:1000], b"garbage", None):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            with pytest.raises(RunError, match=rf"{name} cannot be read"):
                resume(run)
        path.write_bytes(whole)
    smaller = replace(small_recipe.embedder, embedding_size=9)
    two_optimizers = replace(small_recipe.loss, sparse=True, proxy_weight=0.0)
    more_proxies = replace(small_recipe.loss, proxies_per_class=4)
    for changed in (
        replace(small_recipe, embedder=smaller),
        replace(small_recipe, loss=two_optimizers),
        replace(small_recipe, loss=more_proxies),
    ):
        changed.write(run.recipe)
        with pytest.raises(RunError, match="not of the recipe beside it"):
            resume(run)


def test_a_new_run_does_not_go_on_from_the_checkpoint_of_another(small_recipe: Recipe, tmp_path: Path) -> None:
    run = train(replace(small_recipe, epochs=1), tmp_path / "run")
    run.recipe.unlink()
    with pytest.raises(OverwriteError, match=r"checkpoint of a run whose recipe\.yaml is gone"):
        train(replace(small_recipe, epochs=2), run.path)
    assert run.checkpoint is not None and not run.recipe.exists()


def test_resuming_needs_no_weights_file_that_training_started_from(small_recipe: Recipe, tmp_path: Path) -> None:
    start = load_file(train(replace(small_recipe, epochs=0), tmp_path / "start").model)
    prefix = "backbone."
    weights = {name.removeprefix(prefix): tensor for name, tensor in start.items() if name.startswith(prefix)}
    save_file(weights, tmp_path / "weights.safetensors")
    settings = replace(small_recipe.embedder, weights=str(tmp_path / "weights.safetensors"))
    run = train(replace(small_recipe, embedder=settings, epochs=1), tmp_path / "run")
    (tmp_path / "weights.safetensors").unlink()
    resume(run)


def test_a_run_is_trained_by_one_process_at_a_time(small_recipe: Recipe, tmp_path: Path) -> None:
    """The second learns which process the first is, and leaves the checkpoint that is being written alone."""
    run = train(replace(small_recipe, epochs=1), tmp_path / "run")
    recipe = replace(small_recipe, epochs=2)
    recipe.write(run.recipe)
    being_written = run.checkpoints / ".epoch-0002.tmp"
    being_written.mkdir()
    (being_written / "part-00000-of-00003.safetensors").write_bytes(b"half of")
    with run.locked(), pytest.raises(OverwriteError, match=rf"another process is writing .*run \({os.getpid()} on"):
        resume(run)
    assert being_written.exists()
    resume(run)
    assert [path.name for path in run.checkpoints.iterdir()] == ["epoch-0002"]
    other = RunFolder(tmp_path / "other")
    with other.locked(), pytest.raises(OverwriteError, match="another process"):
        fit(small_recipe, other)
    assert not other.path.exists(), "no run was started"


PROGRESS = {"epoch": 1, "history": [{"epoch": 1.0, "loss": 1.0}], "steps": 6, "best_epoch": 0, "collapse_named": False}
LINEAR = "embedder.head.linear.weight"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"values": 3},
        {"values": {"progress": 3}},
        {"values": {"progress": PROGRESS | {"epoch": "one"}}},
        {"values": {"progress": PROGRESS | {"history": []}}},
        {"values": {"progress": PROGRESS | {"epoch": 10**9}}},
        {"values": {"progress": PROGRESS | {"history": [{"loss": "low"}]}}},
        {"values": {"data": None}},
        {"values": {"classes": [2, 12]}},
        {"values": {"optimizers": {"optimizers.7.0.step": 1}}},
        {"values": {"optimizers": {"optimizers.0.0.step": "many"}}},
        {"tensors": {LINEAR: {"shape": [10**9, 256]}}},
        {"tensors": {LINEAR: {"shape": [8, 512]}}},
        {"tensors": {LINEAR: {"dtype": "object"}}},
        {"tensors": {LINEAR: {"dtype": "float64"}}},
        {"tensors": {LINEAR: {"parts": []}}},
        {"tensors": {LINEAR: {"parts": [{"file": "../../secret", "start": 0, "rows": 16}]}}},
        {"tensors": {LINEAR: {"parts": [{"file": "part-00000-of-00001.safetensors", "start": 4, "rows": 12}]}}},
        {"tensors": {LINEAR: {"parts": [{"file": "part-00000-of-00001.safetensors", "start": 0, "rows": math.inf}]}}},
        {"tensors": {LINEAR: {"shape": [16, 2**63]}}},
        {"tensors": {LINEAR: {"shape": [16, 2**70]}}},
        {"tensors": {LINEAR: {"shape": [16.0, 256]}}},
        {"tensors": {"optimizers.0.14.exp_avg": None}},
        {"tensors": {"optimizers.0.999.exp_avg": {"dtype": "float32", "shape": [], "parts": []}}},
        {"tensors": {"embedder.other": {"dtype": "float32", "shape": [0], "parts": []}}},
    ],
)
def test_checkpoints_of_other_contents_are_named(
    small_recipe: Recipe, trained_once: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained_once, run.path)
    replace(small_recipe, epochs=2).write(run.recipe)
    assert run.checkpoint is not None
    index = run.checkpoint / "checkpoint.json"
    index.write_text(json.dumps(changed(json.loads(index.read_text()), change)))
    with pytest.raises(RunError, match=r"epoch-0001"):
        resume(run)


def changed(content: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Content with other values in it; None takes a tensor out."""
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            changed(content[key], value)
        elif value is None and key.startswith("optimizers."):
            del content[key]
        else:
            content[key] = value
    return content


def test_checkpoints_that_are_no_ordinary_file_are_named(trained_once: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained_once, run.path)
    assert run.checkpoint is not None
    index = run.checkpoint / "checkpoint.json"
    index.unlink()
    os.mkfifo(index)
    with pytest.raises(RunError, match="a folder, a device or a pipe"):
        resume(run)
    index.unlink()
    with index.open("wb") as file:
        file.truncate(40 * 10**9)
    with pytest.raises(RunError, match="40,000,000,000 bytes"):
        resume(run)


def test_nothing_of_a_checkpoint_is_unpickled(trained_once: Path) -> None:
    """A pickle can run any code; checkpoints travel with run folders."""
    checkpoint = RunFolder(trained_once).checkpoint
    assert checkpoint is not None
    assert {path.name for path in checkpoint.iterdir()} == {"checkpoint.json", "part-00000-of-00001.safetensors"}
    safe = load_file(checkpoint / "part-00000-of-00001.safetensors")
    assert {"embedder.head.linear.weight", "criterion.proxies", "optimizers.0.14.step"} <= safe.keys()


def test_proxies_are_exported(
    trained_once: Path, small_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("export", trained_once, "--proxies", tmp_path / "proxies.safetensors")
    assert "proxies.safetensors (24 x 16)" in capsys.readouterr().out.replace("\n", "")
    assert load_file(tmp_path / "proxies.safetensors")["proxies"].shape == (24, 16)
    with pytest.raises(OverwriteError, match="--force"):
        export_proxies(trained_once, tmp_path / "proxies.safetensors")
    with pytest.raises(UserError, match="must be the name of a .safetensors file"):
        export_proxies(trained_once, tmp_path / "proxies.onnx")
    none = train(replace(small_recipe, epochs=0), tmp_path / "none")
    with pytest.raises(RunError, match="no checkpoint"):
        export_proxies(none.path, tmp_path / "other.safetensors")


@pytest.fixture(scope="module")
def trained_once(small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch."""
    return train(replace(small_recipe, epochs=1), tmp_path_factory.mktemp("once") / "run").path
