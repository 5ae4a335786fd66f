"""Running a comparison: each cell is an ordinary run folder; finished cells are skipped, stopped ones continue.

A method's trials come first; its cells are then trained with the settings of the best. Each cell is
evaluated on the test classes once, after its training. Here one comes after the other; tasks.py trains many at a time,
on this machine or on many.
"""

from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from proxygml.comparison.cell import remove_leftovers, train_and_judge
from proxygml.comparison.checks import (
    check_cell_settings,
    check_folder,
    check_known_rows,
    check_methods,
    check_same_settings,
    check_weights,
)
from proxygml.comparison.grid import Grid
from proxygml.comparison.plan import Comparison, Method
from proxygml.comparison.process import train_in_process
from proxygml.comparison.results import Results
from proxygml.comparison.row import Key, Row
from proxygml.comparison.store import Inputs, Store
from proxygml.console import console, warn
from proxygml.training.processes import make_accelerator
from proxygml.training.recipe import Recipe
from proxygml.urls import as_place


class Runner:
    """Trains and judges the cells of a comparison in its folder.

    Args:
        comparison: what is compared.
        folder: where the cells lie; a comparison that was stopped, or that has grown, goes on there.
        known: rows of an earlier comparison whose runs are gone: these cells are not trained again.

    Raises:
        UserError: the catalog is missing or of no use, a method names no loss or network that there is, or could not
            learn, the known rows are of other data or another protocol, or the folder holds cells of other data, or
            rows that would be lost.
    """

    def __init__(self, comparison: Comparison, folder: Path, known: Sequence[Row] = ()) -> None:
        # Joins the processes as the runs will, for every PartialState() below.
        accelerator = make_accelerator(comparison.shared)
        self.grid = Grid.of(comparison)
        self.store = Store(folder)
        recipes = [recipe for method in self.grid.methods for _, recipe in self.grid.recipes(method)]
        inputs = Inputs.of(as_place(comparison.shared.catalog, "catalog"), recipes)
        self.results = Results(self.grid, self.store, inputs, {row.key: row for row in known})
        check_known_rows(known, self.grid, inputs, self.results.protocol())
        check_methods(self.grid, accelerator)
        check_folder(self.results)

    def planned(self) -> list[tuple[str, int]]:
        """The method and seed of every cell that there should be."""
        return [(key.method, key.seed) for method in self.grid.methods for key in self.grid.cells(method)]

    def start(self) -> None:
        """Check what there is and note what the cells are trained with; before the first of them.

        Raises:
            UserError: a cell there was trained by another recipe, or a file of weights is missing.
        """
        check_same_settings(self.results)
        check_weights(self.results)
        if PartialState().is_main_process:
            self.store.add_inputs(self.results.inputs)

    def run(self) -> None:
        """Train and judge what is left, cell by cell.

        Raises:
            UserError: a method cannot be trained, or a cell there was trained by another recipe.
        """
        self.start()
        for number, method in enumerate(self.grid.methods, start=1):
            self._run_method(method, f"method {number} of {len(self.grid.methods)}")

    def _run_method(self, method: Method, place: str) -> None:
        for number, key in enumerate(self.grid.trials_of(method)):
            self._run_cell(key, self.grid.trial_recipe(method, number), place)
        chosen = self.results.chosen(method)
        if method.tune and chosen is None:
            if PartialState().is_main_process:
                warn(f"{method.name}: every trial diverged, so it has no cells")
            return
        for key in self.grid.cells(method):
            self._run_cell(key, self.grid.cell_recipe(method, key.seed, chosen), place)

    def _run_cell(self, key: Key, recipe: Recipe, place: str) -> None:
        """Train and judge a cell that is not done; in a process of its own, unless several processes share its work."""
        state = PartialState()
        if self.is_left(key, recipe):
            if state.is_main_process:
                console.print(f"{key} ({place})", style="bold", markup=False, highlight=False)
            train = train_and_judge if state.num_processes > 1 else train_in_process
            train(self.store.cell(key), recipe)
        if state.is_main_process:
            self.tidy(key)

    def is_left(self, key: Key, recipe: Recipe) -> bool:
        """Whether a cell or trial is still to be trained.

        Raises:
            RunError: its run or row is of another recipe or catalog.
        """
        check_cell_settings(self.results, key, recipe)
        return not self.results.is_done(key)

    def tidy(self, key: Key) -> None:
        """Remove what a finished cell or trial no longer needs."""
        cell = self.store.cell(key)
        if key not in self.results.known and cell.finished:
            remove_leftovers(cell)

    def rows(self) -> list[Row]:
        """A row for every known or finished cell and trial, by method.

        Raises:
            RunError: a cell there was trained by another recipe, or rows there would be lost.
        """
        check_same_settings(self.results)
        check_folder(self.results)  # again: another command may have left rows since
        return self.results.rows()
