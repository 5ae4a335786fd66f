"""Training: the method's schedule, repeatable, resumable, the same on several processes."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from safetensors.torch import load_file, save_file
from timm.layers.norm_act import convert_sync_batchnorm

from proxygml import Embedder
from proxygml.data.catalog import Catalog
from proxygml.data.transforms import ImageSettings
from proxygml.errors import CatalogError, DivergedError, OverwriteError, RecipeError, RunError
from proxygml.evaluation.metrics import score_queries
from proxygml.models.backbones import build_backbone
from proxygml.models.embedder import EmbedderSettings
from proxygml.training.evaluate_run import evaluate_run
from proxygml.training.features import cached_features
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import (
    CollapseWatch,
    Training,
    fit,
    make_accelerator,
    mean_cosine,
    mislabelled,
    resume,
    schedule_factor,
)
from tests.helpers.runs import assert_same_run, metrics, train


def test_training_learns_and_leaves_a_whole_run_folder(small_recipe: Recipe, tmp_path: Path) -> None:
    run = train(replace(small_recipe, epochs=8), tmp_path / "run")
    evaluation = evaluate_run(run, before=True)
    assert evaluation is not None
    content = json.loads(run.evaluation.read_text())
    assert content["recall"]["1"]["value"] == evaluation.recall[1].value
    assert content["recall"]["1"]["value"] > content["before_training"]["recall"]["1"]["value"]
    assert content["protocol"]["selection"] == "the last epoch"
    history = metrics(run)
    assert history["epoch"].tolist() == list(range(1, 9))
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert history["mean_cosine"].between(-1, 1).all()
    for path in (run.recipe, run.checkpoint, run.model, run.report, run.proxies, run.path / "model.json"):
        assert path.stat().st_size > 0
    assert len(pd.read_csv(run.proxies)) == 12 * 2
    assert not [path for path in run.path.rglob("*") if path.name.endswith(".tmp")]
    embeddings = Embedder.load(run.path).embed(Catalog.read(small_recipe.catalog).split("test").paths)
    assert embeddings.shape == (48, 16)


def test_two_runs_of_a_recipe_give_the_same_numbers(small_recipe: Recipe, tmp_path: Path) -> None:
    one, other = (train(replace(small_recipe, workers=workers), tmp_path / str(workers)) for workers in (0, 2))
    assert_same_run(one, other)


def test_another_seed_gives_other_numbers(small_recipe: Recipe, tmp_path: Path) -> None:
    one, other = (train(replace(small_recipe, epochs=1, seed=seed), tmp_path / str(seed)) for seed in (0, 1))
    assert metrics(one)["loss"][0] != metrics(other)["loss"][0]


def test_killed_and_resumed_run_ends_like_one_that_was_not(small_recipe: Recipe, tmp_path: Path) -> None:
    """A real kill -9 of a real process, in the middle of whatever it does after its first epochs."""
    recipe = replace(small_recipe, epochs=12, validation_classes=0.25, images_per_class=2)
    whole = train(recipe, tmp_path / "whole")
    recipe.write(tmp_path / "recipe.yaml")
    run = RunFolder(tmp_path / "killed")
    command = [sys.executable, "-m", "proxygml", "train", "--recipe", tmp_path / "recipe.yaml", "--run", run.path]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (run.metrics.exists() and len(metrics(run)) >= 2) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
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


@pytest.mark.parametrize("proxy_dtype", ["float32", "bfloat16"])
def test_sparse_proxies_train_and_resume(small_recipe: Recipe, tmp_path: Path, proxy_dtype: str) -> None:
    loss = replace(small_recipe.loss, sparse=True, proxy_weight=0.0, neighbor_ratio=0.3, proxy_dtype=proxy_dtype)
    recipe = replace(small_recipe, loss=loss)
    whole = train(recipe, tmp_path / "whole")
    losses = metrics(whole)["loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    run = train(replace(recipe, epochs=1), tmp_path / "run")
    recipe.write(run.recipe)
    resume(run)
    assert_same_run(run, whole)


def test_starting_workers_leaves_the_random_numbers_of_dropout_alone(small_recipe: Recipe, tmp_path: Path) -> None:
    training = Training(replace(small_recipe, workers=2), RunFolder(tmp_path / "unused"))
    before = torch.get_rng_state()
    images, indices = next(iter(training._loader(training._data())))
    assert images.shape == (16, 3, 16, 16)
    assert len(indices) == 16
    assert torch.equal(torch.get_rng_state(), before)


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
    whole = run.checkpoint.read_bytes()
    for damaged in (whole[:1000], b"garbage"):
        run.checkpoint.write_bytes(damaged)
        with pytest.raises(RunError, match=r"last\.ckpt cannot be read"):
            resume(run)
    run.checkpoint.write_bytes(whole)
    replace(small_recipe, embedder=replace(small_recipe.embedder, embedding_size=9)).write(run.recipe)
    with pytest.raises(RunError, match="not of the recipe beside it"):
        resume(run)


def test_resuming_needs_no_weights_file_that_training_started_from(small_recipe: Recipe, tmp_path: Path) -> None:
    start = load_file(train(replace(small_recipe, epochs=0), tmp_path / "start").model)
    prefix = "backbone."
    weights = {name.removeprefix(prefix): tensor for name, tensor in start.items() if name.startswith(prefix)}
    save_file(weights, tmp_path / "weights.safetensors")
    settings = replace(small_recipe.embedder, weights=str(tmp_path / "weights.safetensors"))
    run = train(replace(small_recipe, embedder=settings, epochs=1), tmp_path / "run")
    (tmp_path / "weights.safetensors").unlink()
    resume(run)


def test_label_noise_makes_its_share_of_the_labels_wrong() -> None:
    labels = np.repeat(np.arange(5), 40)
    noisy = mislabelled(labels, 5, 0.2, seed=3)
    assert (noisy != labels).sum() == 40
    assert set(noisy) == set(range(5))
    assert np.array_equal(noisy, mislabelled(labels, 5, 0.2, seed=3))
    assert not np.array_equal(noisy, mislabelled(labels, 5, 0.2, seed=4))
    assert np.array_equal(mislabelled(labels, 5, 0.0, seed=3), labels)


def test_starting_from_features_is_resumed_and_repeated(small_recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(small_recipe, embedding_start="features", proxy_start="features", embedding_lr=0.0, epochs=2)
    whole = train(recipe, tmp_path / "whole")
    weight = Embedder.load(whole.path).head.linear.weight
    assert torch.allclose(weight @ weight.T, torch.eye(len(weight)), atol=1e-5)  # as it started: nothing trained it
    train(replace(recipe, epochs=1), tmp_path / "stopped")
    stopped = RunFolder(tmp_path / "stopped")
    recipe.write(stopped.recipe)
    resume(stopped)
    assert_same_run(stopped, whole)


def test_how_images_are_embedded_changes_nothing_in_training(small_recipe: Recipe, tmp_path: Path) -> None:
    """Nor where it starts from features: views and a finer map are for the finished model alone."""
    plain = replace(
        small_recipe,
        embedder=EmbedderSettings("mobilenetv2_035", "none", embedding_size=16),
        images=replace(small_recipe.images, size=32, resize=32),
        embedding_start="features",
        proxy_start="features",
        batch_norm="frozen",
        epochs=2,
    )
    finer = replace(plain, embedder=replace(plain.embedder, mirror=True, zoom=1.1, output_stride=8))
    runs = [train(recipe, tmp_path / name) for name, recipe in (("plain", plain), ("finer", finer))]
    one, other = (load_file(run.model) for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    images = torch.rand(2, 3, 32, 32)
    one, other = (Embedder.load(run.path)(images) for run in runs)
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("seed", [0, 123_456, 2**32 - 1])
def test_any_seed(small_recipe: Recipe, tmp_path: Path, seed: int) -> None:
    run = train(replace(small_recipe, seed=seed, epochs=1), tmp_path / "run")
    assert np.isfinite(metrics(run)["loss"]).all()


def test_warm_up_trains_the_embedding_layer_and_the_proxies_alone(small_recipe: Recipe, tmp_path: Path) -> None:
    start = train(replace(small_recipe, epochs=0), tmp_path / "start")
    warm = train(replace(small_recipe, epochs=1, warmup_epochs=1), tmp_path / "warm")
    before, after = load_file(start.model), load_file(warm.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.linear.weight", "head.linear.bias"}
    full = load_file(train(replace(small_recipe, epochs=2, warmup_epochs=1), tmp_path / "full").model)
    assert any(not torch.equal(before[name], full[name]) for name in before if name.startswith("backbone"))


def test_frozen_batch_norm_keeps_statistics_and_weights(small_recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(small_recipe, warmup_epochs=0, batch_norm="frozen")
    before = load_file(train(replace(recipe, epochs=0), tmp_path / "start").model)
    after = load_file(train(replace(recipe, epochs=1), tmp_path / "run").model)
    norms = [name for name in before if re.match(r"backbone\.blocks\.\d\.1\.", name)]
    assert norms
    assert all(torch.equal(before[name], after[name]) for name in norms)
    assert not torch.equal(before["backbone.blocks.0.0.weight"], after["backbone.blocks.0.0.weight"])


def test_learning_rates_follow_the_schedule() -> None:
    steps = Recipe(milestones=(20, 40), decay=0.1)
    finished = (0, 19.9, 20, 39.9, 40)
    assert [schedule_factor(steps, epochs) for epochs in finished] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    cosine = Recipe(schedule="cosine", epochs=10)
    factors = [schedule_factor(cosine, epochs) for epochs in range(10)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert [schedule_factor(cosine, epochs) for epochs in (5, 5.9)] == pytest.approx([0.5, 0.5])
    one_cycle = Recipe(schedule="one_cycle", epochs=10)
    finished = (0, 0.5, 1, 5.5, 10)
    assert [schedule_factor(one_cycle, epochs) for epochs in finished] == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-9)


def test_learning_rates_change_within_an_epoch_of_one_cycle(small_recipe: Recipe, tmp_path: Path) -> None:
    """What is written of an epoch is the rate of its last step."""
    recipe = replace(small_recipe, schedule="one_cycle", backbone_lr=0.1)
    history, steps = metrics(train(recipe, tmp_path / "run")), 12 * 8 // 16
    last = [schedule_factor(recipe, epoch + 1 - 0.5 / steps) for epoch in range(3)]
    assert history["backbone_lr"].tolist() == pytest.approx([0.1 * factor for factor in last])


def test_each_group_has_its_own_learning_rate(small_recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(small_recipe, epochs=1, backbone_lr=0.1, embedding_lr=0.2, proxy_lr=0.3, milestones=())
    history = metrics(train(recipe, tmp_path / "run"))
    assert history[["backbone_lr", "embedding_lr", "proxy_lr"]].iloc[0].tolist() == [0.1, 0.2, 0.3]


def test_best_epoch_on_validation_classes_is_kept(small_recipe: Recipe, tmp_path: Path) -> None:
    """The model is that of the epoch with the best MAP@R on classes held out whole; test classes choose nothing."""
    recipe = replace(small_recipe, epochs=4, validation_classes=0.25, backbone_lr=0.02)
    training = Training(recipe, RunFolder(tmp_path / "unused"))
    assert training.validation_images is not None
    assert not set(training.validation_images.classes) & set(training.train_images.classes)
    assert len(training.validation_images.classes) == 3
    run = train(recipe, tmp_path / "run")
    history = metrics(run)
    embeddings = Embedder.load(run.path).embed(training.validation_images.paths)
    kept = score_queries(embeddings, training.validation_images.labels).average_precision.mean()
    assert kept == pytest.approx(history["val_map_at_r"].max(), abs=1e-6)
    evaluate_run(run)
    protocol = json.loads(run.evaluation.read_text())["protocol"]
    assert "validation classes" in protocol["selection"]
    assert protocol["epoch"] == history["epoch"][history["val_map_at_r"].idxmax()]


def test_validation_split_of_the_catalog_is_used(small_recipe: Recipe, small_catalog: Path, tmp_path: Path) -> None:
    catalog = Catalog.read(small_catalog)
    held = catalog.table["label"].isin(["class 00", "class 01"])
    table = catalog.table.assign(split=catalog.table["split"].mask(held, "val"))
    Catalog(table, catalog.folder).write(tmp_path / "catalog.parquet")
    recipe = replace(small_recipe, catalog=str(tmp_path / "catalog.parquet"), epochs=1)
    assert "val_map_at_r" in metrics(train(recipe, tmp_path / "run"))
    with pytest.raises(RecipeError, match="has a val split already"):
        fit(replace(recipe, validation_classes=0.2), RunFolder(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(small_recipe: Recipe, tmp_path: Path) -> None:
    run = train(replace(small_recipe, epochs=1), tmp_path / "run")
    good = run.checkpoint.read_bytes()
    replace(small_recipe, epochs=3, backbone_lr=1e30, embedding_lr=1e30, warmup_epochs=0).write(run.recipe)
    with pytest.raises(DivergedError, match=r"in epoch 2, step \d+; the last good state, after epoch 1.*backbone_lr"):
        resume(run)
    assert run.checkpoint.read_bytes() == good


def test_a_run_that_breaks_off_ends_its_tracking(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a tracker would take the next run of the process for the same."""
    ended = []
    monkeypatch.setattr(TensorBoardTracker, "finish", lambda _: ended.append(True))
    wild = replace(small_recipe, backbone_lr=1e30, embedding_lr=1e30, warmup_epochs=0, tracker="tensorboard")
    with pytest.raises(DivergedError):
        fit(wild, RunFolder(tmp_path / "run"))
    assert ended == [True]


def test_a_run_that_cannot_start_leaves_no_folder(small_recipe: Recipe, tmp_path: Path) -> None:
    still = replace(small_recipe, backbone_lr=0.0, embedding_lr=0.0)
    pooled = replace(still, embedding_lr=1e-3, cache_features=True, batch_norm="frozen")
    gem = replace(pooled, embedder=replace(still.embedder, embedding_size=0, pooling="gem"))
    few = replace(small_recipe, embedding_start="features", embedder=replace(still.embedder, embedding_size=200))
    for recipe, message in (
        (still, "nothing of the network would learn"),
        (gem, "nothing of the network would learn"),
        (few, "embedding_start features finds only 96 directions in 96 training images"),
    ):
        with pytest.raises(RecipeError, match=message):
            train(recipe, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    assert train(replace(still, epochs=0), tmp_path / "run").model.exists()


def test_unspread_network_is_named_once(
    small_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Learning rates of 0 leave the narrow cone that this random network starts with."""
    recipe = replace(small_recipe, epochs=8, warmup_epochs=0, backbone_lr=0.0, embedding_lr=1e-12, batch_norm="frozen")
    history = metrics(train(recipe, tmp_path / "run"))
    assert history["mean_cosine"].iloc[-1] > 0.9
    assert capsys.readouterr().err.count("collapse: in epoch 5") == 1


def test_collapse_is_noticed_when_it_starts() -> None:
    for every in (1, 20):  # looked at in each step, and as seldom as on a GPU
        watch, steps = CollapseWatch(), iter(range(0, 10_000, every))
        assert not any(watch.begins(0.99, next(steps)) for _ in range(50)), "one that starts in a cone may spread"
        assert not any(watch.begins(0.2, next(steps)) for _ in range(200))
        alarms = [watch.begins(0.99, next(steps)) for _ in range(200)]
        assert alarms.index(True) < 60 / every


def test_mean_cosine_is_that_of_all_pairs() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(9, 5), dim=1)
    pairs = (vectors @ vectors.T)[~torch.eye(9, dtype=torch.bool)]
    assert float(mean_cosine(vectors)) == pytest.approx(float(pairs.mean()), abs=1e-6)


def test_cached_features_train_the_head_alone(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = replace(small_recipe, backbone_lr=0.0, cache_features=True, epochs=2, batch_norm="frozen")
    run = train(recipe, tmp_path / "run")
    evaluate_run(run)
    cached = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(cached) == 2  # training and test images
    changed = [path.stat().st_mtime_ns for path in cached]
    train(replace(recipe, seed=0, embedding_lr=0.01), tmp_path / "other")
    assert [path.stat().st_mtime_ns for path in cached] == changed, "the same features were computed again"
    train(replace(recipe, seed=1), tmp_path / "another")  # other random weights, other features
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3
    embeddings = Embedder.load(run.path).embed(Catalog.read(recipe.catalog).split("test").paths)
    scores = score_queries(embeddings, Catalog.read(recipe.catalog).split("test").labels)
    stated = json.loads(run.evaluation.read_text())["recall"]["1"]["value"]
    assert (scores.first_positive < 1).mean() == pytest.approx(stated, abs=0.03)


@pytest.mark.parametrize("changes", [{"mirror": True}, {"output_stride": 8}, {"pooling": "max"}])
def test_features_are_kept_apart_by_how_they_are_computed(
    changes: dict[str, Any], small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = Catalog.read(small_recipe.catalog).split("test")
    embedder = Embedder(EmbedderSettings("mobilenetv2_035", "none"), ImageSettings(size=64, resize=64))
    other = Embedder(replace(embedder.settings, **changes), embedder.images)
    other.load_state_dict(embedder.state_dict())
    accelerator = make_accelerator(small_recipe)
    usual, changed = (cached_features(each, images, accelerator, workers=0) for each in (embedder, other))
    assert not torch.allclose(usual, changed, atol=1e-6)
    plain = cached_features(other, images, accelerator, workers=0, as_trained=True)
    assert torch.equal(plain, usual) == ("pooling" not in changes)


@pytest.mark.parametrize("precision", ["bf16", *(["fp16"] if torch.cuda.is_available() else [])])
def test_mixed_precision_trains_and_resumes(small_recipe: Recipe, tmp_path: Path, precision: str) -> None:
    recipe = replace(small_recipe, precision=precision, epochs=2)  # type: ignore[arg-type]
    run = train(recipe, tmp_path / "run")
    assert np.isfinite(metrics(run)["loss"]).all()
    replace(recipe, epochs=3).write(run.recipe)
    resume(run)
    assert np.isfinite(metrics(run)["loss"]).all()
    assert len(metrics(run)) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has fp16")
def test_fp16_without_a_gpu_is_named(small_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="precision is fp16, which needs a GPU"):
        fit(replace(small_recipe, precision="fp16"), RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="mlflow is installed")
def test_missing_tracker_is_named(small_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="tracker is mlflow, which is not installed"):
        fit(replace(small_recipe, tracker="mlflow"), RunFolder(tmp_path / "run"))


def test_synchronised_batch_norm_keeps_the_network() -> None:
    backbone, _ = build_backbone("mobilenetv2_035", "none", 32)
    backbone.eval()
    images = torch.rand(2, 3, 32, 32)
    expected = backbone.forward_features(images)
    assert torch.allclose(convert_sync_batchnorm(backbone).forward_features(images), expected)


def test_a_last_step_that_ruins_the_network_is_noticed(small_recipe: Recipe, tmp_path: Path) -> None:
    """The only step of the epoch leaves weights that give NaN: nothing of it is kept."""
    recipe = replace(small_recipe, epochs=1, batch_size=96, warmup_epochs=0, backbone_lr=1e30, milestones=())
    with pytest.raises(DivergedError, match="no epoch had finished"):
        fit(recipe, RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_is_never_overwritten(small_recipe: Recipe, tmp_path: Path) -> None:
    run = train(replace(small_recipe, epochs=0), tmp_path / "run")
    with pytest.raises(OverwriteError, match="--resume"):
        fit(small_recipe, run)


def test_missing_catalog_is_named(small_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no catalog is given"):
        fit(replace(small_recipe, catalog=""), RunFolder(tmp_path / "run"))
    with pytest.raises(RunError, match="no run folder"):
        resume(RunFolder(tmp_path / "nowhere"))


def test_tensorboard_gets_the_course_of_training(small_recipe: Recipe, tmp_path: Path) -> None:
    run = train(replace(small_recipe, epochs=1, tracker="tensorboard"), tmp_path / "run")
    assert list((run.path / "logs").rglob("events.out.tfevents.*"))


def test_embedding_by_the_pooled_features_themselves(small_recipe: Recipe, tmp_path: Path) -> None:
    settings = EmbedderSettings(backbone="conv4", weights="none", embedding_size=0)
    run = train(replace(small_recipe, embedder=settings, epochs=0), tmp_path / "run")
    assert Embedder.load(run.path).embedding_size == 256


@pytest.mark.parametrize("sparse", [False, True])
def test_two_processes_train_like_one(small_recipe: Recipe, tmp_path: Path, sparse: bool) -> None:
    """Losses, weights and figures of one process with the same global batch; 15 does not divide by 2, nor 96 by 15."""
    recipe = replace(small_recipe, epochs=3, batch_size=15, batch_norm="frozen", validation_classes=0.25, eps=0.01)
    if sparse:
        recipe = replace(recipe, loss=replace(recipe.loss, sparse=True, proxy_weight=0.0, neighbor_ratio=0.3))
    recipe.write(tmp_path / "recipe.yaml")
    one, two = (RunFolder(tmp_path / name) for name in ("one", "two"))
    arguments = ["-m", "proxygml", "train", "--recipe", str(tmp_path / "recipe.yaml"), "--run"]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for command in ([*arguments, str(one.path)], [*launch, *arguments, str(two.path)]):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
    expected, found = metrics(one), metrics(two)
    assert math.isfinite(expected["loss"].iloc[-1])
    pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=1e-4, atol=1e-6)
    weights = load_file(one.model)
    for name, tensor in load_file(two.model).items():
        assert torch.allclose(tensor, weights[name], rtol=1e-3, atol=1e-5), name
    judged = [json.loads(run.evaluation.read_text()) for run in (one, two)]
    assert [content["protocol"]["processes"] for content in judged] == [1, 2]
    assert judged[0]["map_at_r"]["value"] == pytest.approx(judged[1]["map_at_r"]["value"], abs=1e-3)
