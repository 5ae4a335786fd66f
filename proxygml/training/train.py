"""Training a run by a recipe, from its name, its file or its values: the function behind `proxygml train`."""

from dataclasses import replace
from pathlib import Path

from proxygml.arguments import check_arguments
from proxygml.console import console
from proxygml.files import PathLike, check_local, local_path
from proxygml.training.adaptation import adapted_recipe
from proxygml.training.processes import make_accelerator
from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import find_recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import fit, resume


@check_arguments
def train(recipe: Recipe | PathLike | None, run: PathLike, *, catalog: PathLike | None = None) -> RunFolder:
    """Train an embedder by a recipe, on the training split of its catalog; or go on with a run that was stopped.

    Where there are too few images or classes for the recipe, it is adapted to them, and one printed line says how.

    Args:
        recipe: its values, its YAML file, or the name of one that comes with proxygml ("photos", "cub200"). None goes
            on with the run that is there, which then ends as if it had never been stopped.
        run: the run folder to make, or to go on with.
        catalog: the table of images, labels and splits, in place of the recipe's own.

    Returns:
        The run folder; `Embedder.load(run)` loads the model, `evaluate_run(run)` evaluates it.

    Raises:
        UserError: the recipe, the catalog or the weights are missing or do not fit each other, the loss became NaN, or
            there is a run in the folder already (none, where `recipe` is None).
    """
    folder = RunFolder(local_path(run, "run"))
    check_local(catalog, "catalog")
    if recipe is None:
        resume(folder)
        return folder
    values = recipe if isinstance(recipe, Recipe) else Recipe.read(find_recipe(str(recipe)))
    folder.check_first_start()
    fitting, message = adapted_recipe(
        with_absolute_paths(values if catalog is None else replace(values, catalog=str(catalog)))
    )
    if message and make_accelerator(fitting).is_main_process:
        console.print(message, style="yellow", markup=False, soft_wrap=True)
    fit(fitting, folder)
    return folder


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The same recipe for a run folder, which may be used from another working directory."""
    catalog = str(Path(recipe.catalog).resolve()) if recipe.catalog else ""
    weights = recipe.embedder.weights
    if weights not in ("pretrained", "none"):
        weights = str(Path(weights).resolve())
    return replace(recipe, catalog=catalog, embedder=replace(recipe.embedder, weights=weights))
