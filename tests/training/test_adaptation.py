"""Recipes on small catalogs: what the images cannot give is lowered, and said in one line."""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from proxygml import Embedder
from proxygml.data.catalog import Catalog
from proxygml.errors import CatalogError, UserError
from proxygml.loss.graph import neighbor_count
from proxygml.training.adaptation import adapted_recipe
from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import find_recipe
from proxygml.training.run_folder import RunFolder
from tests.helpers.commands import run
from tests.helpers.runs import metrics


def _folder(folder: Path, images: int, classes: int) -> Path:
    random = np.random.default_rng(0)
    for number in range(images):
        path = folder / f"class {number % classes:02d}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(path)
    return folder


def _catalog(folder: Path, images: int, classes: int) -> str:
    """A catalog that names images, none of which is there: enough to adapt a recipe."""
    rows = [(f"{row}.jpg", f"class {row % classes:03d}", "train") for row in range(images)]
    Catalog(pd.DataFrame(rows, columns=["path", "label", "split"]), folder).write(folder / "catalog.csv")
    return str(folder / "catalog.csv")


def test_a_catalog_of_the_other_kind_is_refused_first(tmp_path: Path) -> None:
    """Neither the weights are fetched, nor is anything said about images that are none."""
    images = _catalog(tmp_path, 12, 3)
    with pytest.raises(CatalogError, match="the catalog has no vectors"):
        adapted_recipe(replace(Recipe.read(find_recipe("vectors")), catalog=images))
    vectors = tmp_path / "vectors.parquet"
    table = {"label": list("aabb"), "split": "train", "embedding": list(np.eye(4, dtype=np.float32))}
    pd.DataFrame(table).to_parquet(vectors)
    with pytest.raises(CatalogError, match="the catalog has vectors but no images"):
        adapted_recipe(Recipe(catalog=str(vectors)))


@pytest.mark.parametrize(("images", "classes"), [(12, 3), (100, 10), (500, 40)])
def test_small_folders_train_and_are_evaluated(
    images: int, classes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's commands, on a network without pretrained weights; no warning is left to Python's own form."""
    catalog, folder = tmp_path / "photos.parquet", tmp_path / "run"
    run(
        "prepare",
        "folder",
        "--root",
        _folder(tmp_path / "photos", images, classes),
        "--out",
        catalog,
        "--test_classes",
        "half",
    )
    small = ["--embedder.backbone", "conv4", "--embedder.weights", "none", "--images.size", 16, "--images.resize", 16]
    small += ["--epochs", 2, "--workers", 0, "--tracker", "none", "--validation_classes", 0.2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run("train", "--recipe", "photos", "--catalog", catalog, "--run", folder, *small)
    shown = capsys.readouterr().err
    assert "few images to train on" in shown
    assert "UserWarning" not in shown
    history = metrics(RunFolder(folder))
    assert np.isfinite(history["loss"][history["epoch"] > 0]).all()  # epoch 0 is the start, which has no loss
    recipe = RunFolder(folder).read_recipe()
    assert 2 <= recipe.embedder.embedding_size < images
    assert Embedder.load(folder).embed(Catalog.read(catalog).paths).isfinite().all()
    assert RunFolder(folder).evaluation.exists()
    assert ("one class only" in shown) == (classes == 3)


def test_one_training_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one class only"):
        adapted_recipe(Recipe(catalog=_catalog(tmp_path, 5, 1)))


@pytest.mark.parametrize("classes", [2, 3, 7, 20])
def test_few_classes_keep_one_proxy_of_another_class(classes: int, tmp_path: Path) -> None:
    """What the loss would raise with a warning, of any number of classes and proxies."""
    plain = Recipe(catalog=_catalog(tmp_path, 100, classes))
    for per_class in (1, 3, 12):
        recipe, message = adapted_recipe(replace(plain, loss=replace(plain.loss, proxies_per_class=per_class)))
        ratio = recipe.loss.neighbor_ratio
        assert math.ceil(ratio * classes * per_class) == neighbor_count(classes, per_class, 0.05)
        assert ("loss.neighbor_ratio" in message) == (ratio != 0.05)


def test_what_is_enough_stays_as_it_is(tmp_path: Path) -> None:
    recipe = Recipe(
        catalog=_catalog(tmp_path, 720, 24),
        embedding_start="features",
        validation_classes=0.1,
        images_per_class=2,
    )
    assert adapted_recipe(recipe) == (recipe, "")


def test_what_changes_is_named_with_both_values(tmp_path: Path) -> None:
    recipe = Recipe(
        catalog=_catalog(tmp_path, 45, 5), embedding_start="features", validation_classes=0.5, images_per_class=4
    )
    adapted, message = adapted_recipe(recipe)
    assert (adapted.validation_classes, adapted.embedder.embedding_size, adapted.batch_size) == (0.0, 32, 20)
    assert message == (
        "few images to train on (45 images of 5 classes), so validation_classes is 0 instead of 0.5, "
        "embedder.embedding_size is 32 instead of 512, batch_size is 20 instead of 32, "
        "loss.neighbor_ratio is 0.208 instead of 0.05"
    )
    random = replace(recipe, embedding_start="random", whitening=0.0)
    assert adapted_recipe(random)[0].embedder.embedding_size == 512  # a layer of its own needs no image per direction


def test_classes_of_turned_images_count(tmp_path: Path) -> None:
    recipe = Recipe(catalog=_catalog(tmp_path, 60, 6), validation_classes=0.0, images_per_class=2)
    turned = replace(recipe, images=replace(recipe.images, quarter_turns=True))
    assert adapted_recipe(recipe)[0].batch_size == 12
    assert adapted_recipe(turned) == (turned, "")
