"""Training with the classes divided over processes: that of one process, also where their number changes on the way."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from proxygml.data.catalog import Catalog
from proxygml.training.checkpoint import export_proxies
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import resume
from tests.helpers.launch import finish, kill_once
from tests.helpers.runs import metrics, train


def few_classes(recipe: Recipe, number: int, folder: Path) -> Recipe:
    """The recipe on the first few training classes of its catalog; neither they nor the batches divide evenly."""
    catalog = Catalog.read(recipe.catalog)
    kept = catalog.table["label"].isin([f"class {label:02d}" for label in range(number)])
    Catalog(catalog.table[kept], catalog.folder).write(folder / "few.parquet")
    loss = replace(recipe.loss, neighbor_ratio=0.6)
    return replace(recipe, catalog=str(folder / "few.parquet"), loss=loss, batch_size=7, batch_norm="frozen", eps=0.01)


def assert_alike(run: RunFolder, expected: RunFolder, tolerance: float = 1e-4) -> None:
    """The same figures, weights, proxies and counts, up to the order in which floats are added."""
    pd.testing.assert_frame_equal(metrics(run), metrics(expected), check_exact=False, rtol=tolerance, atol=1e-6)
    weights = load_file(expected.model)
    for name, tensor in load_file(run.model).items():
        assert torch.allclose(tensor, weights[name], rtol=10 * tolerance, atol=1e-5), name
    assert torch.allclose(proxies(run), proxies(expected), rtol=10 * tolerance, atol=1e-5)
    counts = [pd.read_csv(each.proxies) for each in (run, expected)]
    assert counts[0][["label", "proxy"]].equals(counts[1][["label", "proxy"]])
    assert np.abs(counts[0]["kept"] - counts[1]["kept"]).max() <= 1  # a near tie at the last place
    names = [{path.name for path in each.path.iterdir()} for each in (run, expected)]
    assert names[0] == names[1]


def proxies(run: RunFolder) -> torch.Tensor:
    export_proxies(run.path, run.path.with_suffix(".safetensors"), force=True)
    return load_file(run.path.with_suffix(".safetensors"))["proxies"]


@pytest.mark.parametrize("sparse", [False, True])
def test_a_run_may_go_on_with_any_number_of_processes(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparse: bool
) -> None:
    """Killed on three processes, then on two, finished by one; five classes divide by neither number.

    The run is short, at small rates, and its embeddings start spread: where two proxies are almost equally similar,
    rounding decides which one is kept, and from there on two runs grow apart.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = replace(few_classes(small_recipe, 5, tmp_path), epochs=9, proxy_start="features", proxy_lr=0.01)
    recipe = replace(recipe, embedding_start="features", whitening=0.7, backbone_lr=2e-4, embedding_lr=2e-4)
    if sparse:
        recipe = replace(recipe, loss=replace(recipe.loss, sparse=True, proxy_weight=0.0))
    recipe.write(tmp_path / "recipe.yaml")
    whole, run = train(recipe, tmp_path / "whole"), RunFolder(tmp_path / "run")

    def is_after(epoch: int) -> bool:
        return run.checkpoint is not None and run.checkpoint.name >= f"epoch-{epoch:04d}"

    kill_once(lambda: is_after(1), 3, "train", "--recipe", tmp_path / "recipe.yaml", "--run", run.path)
    assert run.checkpoint is not None
    assert len(list(run.checkpoint.glob("part-*"))) == 3
    after = int(run.checkpoint.name[-4:])
    kill_once(lambda: is_after(after + 1), 2, "train", "--resume", run.path)
    assert not run.model.exists(), "the run had finished before it was killed"
    resume(run)
    assert_alike(run, whole, tolerance=5e-4)


def test_fewer_classes_than_processes(small_recipe: Recipe, tmp_path: Path) -> None:
    """The first of three processes has no class of two. It writes the folder all the same, as one process does."""
    recipe = few_classes(small_recipe, 2, tmp_path)
    recipe.write(tmp_path / "recipe.yaml")
    one, three = train(recipe, tmp_path / "one"), RunFolder(tmp_path / "three")
    _, printed = finish(3, "train", "--recipe", tmp_path / "recipe.yaml", "--run", three.path)
    assert "Traceback" not in printed and "Warning" not in printed
    assert_alike(three, one)
    with three.proxies.open() as file:
        assert [row[:2] for row in csv.reader(file)][1:] == [
            [label, number] for label in ("class 00", "class 01") for number in "01"
        ]
