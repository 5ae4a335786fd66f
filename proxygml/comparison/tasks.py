"""The trials and cells of a comparison as tasks, many at a time: which run, and which follow when one ends.

The cells of a method wait for its trials, and for nothing else. Workers train them: processes of this machine
(side_by_side.py), or those of a Ray cluster (on_ray.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from proxygml.comparison.cell import Cell
from proxygml.comparison.plan import Method
from proxygml.comparison.row import Key
from proxygml.comparison.runner import Runner
from proxygml.console import progress_bar, warn
from proxygml.training.recipe import Recipe


class Workers(Protocol):
    """What trains cells."""

    def start(self, cell: Cell, recipe: Recipe) -> None:
        """Train and judge a cell as soon as there is room for it."""

    def ended(self) -> Key:
        """Wait for one of the cells that were started to end.

        Raises:
            UserError: the error that it ended with.
        """

    def stop(self) -> None:
        """End all that still run."""


def run_tasks(runner: Runner, workers: Workers) -> None:
    """Train and judge all that is left of a comparison, with a progress bar over its trials and cells.

    Raises:
        UserError: a method cannot be trained; the trials and cells that were finished by then are kept.
    """
    with progress_bar() as bar:
        tasks = _Tasks(runner, workers)
        shown = bar.add_task("Trials and cells", total=tasks.total, completed=tasks.total - tasks.num_left, note="")
        for _ in tasks.finished():
            bar.advance(shown)


@dataclass
class _Tasks:
    runner: Runner
    workers: Workers
    running: set[Key] = field(default_factory=set)

    def __post_init__(self) -> None:
        grid = self.runner.grid
        keys = [key for method in grid.methods for key in (*grid.trials_of(method), *grid.cells(method))]
        self.total = len(keys)
        self.num_left = sum(not self.runner.results.is_done(key) for key in keys)

    def finished(self) -> Iterator[Key]:
        """Start every task as soon as it can run, and yield the trials and cells that have ended."""
        with self._stopping():
            for method in self.runner.grid.methods:
                self._follow(method)
            while self.running:
                key = self.workers.ended()
                self.running.remove(key)
                self.runner.tidy(key)
                yield key
                if key.trial is not None:
                    self._follow(next(method for method in self.runner.grid.methods if method.name == key.method))

    def _follow(self, method: Method) -> None:
        """Start the trials of a method that are left; or, where none is left or runs, its cells."""
        grid, results = self.runner.grid, self.runner.results
        if any(key.method == method.name and key.trial is not None for key in self.running):
            return
        trials = grid.trials_of(method)
        if not all(map(results.is_done, trials)):
            for number, key in enumerate(trials):
                self._start(key, grid.trial_recipe(method, number))
            return
        chosen = results.chosen(method)
        if method.tune and chosen is None:
            warn(f"{method.name}: every trial diverged, so it has no cells")
            return
        for key in grid.cells(method):
            self._start(key, grid.cell_recipe(method, key.seed, chosen))

    def _start(self, key: Key, recipe: Recipe) -> None:
        if self.runner.is_left(key, recipe):
            self.workers.start(self.runner.store.cell(key), recipe)
            self.running.add(key)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """End the tasks that still run where the block ends by an error or Ctrl-C."""
        try:
            yield
        except BaseException:
            self.workers.stop()
            raise
