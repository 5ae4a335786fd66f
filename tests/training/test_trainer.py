"""Training as a whole: it learns, is repeatable, keeps the best epoch, and leaves a whole run folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from safetensors.torch import load_file

from proxygml import Embedder
from proxygml.data.catalog import Catalog
from proxygml.errors import CatalogError, DivergedError, OverwriteError, RecipeError, RunError
from proxygml.evaluation.metrics import score_queries
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.training.evaluate_run import evaluate_run
from proxygml.training.processes import make_accelerator
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import Training, fit, resume
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
    assert [path.name for path in run.checkpoints.iterdir()] == ["epoch-0008"]
    for path in (run.recipe, run.model, run.report, run.proxies, run.path / "model.json"):
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
    recipe = replace(small_recipe, workers=2)
    training = Training(recipe, RunFolder(tmp_path / "unused"), make_accelerator(recipe))
    before = torch.get_rng_state()
    images, indices = next(iter(training.open_data()[1]))
    assert images.shape == (16, 3, 16, 16)
    assert len(indices) == 16
    assert torch.equal(torch.get_rng_state(), before)


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


def test_best_epoch_on_validation_classes_is_kept(small_recipe: Recipe, tmp_path: Path) -> None:
    """The model is that of the epoch with the best MAP@R on classes held out whole; test classes choose nothing."""
    recipe = replace(small_recipe, epochs=4, validation_classes=0.25, backbone_lr=0.02)
    training = Training(recipe, RunFolder(tmp_path / "unused"), make_accelerator(recipe))
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
        (few, "only 96 directions can be found in 96 training images"),
    ):
        with pytest.raises(RecipeError, match=message):
            train(recipe, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    assert train(replace(still, epochs=0), tmp_path / "run").model.exists()


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
