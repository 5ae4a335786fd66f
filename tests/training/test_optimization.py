"""What learns, and how fast: warm-up, frozen batch norm, groups, schedules."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from proxygml.training.optimization import schedule_factor
from proxygml.training.recipe import Recipe
from tests.helpers.runs import metrics, train


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
