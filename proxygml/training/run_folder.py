"""The run folder: the place of every file of a run."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from proxygml.errors import OverwriteError, RunError
from proxygml.files import exclusive_lock
from proxygml.training.recipe import Recipe
from proxygml.urls import Place, Url, absolute


@dataclass(frozen=True)
class EvaluationFolder:
    """Where an evaluation is written."""

    path: Path

    @property
    def figures(self) -> Path:
        """evaluation.json, the figures and the protocol that gave them."""
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        """report.html; its pictures are in figures/ too."""
        return self.path / "report.html"

    def is_free_for(self, catalog: Place) -> bool:
        """Whether nothing is here, or an earlier evaluation on the same catalog."""
        if not self.figures.exists():
            return True
        try:
            content = json.loads(self.figures.read_text(encoding="utf-8"))
            return absolute(content["protocol"]["catalog"]) == absolute(catalog)
        except (OSError, ValueError, KeyError, TypeError):
            return False


@dataclass(frozen=True)
class RunFolder:
    """A run and its files. trainer.py writes all of them but evaluation.json and the report (evaluate_run.py)."""

    path: Path
    url: Url | None = None
    """Where the run belongs, if `path` is only where it is worked on; see remote_run.py."""

    def shown(self, path: Path) -> str:
        """What a user calls the run folder, or a file in it."""
        if self.url is None:
            return str(path)
        return str(self.url / path.relative_to(self.path).as_posix())

    @property
    def recipe(self) -> Path:
        """recipe.yaml, every key as resolved."""
        return self.path / "recipe.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, and of the best model so far."""
        return self.path / "checkpoints"

    @property
    def checkpoint(self) -> Path | None:
        """The folder of all that training needs to go on after its last finished epoch; None before the first ends."""
        found = {
            int(name[1]): path
            for path in (self.checkpoints.iterdir() if self.checkpoints.is_dir() else ())
            if (name := re.fullmatch(r"epoch-(\d{4,18})", path.name))
        }
        return found[max(found)] if found else None

    def best(self, epoch: int) -> Path:
        """The folder of the model of an epoch that was the best so far on the validation classes."""
        return self.checkpoints / f"best-{epoch:04d}"

    @property
    def model(self) -> Path:
        """model.safetensors; beside it model.json. Written when training has finished."""
        return self.path / "model.safetensors"

    @property
    def metrics(self) -> Path:
        """metrics.csv, one row per epoch."""
        return self.path / "metrics.csv"

    @property
    def proxies(self) -> Path:
        """proxies.csv: how often each proxy was kept as a hard negative in the last epoch."""
        return self.path / "proxies.csv"

    @property
    def evaluation(self) -> Path:
        """evaluation.json of the run's own catalog."""
        return EvaluationFolder(self.path).figures

    @property
    def report(self) -> Path:
        """report.html of the run's own catalog."""
        return EvaluationFolder(self.path).report

    def evaluation_on(self, catalog: Place | None) -> EvaluationFolder:
        """The place of an evaluation: the run folder for the run's own catalog, evaluations/NAME/ for any other.

        NAME is the catalog's; where another catalog of that name was evaluated before, NAME-2, and so on.
        """
        if catalog is None or absolute(catalog) == absolute(self.read_recipe().catalog):
            return EvaluationFolder(self.path)
        names = (catalog.stem if number == 1 else f"{catalog.stem}-{number}" for number in count(1))
        places = (EvaluationFolder(self.path / "evaluations" / name) for name in names)
        return next(place for place in places if place.is_free_for(catalog))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that writes the run; a folder in which no run was started is removed again.

        Raises:
            OverwriteError: another process is writing the run; the message names it.
        """
        lock = self.path / ".lock"
        try:
            with exclusive_lock(lock):
                try:
                    yield
                finally:
                    if not self.recipe.exists():
                        lock.unlink(missing_ok=True)
        finally:
            if not self.recipe.exists():
                with suppress(OSError):  # something else is in the folder, or it is another process's
                    self.path.rmdir()

    def check_first_start(self) -> None:
        """Raise OverwriteError when a run is there already, or a checkpoint that a new one would go on from."""
        if self.recipe.exists():
            name = self.shown(self.path)
            raise OverwriteError(
                f"{name} holds a run already: continue it with --resume {name}, or choose another --run"
            )
        if self.checkpoint is not None:
            raise OverwriteError(
                f"{self.path} holds the checkpoint of a run whose recipe.yaml is gone: put that back and continue the "
                "run, or choose another --run"
            )

    def start(self, recipe: Recipe) -> None:
        """Make the folder and write the recipe."""
        self.path.mkdir(parents=True, exist_ok=True)
        recipe.write(self.recipe)

    def read_recipe(self) -> Recipe:
        """The recipe of the run.

        Raises:
            RunError: this is no run folder.
        """
        if not self.recipe.is_file():
            found = "it holds no recipe.yaml" if self.path.is_dir() else "there is no such folder"
            raise RunError(f"{self.path} is no run folder: {found}")
        return Recipe.read(self.recipe)
