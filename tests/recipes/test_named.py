"""The recipes that come with proxygml."""

from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from proxygml.comparison.plan import Comparison
from proxygml.models.embedder import Embedder
from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import SHIPPED, find_recipe
from proxygml.training.train import train


@pytest.mark.parametrize(
    ("name", "comparison"),
    [
        ("birds_own", "cub200_2010_crops_chosen"),
        ("omniglot_own", "omniglot_chosen"),
        ("omniglot_own", "omniglot_own"),
    ],
)
def test_our_recipes_by_name_are_those_whose_figures_are_in_the_results(name: str, comparison: str) -> None:
    plan = Comparison.read(find_recipe(comparison, "compare"))
    method = next(method for method in plan.methods if method.name == "Our recipe")
    measured = asdict(plan.recipe_of(method, {}, seed=0))
    named = asdict(Recipe.read(find_recipe(name)))
    assert {key: value for key, value in named.items() if measured[key] != value} == {}


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_says_what_it_is_for(path: object) -> None:
    recipe = find_recipe(str(path))
    assert recipe.read_text(encoding="utf-8").startswith("# ")
    Recipe.read(recipe)


def test_photos_learns_a_layer_from_the_features_of_a_dino_backbone(small_catalog: Path, tmp_path: Path) -> None:
    """The guide says how; with random weights, since none of DINO's are needed to see that it works."""
    recipe = Recipe.read(find_recipe("photos"))
    dino = "vit_small_patch14_reg4_dinov2"
    recipe = replace(
        recipe,
        catalog=str(small_catalog),
        embedder=replace(recipe.embedder, backbone=dino, weights="none", pooling="avg", embedding_size=16),
        images=replace(recipe.images, size=28, resize=32),
        backbone_lr=0.0,
        embedding_lr=1e-4,
        cache_features=True,
        epochs=2,
        milestones=(1,),
        workers=0,
        tracker="none",
    )
    train(recipe, tmp_path / "run")
    found = Embedder.load(tmp_path / "run").embed([str(path) for path in sorted(small_catalog.parent.glob("*_0.png"))])
    assert found.shape == (18, 16)
    assert torch.allclose(found.norm(dim=1), torch.ones(18), atol=1e-5)
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert metrics["loss"].iloc[-1] < metrics["loss"].iloc[0]
