"""Training a run by a recipe, from its name, its file or its values: the function behind `proxygml train`."""

from dataclasses import replace
from pathlib import Path

from proxygml.arguments import check_arguments
from proxygml.console import warn
from proxygml.files import PathLike, local_path
from proxygml.models.run_files import local_run
from proxygml.training.adaptation import adapted_recipe
from proxygml.training.continuation import continuing
from proxygml.training.given_vectors import print_validation_of_given
from proxygml.training.processes import make_accelerator
from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import find_recipe
from proxygml.training.remote_run import trained_run
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import fit, resume
from proxygml.urls import absolute, as_place, check_places


@check_arguments
def train(
    recipe: Recipe | PathLike | None,
    run: PathLike | RunFolder,
    *,
    catalog: PathLike | None = None,
    start_from: PathLike | None = None,
) -> RunFolder:
    """Train an embedder by a recipe, on the training split of its catalog; or go on with a run that was stopped.

    Where there are too few images or classes for the recipe, it is adapted to them, and one printed line says how.

    Args:
        recipe: its values, its YAML file, or the name of one that comes with proxygml ("photos", "cub200"). None goes
            on with the run that is there, which then ends as if it had never been stopped; with `start_from`, it
            stands for the recipe of that run.
        run: the run folder to make, or to go on with. At a URL, the finished run appears there; until then it is in a
            folder of this machine, where it is continued.
        catalog: the table of images, labels and splits, or its URL, in place of the recipe's own.
        start_from: the folder of a finished run whose network, and whose proxies of the classes that both have, this
            one starts from, such as last week's with fewer classes. With our loss, there is then no warm-up.

    Returns:
        The run folder; `Embedder.load(run)` loads the model, `evaluate_run(run)` evaluates it.

    Raises:
        UserError: the recipe, the catalog or the weights are missing or do not fit each other, the loss became NaN, or
            there is a run in the folder already (none, where `recipe` is None).
    """
    check_places(catalog=catalog)
    old = None if start_from is None else local_path(start_from, "start_from")
    if isinstance(run, RunFolder):
        _train(recipe, run, catalog, old)
        return run
    place = as_place(run, "run")
    with trained_run(place, resumed=recipe is None and old is None) as folder:
        _train(recipe, folder, catalog, old)
    return RunFolder(local_run(place))


def _train(recipe: Recipe | PathLike | None, folder: RunFolder, catalog: PathLike | None, old: Path | None) -> None:
    if recipe is None and old is None:
        resume(folder)
        print_validation_of_given(folder)
        return
    values = _values(recipe, old)
    folder.check_first_start()
    fitting, message = adapted_recipe(
        with_absolute_paths(values if catalog is None else replace(values, catalog=str(catalog)))
    )
    if message and make_accelerator(fitting).is_main_process:
        warn(message)
    fit(fitting, folder)
    print_validation_of_given(folder)


def _values(recipe: Recipe | PathLike | None, old: Path | None) -> Recipe:
    """The recipe as given, or that of the run to start from; with the network of that run."""
    if isinstance(recipe, Recipe):
        values = recipe
    elif recipe is not None:
        values = Recipe.read(find_recipe(str(recipe)))
    else:
        assert old is not None  # or it would be a run to resume
        values = RunFolder(old).read_recipe()
    return values if old is None else continuing(values, old)


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The same recipe for a run folder, which may be used from another working directory."""
    places = (recipe.catalog, recipe.drop, recipe.start_from)
    catalog, drop, old = (absolute(place) if place else "" for place in places)
    weights = recipe.embedder.weights
    if weights not in ("pretrained", "none"):
        weights = absolute(weights)
    network = replace(recipe.embedder, weights=weights)
    return replace(recipe, catalog=catalog, drop=drop, start_from=old, embedder=network)
