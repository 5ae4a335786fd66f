"""The cells of a comparison as tasks of Ray, each with the processors and GPUs that it takes.

The cells of a method wait for its trials, and for nothing else. A cell whose process or machine was lost runs again,
elsewhere if need be, from its last checkpoint: its run folder is where every machine can reach it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from proxygml.comparison.cell import Cell, train_and_judge
from proxygml.comparison.plan import Method
from proxygml.comparison.process import sendable
from proxygml.comparison.row import Key
from proxygml.comparison.runner import Runner
from proxygml.console import console, progress_bar
from proxygml.errors import RunError, UserError
from proxygml.ray_parts import MOST_TRIES
from proxygml.ray_session import largest, ray_session
from proxygml.training.recipe import Recipe


@dataclass(frozen=True)
class RayOptions:
    """Where the cells run, and what each takes of its machine.

    Attributes:
        address: of the cluster; see ray_session.
        cpus: processors of each cell; None for as many as its recipe has workers, and at least one. PyTorch computes
            with as many threads.
        gpus: of each cell, such as 0.5 where two share one; None for one where the cluster has some.
    """

    address: str
    cpus: int | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise UserError(f"--ray_cpus is {self.cpus}, but must be 1 or more")
        if self.gpus is not None and not (0 <= self.gpus < 1 or self.gpus == int(self.gpus)):
            raise UserError(f"--ray_gpus is {self.gpus}, but must be a share of one GPU, or a whole number of them")


def run_on_ray(runner: Runner, options: RayOptions) -> None:
    """Train and judge all that is left of a comparison, with a progress bar over its trials and cells.

    Raises:
        UserError: a method cannot be trained, Ray is not there, or no machine has what a cell takes; the trials and
            cells that were finished by then are kept.
    """
    runner.start()
    with ray_session(options.address) as ray, progress_bar() as bar:
        work = _Tasks(runner, ray, options)
        shown = bar.add_task("trials and cells", total=work.total, completed=work.total - len(work.left), note="")
        for _ in work.finished():
            bar.advance(shown)


@dataclass
class _Tasks:
    """The tasks of a comparison: which run, and which follow when one ends."""

    runner: Runner
    ray: Any
    options: RayOptions
    running: dict[Any, Key] = field(default_factory=dict)

    def __post_init__(self) -> None:
        grid = self.runner.grid
        keys = [key for method in grid.methods for key in (*grid.trials_of(method), *grid.cells(method))]
        self.total = len(keys)
        self.left = [key for key in keys if not self.runner.results.is_done(key)]
        self._most = {kind: largest(self.ray, kind) for kind in ("CPU", "GPU")}
        # A process of its own for each cell: the peak of its memory is the cell's alone.
        self._train = self.ray.remote(max_calls=1, max_retries=MOST_TRIES - 1)(_train_cell)

    def finished(self) -> Iterator[Key]:
        """Start every task as soon as it can run, and yield the trials and cells that have ended."""
        with self._stopping():
            for method in self.runner.grid.methods:
                self._follow(method)
            while self.running:
                (ended, *_), _ = self.ray.wait(list(self.running))
                key = self.running.pop(ended)
                self._check(ended, key)
                self.runner.tidy(key)
                yield key
                if key.trial is not None:
                    self._follow(next(method for method in self.runner.grid.methods if method.name == key.method))

    def _follow(self, method: Method) -> None:
        """Start the trials of a method that are left; or, where none is left or runs, its cells."""
        grid, results = self.runner.grid, self.runner.results
        if any(key.method == method.name and key.trial is not None for key in self.running.values()):
            return
        trials = grid.trials_of(method)
        if not all(map(results.is_done, trials)):
            for number, key in enumerate(trials):
                self._start(key, grid.trial_recipe(method, number))
            return
        chosen = results.chosen(method)
        if method.tune and chosen is None:
            console.print(f"{method.name}: every trial diverged, so it has no cells", style="yellow", markup=False)
            return
        for key in grid.cells(method):
            self._start(key, grid.cell_recipe(method, key.seed, chosen))

    def _start(self, key: Key, recipe: Recipe) -> None:
        if self.runner.is_left(key, recipe):
            task = self._train.options(**self._resources(recipe), name=str(key))
            self.running[task.remote(self.runner.store.cell(key), recipe)] = key

    def _resources(self, recipe: Recipe) -> dict[str, float]:
        """What a cell takes, which one machine of the cluster must have: a task for none would wait for ever."""
        cpus = self.options.cpus or max(1, min(recipe.workers, int(self._most["CPU"])))
        gpus = self.options.gpus if self.options.gpus is not None else min(1, self._most["GPU"])
        for option, given, most in (("cpus", cpus, self._most["CPU"]), ("gpus", gpus, self._most["GPU"])):
            if given > most:
                raise UserError(f"--ray_{option} is {given:g}, but no machine of the cluster has more than {most:g}")
        return {"num_cpus": cpus, "num_gpus": gpus}

    def _check(self, ended: Any, key: Key) -> None:
        """Raise the error that a task has ended with."""
        try:
            error = self.ray.get(ended)
        except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.OutOfMemoryError) as lost:
            raise RunError(
                f"the process that trained {key} was stopped {MOST_TRIES} times, perhaps because memory ran out: "
                "give each cell more processors with --ray_cpus, so that fewer share a machine; the same command "
                "continues it"
            ) from lost
        if error is not None:
            raise error

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """End the tasks that still run when the block ends, such as by an error or Ctrl-C."""
        try:
            yield
        finally:
            for task in self.running:
                self.ray.cancel(task, force=True)


def _train_cell(cell: Cell, recipe: Recipe) -> UserError | OSError | None:
    """What a task does: train and judge a cell, and return an error that is the user's to fix."""
    try:
        train_and_judge(cell, recipe)
    except (UserError, OSError) as error:
        return sendable(error)
    return None
