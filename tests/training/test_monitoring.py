"""Monitoring: collapse is noticed, a run that diverges is stopped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from proxygml.errors import DivergedError
from proxygml.training.monitoring import CollapseWatch, collapse_message, mean_cosine
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import fit, resume
from tests.helpers.runs import contents, metrics, train


def test_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(small_recipe: Recipe, tmp_path: Path) -> None:
    run = train(replace(small_recipe, epochs=1), tmp_path / "run")
    good = contents(run.checkpoints)
    replace(small_recipe, epochs=3, backbone_lr=1e30, embedding_lr=1e30, warmup_epochs=0).write(run.recipe)
    with pytest.raises(DivergedError, match=r"in epoch 2, step \d+; the last good state, after epoch 1.*backbone_lr"):
        resume(run)
    assert contents(run.checkpoints) == good


def test_unspread_network_is_named_once(
    small_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Learning rates of 0 leave the narrow cone that this random network starts with."""
    recipe = replace(small_recipe, epochs=8, warmup_epochs=0, backbone_lr=0.0, embedding_lr=1e-12, batch_norm="frozen")
    history = metrics(train(recipe, tmp_path / "run"))
    assert history["mean_cosine"].iloc[-1] > 0.9
    assert capsys.readouterr().err.count("collapse: in epoch 5") == 1


def test_what_is_advised_against_a_collapse_can_be_done() -> None:
    trained = collapse_message(0.95, 5, Recipe(backbone_lr=1e-4, warmup_epochs=0))
    assert "Try a warm-up (warmup_epochs 1), a lower backbone_lr than 0.0001 or" in trained
    frozen = collapse_message(0.95, 5, Recipe(backbone_lr=0.0, embedding_lr=1e-3, warmup_epochs=0))
    assert "Try a higher embedding_lr than 0.001 or a higher proxy_lr than" in frozen


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
    assert float(mean_cosine(vectors, len(vectors))) == pytest.approx(float(pairs.mean()), abs=1e-6)


def test_a_last_step_that_ruins_the_network_is_noticed(small_recipe: Recipe, tmp_path: Path) -> None:
    """The only step of the epoch leaves weights that give NaN: nothing of it is kept."""
    recipe = replace(small_recipe, epochs=1, batch_size=96, warmup_epochs=0, backbone_lr=1e30, milestones=())
    with pytest.raises(DivergedError, match="no epoch had finished"):
        fit(recipe, RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_what_training_prints_are_the_figures_of_the_finished_epochs(
    small_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Progress lines end with the epoch's mean loss; validation figures and the epoch that was kept are named."""
    run = train(replace(small_recipe, validation_classes=0.25, epochs=2), tmp_path / "run")
    printed = " ".join(capsys.readouterr().err.split())
    history = metrics(run)
    best = int(history["val_map_at_r"].idxmax())
    for row in history.itertuples():
        assert f"loss {row.loss:.3f}, mean cosine {row.mean_cosine:.2f}" in printed
        assert f"epoch {row.epoch:.0f}: Recall@1 {100 * row.val_recall_at_1:.1f}, MAP@R" in printed
    assert "loss 0.000" not in printed
    assert "images/s" in printed
    assert printed.count("; no epoch has a higher MAP@R") == 1
    assert f"the model is the network after epoch {best + 1} of 2: Recall@1" in printed
    train(replace(small_recipe, epochs=1), tmp_path / "last")
    assert "the model is the network after the last epoch, 1" in " ".join(capsys.readouterr().err.split())
