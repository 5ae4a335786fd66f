"""`proxygml train`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from proxygml.cli.evaluate import print_evaluation
from proxygml.cli.inputs import check_inputs
from proxygml.cli.options import recipe_with
from proxygml.cli.parser import Parser
from proxygml.errors import UserError
from proxygml.urls import Place

if TYPE_CHECKING:
    from proxygml.training.recipe import Recipe
    from proxygml.training.run_folder import RunFolder

OWN = ("recipe", "run", "resume", "from")


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Train by a recipe, with the values of the options in place of its own, or continue a run; then evaluate it."""
    from proxygml.training.recipe import Recipe

    parser.usage = "%(prog)s --recipe RECIPE --catalog CATALOG --run FOLDER [options]"
    words = "a YAML file with any of the keys below, or the name of a recipe that comes with proxygml, such as photos"
    parser.add_argument("--recipe", default="", help=words)
    parser.add_argument("--run", type=Place | None, default=None, help="the folder to make for this run")
    words = "continue the stopped run in this folder; takes no other option"
    parser.add_argument("--resume", type=Place | None, default=None, help=words)
    words = "start from the network and proxies of this finished run, by its recipe where no --recipe is given"
    parser.add_argument("--from", type=Path | None, default=None, help=words)
    parser.add_class_arguments(Recipe, as_group=False, skip={"start_from"})
    parser.takes_urls("catalog", "embedder.weights")
    options = parser.parse(arguments, only_given=True)
    resumed, folder, name, old = (options.get(key) for key in ("resume", "run", "recipe", "from"))
    if resumed is not None and len(vars(options)) > 1:
        raise UserError("--resume takes no other option: the run folder holds the recipe of the run")
    if resumed is None and folder is None:
        raise UserError("no run folder is given: name one with --run (or continue a run by --resume)")

    from proxygml.training.recipe_files import find_recipe, read_yaml

    check_inputs(run=old if resumed is None else resumed if isinstance(resumed, Path) else None)
    recipe = None
    if resumed is None:
        path = find_recipe(name) if name else None if old is None else old / "recipe.yaml"
        content = {} if path is None else read_yaml(path)
        where = str(path or "the options")
        if old is not None:
            from proxygml.training.continuation import continuing

            content = continuing(Recipe.of(content, where), old).content()
        recipe = recipe_with(content, options, OWN, where)
        check_inputs(catalog=recipe.catalog)
    from proxygml.training.remote_run import trained_run

    with trained_run(folder or resumed, resumed=recipe is None) as trained:
        train_and_evaluate(recipe, trained)


def train_and_evaluate(recipe: "Recipe | None", folder: "RunFolder", before: bool = False) -> None:
    """Train a run, or continue it where no recipe is given; evaluate it where its catalog has a test split."""
    from proxygml.data.catalog import Catalog
    from proxygml.training.evaluate_run import evaluate_run
    from proxygml.training.train import train

    trained = train(recipe, folder)
    written = trained.read_recipe()
    before = before or written.takes_vectors  # the vectors as they came, which cost nothing
    if "test" in Catalog.read(written.catalog).counts:
        print_evaluation(trained, evaluate_run(trained, before=before, all_splits=written.takes_vectors), before=before)
