"""Training runs, and whether two of them are the same."""

from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import fit

TIMES = ["seconds", "images_per_second"]


def metrics(run: RunFolder) -> pd.DataFrame:
    return pd.read_csv(run.metrics).drop(columns=TIMES)


def train(recipe: Recipe, folder: Path) -> RunFolder:
    run = RunFolder(folder)
    fit(recipe, run)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file within a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    pd.testing.assert_frame_equal(metrics(one), metrics(other), check_exact=True)
    expected = load_file(other.model)
    for name, tensor in load_file(one.model).items():
        assert torch.equal(tensor, expected[name]), name
