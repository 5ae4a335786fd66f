"""Checks before a comparison starts to train, so that a mistake does not cost hours."""

from collections.abc import Sequence
from dataclasses import replace
from shlex import quote

from accelerate import Accelerator

from proxygml.comparison.cell import Cell
from proxygml.comparison.grid import Grid
from proxygml.comparison.results import Results
from proxygml.comparison.row import Key, Row, read_rows
from proxygml.comparison.settings import Settings, described, differences, portable
from proxygml.comparison.store import Inputs, Store
from proxygml.data.catalog import Catalog
from proxygml.data.images.settings import ImageSettings
from proxygml.errors import RecipeError, RunError, UserError
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.weights import check_weights_file
from proxygml.training.criterion import make_criterion
from proxygml.training.initialization import check_directions, new_embedder
from proxygml.training.optimization import check_learning_rates
from proxygml.training.processes import check_batch_division, check_precision_and_tracker
from proxygml.training.quarter_turns import num_trained
from proxygml.training.recipe import Recipe
from proxygml.training.sampler import check_batch_classes
from proxygml.training.splits import split_for_training

Network = tuple[EmbedderSettings, ImageSettings]  # what a network is built from, but for its weights


def check_methods(grid: Grid, accelerator: Accelerator) -> None:
    """Raise RecipeError for a method that cannot be trained."""
    sizes: dict[Network, tuple[int, int]] = {}  # of a network's embeddings and features
    training: dict[tuple[float, str], Catalog] = {}  # the training images, by the classes held out and rows dropped
    for method in grid.methods:
        for trial, recipe in grid.recipes(method):
            try:
                _check_trainable(recipe, accelerator)
                network = replace(recipe.embedder, weights="none"), recipe.images
                if network not in sizes:
                    images = split_for_training(recipe)[0] if recipe.takes_vectors else None
                    built = new_embedder(replace(recipe, embedder=network[0]), (), images)
                    sizes[network] = built.embedding_size, built.num_features
                left_out = recipe.validation_classes, recipe.drop
                if left_out not in training:
                    training[left_out] = split_for_training(recipe)[0]
                _check_enough_images(recipe, training[left_out], *sizes[network])
            except UserError as error:
                held_out = trial is not None and not grid.has_validation
                share = f" in its trials, which hold out {grid.comparison.tune_on} of the classes" if held_out else ""
                raise RecipeError(f"{grid.comparison.where}: {method.name}{share}: {error}") from error


def _check_trainable(recipe: Recipe, accelerator: Accelerator) -> None:
    """Check what depends neither on the images nor on the network."""
    check_learning_rates(recipe)
    check_precision_and_tracker(recipe)
    check_batch_division(recipe, accelerator)
    if not recipe.loss.is_ours:
        make_criterion(recipe.loss, num_classes=2, embedding_size=2)


def _check_enough_images(recipe: Recipe, images: Catalog, embedding_size: int, num_features: int) -> None:
    """Raise RecipeError where a recipe needs more training classes or images than there are."""
    check_batch_classes(num_trained(len(images.classes), recipe.images), recipe.batch_size, recipe.images_per_class)
    if recipe.embedding_start != "random":
        check_directions(embedding_size, len(images), num_features)


def check_known_rows(rows: Sequence[Row], grid: Grid, inputs: Inputs, protocol: Settings) -> None:
    """Raise RunError for rows of other data, of another protocol, or of cells that the comparison does not plan."""
    by_name = any(row.data_fingerprint is None for row in rows)
    planned, seen = grid.keys(), set()
    for row in rows:
        if by_name and row.data != inputs.data:
            raise RunError(_other_origin("data", row.data, inputs.data))
        if row.data_fingerprint not in (None, inputs.fingerprint):
            raise RunError(_other_origin("data_fingerprint", str(row.data_fingerprint), inputs.fingerprint))
        if row.protocol != protocol:
            found, expected = differences(row.protocol, protocol), differences(protocol, row.protocol)
            raise RunError(_other_origin("protocol", described(found) or "defaults", described(expected) or "defaults"))
        if row.key in seen:
            raise RunError(f"{row.key} comes twice in the rows: give each row once")
        if row.key not in planned:
            name = f"{row.method}, seed {row.seed}" + ("" if row.trial is None else f", trial {row.trial}")
            raise RunError(
                f"a row is of {name}, which the comparison does not ask for, and would be lost: put it into the "
                "recipe, or leave the row out"
            )
        seen.add(row.key)


def _other_origin(what: str, found: str, expected: str) -> str:
    return f"the rows are of {what} {found}, but the comparison is of {expected}: leave them out"


def check_folder(results: Results) -> None:
    """Raise RunError where cells of other inputs would be mixed in, or rows written over whose runs are gone."""
    store, grid = results.store, results.grid
    if (store.folder / "recipe.yaml").exists() or store.folder.is_file():
        raise RunError(f"{store.folder} is a run or a file of its own: give the comparison another --run")
    kept = store.inputs()
    if kept is not None:
        _check_same_inputs(store, kept, results.inputs, grid.comparison.shared.catalog)
    if not store.rows_file.exists():
        return
    planned = grid.keys()
    for row in read_rows([store.rows_file]):
        if row.key not in results.known and not store.cell(row.key).run.path.exists():
            by_from = f"keep it by --from {store.rows_file}"
            raise RunError(
                f"{store.rows_file} has a row of {row.key}, whose run is not there, and which would be lost: "
                f"{by_from if row.key in planned else 'give the comparison another --run'}, or move the file away"
            )


def _check_same_inputs(store: Store, kept: Inputs, inputs: Inputs, catalog: str) -> None:
    if kept.fingerprint != inputs.fingerprint:
        raise RunError(
            f"{store.folder} holds cells of other images, vectors, labels or splits (fingerprint {kept.fingerprint}) "
            f"than {catalog} ({inputs.fingerprint}): put the old catalog back, or give the comparison another --run"
        )
    for name, digest in inputs.weights.items():
        if kept.weights.get(name, digest) != digest:
            raise RunError(
                f"{store.folder} holds cells that started from another file {name} than the one that is given: put "
                "the old one back, or give the comparison another --run"
            )


def check_same_settings(results: Results) -> None:
    """Check every cell that there is, of this part or another, by `check_cell_settings`."""
    for method in results.grid.methods:
        for key, recipe in results.recipes(method):
            check_cell_settings(results, key, recipe)


def check_cell_settings(results: Results, key: Key, recipe: Recipe) -> None:
    """Raise RunError where a cell's run or row is of another recipe or catalog."""
    if key in results.known:
        _check_same_row(results.known[key], results.own_settings(recipe))
    else:
        cell = results.store.cell(key)
        _check_same_run(cell, recipe, tuned=bool(results.grid.trials[key.method]))
        _check_same_catalog(cell, results)


def _check_same_row(row: Row, asked: Settings) -> None:
    if row.settings != asked:
        found = "settings that it does not tell" if row.settings is None else described(row.settings) or "defaults"
        raise RunError(
            f"the row of {row.key} is of {found}, but the comparison asks for {described(asked) or 'defaults'}: give "
            "the method another name, or leave its rows out"
        )


def _check_same_run(cell: Cell, recipe: Recipe, tuned: bool) -> None:
    if not cell.run.recipe.exists():
        return
    # Read as a recipe, so that a key that a newer version has stands at its default in an older run.
    there, asked = (portable(one.content()) for one in (cell.run.read_recipe(), recipe))
    found, wanted = differences(there, asked), differences(asked, there)
    advice = "give the method another name, or the comparison another --run"
    if tuned and not cell.is_trial:  # its trials are of the recipe, as they are checked first
        advice = "its trials have chosen anew: take the method's seed folders, and their rows in cells.csv, away to "
        advice += "train it so, or ask for as many trials as before"
    if found or wanted:
        raise RunError(
            f"{cell.run.path} was trained with {described(found) or 'defaults'}, but the comparison asks for "
            f"{described(wanted) or 'defaults'}: {advice}"
        )


def _check_same_catalog(cell: Cell, results: Results) -> None:
    """Raise RunError where `proxygml evaluate` has judged a cell by another catalog since."""
    if not cell.run.evaluation.exists():
        return
    judged = cell.protocol()
    expected = results.inputs.fingerprint
    if judged.catalog_fingerprint not in (None, expected):  # older evaluations hold none
        raise RunError(
            f"{cell.run.evaluation} is of another catalog, {judged.catalog}: keep a copy if you need it, and "
            f"judge the cell by the comparison's again: proxygml evaluate {quote(str(cell.run.path))} --catalog "
            f"{quote(results.grid.comparison.shared.catalog)}"
        )


def check_weights(results: Results) -> None:
    """Raise WeightsError for a file of weights that is missing, where there is something left to train from it."""
    for method in results.grid.methods:
        for key, recipe in results.recipes(method):
            if not results.is_done(key):
                check_weights_file(recipe.embedder.weights)
