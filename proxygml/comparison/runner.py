"""Running a comparison: each cell is an ordinary run folder; finished cells are skipped, stopped ones continue.

A method's trials come first; its cells are then trained with the settings of the best. Each cell is
evaluated on the test classes once, after its training. Several machines share the work by a fixed division. It needs no
locks: some network file systems do not support them, and a killed machine would leave them behind.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
from proxygml.console import console
from proxygml.errors import RecipeError
from proxygml.training.processes import make_accelerator
from proxygml.training.recipe import Recipe
from proxygml.urls import as_place


class Job(NamedTuple):
    """What one machine does alone: a method, its trials first, with these seeds."""

    method: Method
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Which share of the jobs is done here: part `number` of `count`, counted from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def read(cls, text: str) -> "Part":
        """2/8 -> part 2 of 8.

        Raises:
            RecipeError: the text is no such part.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise RecipeError(f"the part is {text[:30]!r}, but must be like 2/8: the second of eight")
        return cls(int(found[1]), int(found[2]))

    def of_all(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """The jobs of this part: every `count`-th, so that costly neighbours go to different machines."""
        return jobs[self.number - 1 :: self.count]


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
        self._check_folder()

    def _check_folder(self) -> None:
        catalog = self.grid.comparison.shared.catalog
        check_folder(self.store, self.results.inputs, catalog, self.results.known)

    def planned(self) -> list[tuple[str, int]]:
        """The method and seed of every cell that there should be."""
        return [(key.method, key.seed) for method in self.grid.methods for key in self.grid.cells(method)]

    def jobs(self) -> list[Job]:
        """What the parts divide: a cell; or a method whole where its trials come first, so that no part waits.

        Jobs whose rows are known are left out. They are the same for every part.
        """
        seeds = self.grid.comparison.seeds
        jobs = []
        for method in self.grid.methods:
            jobs += [Job(method, seeds)] if method.tune else [Job(method, (seed,)) for seed in seeds]
        return [job for job in jobs if not all(key in self.results.known for key in self._keys(job))]

    def _keys(self, job: Job) -> list[Key]:
        return [*self.grid.trials_of(job.method), *(Key(job.method.name, seed) for seed in job.seeds)]

    def run(self, part: Part) -> None:
        """Train and judge what is left of a part, cell by cell.

        Raises:
            UserError: a method cannot be trained, or a cell there was trained by another recipe.
        """
        check_same_settings(self.results)
        check_weights(self.results)
        if PartialState().is_main_process:
            self.store.add_inputs(self.results.inputs)
        jobs = part.of_all(self.jobs())
        for number, job in enumerate(jobs, start=1):
            self._run_job(job, f"{number} of {len(jobs)}")

    def _run_job(self, job: Job, place: str) -> None:
        method = job.method
        for number, key in enumerate(self.grid.trials_of(method)):
            self._run_cell(key, self.grid.trial_recipe(method, number), place)
        chosen = self.results.chosen(method)
        if method.tune and chosen is None:
            console.print(f"{method.name}: every trial diverged, so it has no cells", style="yellow", markup=False)
            return
        for seed in job.seeds:
            self._run_cell(Key(method.name, seed), self.grid.cell_recipe(method, seed, chosen), place)

    def _run_cell(self, key: Key, recipe: Recipe, place: str) -> None:
        """Train and judge a cell that is not done; in a process of its own, unless several processes share its work."""
        check_cell_settings(self.results, key, recipe)
        if key in self.results.known:
            return
        cell, state = self.store.cell(key), PartialState()
        if not cell.finished:
            if state.is_main_process:
                console.print(f"{key} ({place})", style="bold", markup=False, highlight=False)
            train = train_and_judge if state.num_processes > 1 else train_in_process
            train(cell, recipe)
        if cell.finished and state.is_main_process:
            remove_leftovers(cell)

    def rows(self) -> list[Row]:
        """A row for every known or finished cell and trial, by method.

        Raises:
            RunError: a cell there was trained by another recipe, or rows there would be lost.
        """
        check_same_settings(self.results)
        self._check_folder()  # again: another part may have left rows since
        return self.results.rows()
