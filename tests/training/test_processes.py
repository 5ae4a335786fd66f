"""Several processes, mixed precision, trackers."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from timm.layers.norm_act import convert_sync_batchnorm

from proxygml.data.images.settings import ImageSettings
from proxygml.errors import RecipeError
from proxygml.models.backbones import build_backbone
from proxygml.training.processes import share_overflow
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import fit, resume
from tests.helpers.launch import finish
from tests.helpers.processes import in_processes
from tests.helpers.runs import metrics, train


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


def test_a_tracker_that_cannot_start_is_named(small_recipe: Recipe, tmp_path: Path) -> None:
    """As mlflow-skinny, which has mlflow's name and not the parts that keep runs in a folder."""
    site = tmp_path / "site"
    (site / "mlflow_skinny-3.0.dist-info").mkdir(parents=True)
    (site / "mlflow_skinny-3.0.dist-info" / "METADATA").write_text("Name: mlflow-skinny\nVersion: 3.0\n")
    (site / "mlflow.py").write_text("def search_experiments(**_):\n    raise ImportError('sqlalchemy is missing')\n")
    replace(small_recipe, tracker="mlflow").write(tmp_path / "recipe.yaml")
    command = [
        sys.executable,
        "-m",
        "proxygml",
        "train",
        "--recipe",
        tmp_path / "recipe.yaml",
        "--run",
        tmp_path / "run",
    ]
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{site}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "tracker mlflow cannot start: ImportError: sqlalchemy is missing; mlflow-skinny logs" in done.stderr
    assert not (tmp_path / "run").exists()


def test_synchronised_batch_norm_keeps_the_network() -> None:
    backbone, _ = build_backbone("mobilenetv2_035", "none", ImageSettings(size=32))
    backbone.eval()
    images = torch.rand(2, 3, 32, 32)
    expected = backbone.forward_features(images)
    assert torch.allclose(convert_sync_batchnorm(backbone).forward_features(images), expected)


def stepped() -> tuple[torch.Tensor, float]:
    """A parameter and the loss scale after two steps; in the first, only the first process's gradient overflows."""
    network, proxies = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 3))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = torch.optim.Adam([network, proxies], fused=True)
    for gradient in (math.inf if dist.get_rank() == 0 else 8.0, 8.0):
        scaler.scale(network.sum() + proxies.sum()).backward()
        proxies.grad = torch.full((2, 3), gradient)
        share_overflow(proxies.grad, [network, proxies], dist.group.WORLD)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return network.detach(), scaler.get_scale()


def test_an_overflow_on_one_process_is_skipped_by_all(tmp_path: Path) -> None:
    """Else the processes, each of which holds other proxies, would go on at different steps and scales."""
    for parameter, scale in in_processes(2, stepped, tmp_path):
        assert scale == 4.0
        assert torch.allclose(parameter, torch.full((3,), 0.999), atol=1e-5)  # one step of Adam, not two


def accelerated(processes: int, *arguments: object) -> str:
    """What a command that `accelerate launch` starts prints to standard error."""
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", processes, "--main_process_port", 0]
    command = [sys.executable, "-m", *map(str, [*launch, "-m", "proxygml", *arguments])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment.pop("TORCH_CPP_LOG_LEVEL")  # a user has not set it
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_train_like_one(small_recipe: Recipe, tmp_path: Path, sharded: bool) -> None:
    """Losses, weights and figures of one process with the same global batch; 15 does not divide by 2, nor 96 by 15.

    What is printed, an adaptation to few classes among it, comes from one of them.
    """
    recipe = replace(small_recipe, epochs=3, batch_size=15, batch_norm="frozen", validation_classes=0.25, eps=0.01)
    recipe = replace(recipe, loss=replace(recipe.loss, neighbor_ratio=0.1, sharded=sharded))
    recipe.write(tmp_path / "recipe.yaml")
    one, two = (RunFolder(tmp_path / name) for name in ("one", "two"))
    command = ("train", "--recipe", tmp_path / "recipe.yaml", "--run")
    _, alone = finish(1, *command, one.path)
    together = finish(2, *command, two.path)[1] if sharded else accelerated(2, *command, two.path)
    for printed in (alone, together):
        assert printed.count("few images to train on") == 1
        assert "Warning" not in printed
    expected, found = metrics(one), metrics(two)
    assert math.isfinite(expected["loss"].iloc[-1])
    pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=1e-4, atol=1e-6)
    weights = load_file(one.model)
    for name, tensor in load_file(two.model).items():
        assert torch.allclose(tensor, weights[name], rtol=1e-3, atol=1e-5), name
    judged = [json.loads(run.evaluation.read_text()) for run in (one, two)]
    assert [content["protocol"]["processes"] for content in judged] == [1, 2]
    assert judged[0]["map_at_r"]["value"] == pytest.approx(judged[1]["map_at_r"]["value"], abs=1e-3)
