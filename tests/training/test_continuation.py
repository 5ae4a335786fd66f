"""A run that goes on from a finished one, with more classes."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from proxygml import Embedder
from proxygml import train as train_run
from proxygml.data.catalog import Catalog
from proxygml.errors import RecipeError, RunError
from proxygml.training.checkpoint import export_proxies
from proxygml.training.continuation import continuing
from proxygml.training.loss_settings import LossSettings
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from tests.helpers.commands import refused, run
from tests.helpers.models import untrained
from tests.helpers.runs import metrics, train


@pytest.fixture(scope="module")
def fewer(small_recipe: Recipe, small_catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run on all but two of the training classes: the third, and the last."""
    folder = tmp_path_factory.mktemp("fewer")
    whole = Catalog.read(small_catalog)
    table = whole.table[~whole.table["label"].isin(["class 02", "class 11"])].copy()
    table["path"] = [str(small_catalog.parent / path) for path in table["path"]]
    Catalog(table.reset_index(drop=True), folder).write(folder / "fewer.parquet")
    return train(replace(small_recipe, catalog=str(folder / "fewer.parquet"), seed=7), folder / "run")


def proxies_of(run: RunFolder, folder: Path) -> Tensor:
    folder.mkdir(exist_ok=True)
    export_proxies(run.path, folder / "proxies.safetensors", force=True)
    return load_file(folder / "proxies.safetensors")["proxies"].view(-1, 2, 16)  # (classes, proxies of each, D)


def test_network_and_proxies_of_the_classes_that_stay_are_taken_over(
    fewer: RunFolder, small_catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = ["--backbone_lr=0", "--embedding_lr=1e-30", "--proxy_lr=1e-30", "--batch_norm=frozen", "--epochs=1"]
    run("train", "--from", str(fewer.path), "--catalog", str(small_catalog), "--run", str(tmp_path / "new"), *still)
    more = RunFolder(tmp_path / "new")
    before, after = load_file(fewer.model), load_file(more.model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    old, new = proxies_of(fewer, tmp_path / "a"), proxies_of(more, tmp_path / "b")
    kept = [number for number in range(12) if number not in (2, 11)]
    assert torch.equal(new[kept], old) and more.read_recipe().start_from == str(fewer.path)

    # The other proxies look where the images of their classes lie.
    embedder = Embedder.load(more.path)
    table = Catalog.read(small_catalog).table
    for number in (2, 11):
        paths = [small_catalog.parent / path for path in table[table["label"] == f"class {number:02d}"]["path"]]
        centre = embedder.embed(paths).mean(dim=0)
        similarity = torch.nn.functional.normalize(new.flatten(0, 1), dim=1) @ centre
        assert set(similarity.topk(2).indices.tolist()) == {2 * number, 2 * number + 1}


def test_of_a_run_with_quarter_turns_the_upright_classes_are_taken_over(
    small_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = replace(small_recipe.images, quarter_turns=True)
    turned = train(replace(small_recipe, images=images, epochs=1, warmup_epochs=0), tmp_path / "turned")
    still = ["--backbone_lr=0", "--embedding_lr=1e-30", "--proxy_lr=1e-30", "--batch_norm=frozen"]
    run("train", "--from", str(turned.path), "--run", str(tmp_path / "new"), *still)
    old, new = proxies_of(turned, tmp_path / "a"), proxies_of(RunFolder(tmp_path / "new"), tmp_path / "b")
    assert len(old) == 4 * len(new) and torch.equal(new, old[: len(new)])


def test_a_continued_run_has_a_warm_up_only_if_it_is_given_one(
    fewer: RunFolder, small_recipe: Recipe, small_catalog: Path, tmp_path: Path
) -> None:
    recipe = replace(small_recipe, warmup_epochs=1, epochs=1, catalog=str(small_catalog))
    assert train_run(recipe, tmp_path / "a", start_from=fewer.path).read_recipe().warmup_epochs == 0
    recipe.write(tmp_path / "recipe.yaml")
    still = ["--recipe", str(tmp_path / "recipe.yaml"), "--epochs=1", "--catalog", str(small_catalog)]
    run("train", "--from", str(fewer.path), *still, "--warmup_epochs=1", "--run", str(tmp_path / "b"))
    assert RunFolder(tmp_path / "b").read_recipe().warmup_epochs == 1
    # The proxies of other losses start at random: the network is kept from them at first.
    others = replace(recipe, loss=LossSettings(name="ProxyAnchorLoss"))
    assert continuing(others, fewer.path).warmup_epochs == 1


def test_a_continued_run_that_was_stopped_goes_on_as_if_it_had_not(
    fewer: RunFolder, small_catalog: Path, tmp_path: Path
) -> None:
    whole = train_run(None, tmp_path / "whole", catalog=small_catalog, start_from=fewer.path)
    recipe = whole.read_recipe()
    half = train(replace(recipe, epochs=2), tmp_path / "half")
    recipe.write(half.recipe)
    train_run(None, half.path)
    pd.testing.assert_frame_equal(metrics(half), metrics(whole), check_exact=True)
    # It does not start where a new run does.
    assert (
        metrics(whole)["loss"].iloc[0]
        < metrics(train(replace(recipe, start_from=""), tmp_path / "anew"))["loss"].iloc[0]
    )


def test_what_cannot_be_gone_on_from_is_named(
    fewer: RunFolder, small_recipe: Recipe, small_catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    command = ("train", "--catalog", str(small_catalog), "--run", str(new), "--from")
    assert "there is nothing of that name" in refused(capsys, *command, str(tmp_path / "nothing"))
    message = refused(capsys, *command, str(fewer.path), "--embedder.embedding_size", "8")
    assert "embedder.embedding_size is 8, but" in message and "has 16: leave it out" in message
    assert not new.exists()
    with pytest.raises(RunError, match="no run folder|no model"):
        train_run(small_recipe, new, start_from=tmp_path)
    with pytest.raises(RecipeError, match="start_from is s3://"):
        replace(small_recipe, start_from="s3://bucket/run")


def test_a_run_of_another_loss_gives_its_network_alone(small_recipe: Recipe, tmp_path: Path) -> None:
    old = untrained(tmp_path / "old")
    new = train_run(replace(small_recipe, epochs=1), tmp_path / "new", start_from=old)
    assert new.read_recipe().start_from == str(old)
