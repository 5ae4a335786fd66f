"""`proxygml train`."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from proxygml.cli.evaluate import evaluate_and_print
from proxygml.cli.options import RECIPE_HELP
from proxygml.cli.parser import Parser
from proxygml.errors import UserError

if TYPE_CHECKING:
    from proxygml.training.recipe import Recipe


def train(arguments: Sequence[str]) -> None:
    """Train an embedder by a recipe; then evaluate it, where the catalog has a test split."""
    from proxygml.training.recipe import Recipe, check_content, find_recipe, read_yaml

    parser = Parser("train", str(train.__doc__))
    parser.add_argument("--recipe", action="config", help=RECIPE_HELP)
    parser.add_argument("--run", type=Path | None, default=None, help="the folder to make for this run")
    parser.add_argument("--resume", type=Path | None, default=None, help="go on with this run; takes no other option")
    parser.add_class_arguments(Recipe, as_group=False)
    arguments = [part for argument in arguments for part in _split_recipe(argument)]
    if "--recipe" in arguments[:-1]:
        place = arguments.index("--recipe")
        path = find_recipe(arguments[place + 1])
        check_content(read_yaml(path), str(path))
        # In front of all others, because what is read later wins.
        arguments = ["--recipe", str(path), *arguments[:place], *arguments[place + 2 :]]
    options = parser.parse(arguments)
    if options.resume is not None:
        if len(arguments) != (2 if arguments[0] == "--resume" else 1):
            raise UserError("--resume takes no other option: the run folder holds the recipe of the run")
        train_and_evaluate(options.resume, None)
    elif options.run is None:
        raise UserError("no run folder is given: name one with --run (or go on with one by --resume)")
    else:
        train_and_evaluate(options.run, recipe_of(parser.instantiate(options)))


def _split_recipe(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--recipe=") else [argument]


def recipe_of(options: Namespace) -> "Recipe":
    """The recipe that the options hold, with absolute paths, since the run folder remembers them."""
    from proxygml.training.recipe import Recipe

    recipe = Recipe(**{key.name: options[key.name] for key in fields(Recipe)})
    catalog = str(Path(recipe.catalog).resolve()) if recipe.catalog else ""
    weights = recipe.embedder.weights
    if weights not in ("pretrained", "none"):
        weights = str(Path(weights).resolve())
    return replace(recipe, catalog=catalog, embedder=replace(recipe.embedder, weights=weights))


def train_and_evaluate(folder: Path, recipe: "Recipe | None", before: bool = False) -> None:
    """Start a run, or go on with one where no recipe is given; then evaluate it."""
    from proxygml.data.catalog import Catalog
    from proxygml.training.run_folder import RunFolder
    from proxygml.training.trainer import fit, resume

    run = RunFolder(folder)
    if recipe is None:
        resume(run)
    else:
        fit(recipe, run)
    if "test" in Catalog.read(run.read_recipe().catalog).counts:
        evaluate_and_print(folder, None, before)
