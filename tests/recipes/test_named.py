"""The recipes that come with proxygml."""

from dataclasses import asdict

import pytest

from proxygml.comparison.plan import Comparison
from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import SHIPPED, find_recipe


@pytest.mark.parametrize(
    ("name", "comparison"),
    [
        ("photos_fine", "cub200_2010_crops_chosen"),
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
