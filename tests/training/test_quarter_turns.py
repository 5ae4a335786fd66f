"""Quarter turns of training images as further classes."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from proxygml import Embedder
from proxygml.data.catalog import Catalog
from proxygml.data.images.tensors import ImageDataset
from proxygml.errors import RecipeError
from proxygml.training.quarter_turns import TurnedImages, turned_labels, turned_names
from proxygml.training.recipe import Recipe
from tests.helpers.runs import train


def test_each_image_comes_in_all_turns_with_a_class_for_each(small_recipe: Recipe, small_catalog: Path) -> None:
    images = Catalog.read(small_catalog).split("train")
    upright = ImageDataset(images.paths, images.boxes, small_recipe.images, training=True, seed=1)
    turned = TurnedImages(upright)
    labels = turned_labels(torch.from_numpy(images.class_numbers), len(images.classes))
    names = turned_names(tuple(images.classes))
    turned.set_epoch(2)
    for item in (3, len(images) + 3, 3 * len(images) + 3):
        square, index = turned[item]
        turns = item // len(images)
        assert index == item
        assert torch.equal(square.rot90(-turns, (1, 2)), upright[3][0])
        name = names[int(labels[item])]
        assert name == images.labels[3] + (f", turned {90 * turns}" if turns else "")
    assert len(turned) == len(labels) == 4 * len(images)
    assert len(set(names)) == len(labels.unique()) == 4 * len(images.classes)


def test_a_run_trains_the_turned_classes_and_keeps_the_upright_ones(small_recipe: Recipe, tmp_path: Path) -> None:
    plain = replace(small_recipe, epochs=1, warmup_epochs=0)
    run = train(replace(plain, images=replace(plain.images, quarter_turns=True)), tmp_path / "turned")
    with run.proxies.open(encoding="utf-8") as file:
        rows = [row["label"] for row in csv.DictReader(file)]
    classes = Embedder.load(run.path).classes
    assert len(rows) == 4 * len(classes) * plain.loss.proxies_per_class
    assert rows[-1] == f"{classes[-1]}, turned 270"


@pytest.mark.parametrize("other", [{"cache_features": True, "backbone_lr": 0.0}, {"proxy_start": "features"}])
def test_what_knows_no_turned_classes_is_refused(small_recipe: Recipe, other: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"images.quarter_turns makes classes of turned images"):
        replace(small_recipe, images=replace(small_recipe.images, quarter_turns=True), **other)  # type: ignore[arg-type]
