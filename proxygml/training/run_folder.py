"""The run folder: the place of every file of a run."""

from dataclasses import dataclass
from pathlib import Path

from proxygml.errors import OverwriteError, RunError
from proxygml.training.recipe import Recipe


@dataclass(frozen=True)
class RunFolder:
    """A run and its files. trainer.py writes all of them but evaluation.json and the report (evaluate_run.py)."""

    path: Path

    @property
    def recipe(self) -> Path:
        """recipe.yaml, every key as resolved."""
        return self.path / "recipe.yaml"

    @property
    def checkpoint(self) -> Path:
        """All that training needs to go on after its last finished epoch."""
        return self.path / "checkpoints" / "last.ckpt"

    def best(self, epoch: int) -> Path:
        """The folder of the model of an epoch that was the best so far on the validation classes."""
        return self.path / "checkpoints" / f"best-{epoch:04d}"

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
        """evaluation.json, the figures and the protocol that gave them."""
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        """report.html; its pictures are in figures/ too."""
        return self.path / "report.html"

    def check_first_start(self) -> None:
        """Raise OverwriteError when a run is there already."""
        if self.recipe.exists():
            raise OverwriteError(
                f"{self.path} holds a run already: continue it with --resume {self.path}, or choose another --run"
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
            raise RunError(f"{self.path} is no run folder: it holds no recipe.yaml")
        return Recipe.read(self.recipe)
