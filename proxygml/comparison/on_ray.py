"""The cells of a comparison as tasks of Ray, each with the processors and GPUs that it takes.

A cell whose process or machine was lost runs again, elsewhere if need be, from its last checkpoint: its run folder is
where every machine can reach it.
"""

from dataclasses import dataclass
from typing import Any

from proxygml.comparison.cell import Cell, train_and_judge
from proxygml.comparison.process import sendable
from proxygml.comparison.row import Key
from proxygml.comparison.runner import Runner
from proxygml.comparison.tasks import run_tasks
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
    with ray_session(options.address) as ray:
        run_tasks(runner, _RayWorkers(ray, options))


class _RayWorkers:
    """The processes of a Ray cluster; see tasks.Workers."""

    def __init__(self, ray: Any, options: RayOptions) -> None:
        self._ray = ray
        self._options = options
        self._running: dict[Any, Key] = {}
        self._most = {kind: largest(ray, kind) for kind in ("CPU", "GPU")}
        # A process of its own for each cell: the peak of its memory is the cell's alone.
        self._train = ray.remote(max_calls=1, max_retries=MOST_TRIES - 1)(_train_cell)

    def start(self, cell: Cell, recipe: Recipe) -> None:
        task = self._train.options(**self._resources(recipe), name=str(cell.key))
        self._running[task.remote(cell, recipe)] = cell.key

    def ended(self) -> Key:
        (task, *_), _ = self._ray.wait(list(self._running))
        key = self._running.pop(task)
        try:
            error = self._ray.get(task)
        except (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.OutOfMemoryError) as lost:
            raise RunError(
                f"the process that trained {key} was stopped {MOST_TRIES} times, perhaps because memory ran out: "
                "give each cell more processors with --ray_cpus, so that fewer share a machine; the same command "
                "continues it"
            ) from lost
        if error is not None:
            raise error
        return key

    def stop(self) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)

    def _resources(self, recipe: Recipe) -> dict[str, float]:
        """What a cell takes, which one machine of the cluster must have: a task for none would wait for ever."""
        cpus = self._options.cpus or max(1, min(recipe.workers, int(self._most["CPU"])))
        gpus = self._options.gpus if self._options.gpus is not None else min(1, self._most["GPU"])
        for option, given, most in (("cpus", cpus, self._most["CPU"]), ("gpus", gpus, self._most["GPU"])):
            if given > most:
                raise UserError(f"--ray_{option} is {given:g}, but no machine of the cluster has more than {most:g}")
        return {"num_cpus": cpus, "num_gpus": gpus}


def _train_cell(cell: Cell, recipe: Recipe) -> UserError | OSError | None:
    """What a task does: train and judge a cell, and return an error that is the user's to fix."""
    try:
        train_and_judge(cell, recipe)
    except (UserError, OSError) as error:
        return sendable(error)
    return None
