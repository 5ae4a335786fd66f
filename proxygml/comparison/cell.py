"""A cell: one training run of a comparison, how it is trained and evaluated, and the files in its run folder.

cost.json is written after training; if the loss became NaN or infinite, diverged.txt is written instead.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from statistics import median
from typing import Annotated

import pandas as pd
import torch
from accelerate import PartialState
from pydantic import Field

from proxygml.comparison.row import METRICS, MOST_SHARE, Cost, Key
from proxygml.console import warn
from proxygml.errors import DivergedError, RunError
from proxygml.files import atomic_write, check_size
from proxygml.training.checkpoint import loss_parameters
from proxygml.training.evaluate_run import evaluate_run
from proxygml.training.history import read_history, trained_epochs
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import fit, resume
from proxygml.typed_json import read_typed_json

MIB = 2**20

LARGEST_FILE = 2**26
"""Bytes of cost.json, evaluation.json or diverged.txt."""


@dataclass(frozen=True)
class Cell:
    """A cell, or a trial, and its run folder."""

    key: Key
    run: RunFolder

    @property
    def is_trial(self) -> bool:
        return self.key.trial is not None

    @property
    def cost_file(self) -> Path:
        return self.run.path / "cost.json"

    @property
    def diverged_file(self) -> Path:
        """Why there is no model: the message of a training whose loss became no number."""
        return self.run.path / "diverged.txt"

    @property
    def diverged(self) -> bool:
        return self.diverged_file.exists()

    @property
    def finished(self) -> bool:
        judged = self.is_trial or self.run.evaluation.exists()
        return self.diverged or (judged and self.cost_file.exists())

    def history(self) -> pd.DataFrame:
        """metrics.csv, a row per epoch; empty where nothing was trained."""
        return read_history(self.run.metrics, ("val_map_at_r",) if self.is_trial else ())

    def cost(self) -> Cost:
        """What it took to train it."""
        return read_typed_json(
            self.cost_file, Cost, most=LARGEST_FILE, error=RunError, advice="remove the run, and it is trained again"
        )

    def metrics(self) -> dict[str, float]:
        """The values of evaluation.json, in 0..1."""
        found = self._evaluation()
        values = {f"recall_at_{k}": figure.value for k, figure in found.recall.items()}
        figures = {name: getattr(found, name) for name in METRICS}
        return values | {name: figure.value for name, figure in figures.items() if figure is not None}

    def protocol(self) -> "Protocol":
        """What it was evaluated on, as evaluation.json says."""
        return self._evaluation().protocol

    def _evaluation(self) -> "_EvaluationFile":
        advice = f"evaluate the run again: proxygml evaluate {quote(str(self.run.path))}"
        return read_typed_json(self.run.evaluation, _EvaluationFile, most=LARGEST_FILE, error=RunError, advice=advice)

    def note(self) -> str:
        """Why it diverged, in short."""
        check_size(self.diverged_file, LARGEST_FILE, RunError)
        return self.diverged_file.read_text(encoding="utf-8", errors="replace").partition(";")[0]


@dataclass(frozen=True)
class Protocol:
    """The part of an evaluation's protocol that says what the figures are of."""

    catalog: str
    catalog_fingerprint: str | None = None


@dataclass(frozen=True)
class _Figure:
    value: Annotated[float, Field(ge=0, le=MOST_SHARE)]


@dataclass(frozen=True)
class _EvaluationFile:
    """The part of evaluation.json that goes into a row."""

    recall: Mapping[Annotated[int, Field(ge=1)], _Figure]
    map_at_r: _Figure
    r_precision: _Figure
    nmi: _Figure | None
    protocol: Protocol


def train_and_judge(cell: Cell, recipe: Recipe) -> None:
    """Train a cell, from where it stopped; then judge it on the test classes, unless it is a trial.

    Every process of a run calls it. A cell that diverges is one that has been trained.
    """
    state = PartialState()
    if state.is_main_process and cell.run.recipe.exists():
        recipe.write(cell.run.recipe)  # workers, tracker and the folders of data may have changed since
    trained = cell.cost_file.exists() or _train(cell, recipe)
    if trained and not cell.is_trial:
        evaluate_run(cell.run, report=False)
    state.wait_for_everyone()


def remove_leftovers(cell: Cell) -> None:
    """Remove what a finished cell no longer needs: its checkpoints, and a trial's model.

    Those of hundreds of cells would fill a disk.
    """
    shutil.rmtree(cell.run.checkpoints, ignore_errors=True)
    if cell.is_trial:
        cell.run.model.unlink(missing_ok=True)


def _train(cell: Cell, recipe: Recipe) -> bool:
    """Train a cell and note what it took; False where it diverged."""
    _reset_peak_memory()
    started, state = cell.run.recipe.exists(), PartialState()
    state.wait_for_everyone()  # before one of several processes writes what another looks for
    try:
        if started:
            resume(cell.run)
        else:
            fit(recipe, cell.run)
    except DivergedError as error:
        # A setting that is too bold is a result of its method; the cells after it are trained all the same.
        if state.is_main_process:
            warn(str(error))
            _write(cell.diverged_file, str(error))
        return False
    if state.is_main_process:
        _write(cell.cost_file, json.dumps(asdict(_cost(cell)), indent=2) + "\n")
    return True


def _cost(cell: Cell) -> Cost:
    on_gpu = torch.cuda.is_available()
    history = trained_epochs(cell.history())
    checkpoint = cell.run.checkpoint
    return Cost(
        seconds_per_epoch=round(median(history["seconds"] if len(history) else [0.0]), 3),
        peak_memory_mib=_peak_memory(),
        gpu_memory_mib=round(torch.cuda.max_memory_allocated() / MIB, 1) if on_gpu else None,
        device=torch.cuda.get_device_name() if on_gpu else "CPU",
        loss_parameters=0 if checkpoint is None else loss_parameters(checkpoint),
    )


def _reset_peak_memory() -> None:
    """Start measuring anew, where the system can: on Linux, and on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> float | None:
    """MiB of main memory that this process has held at its peak; None where the system does not say (not Linux)."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return round(int(found[1]) / 1024, 1) if found else None
    return None


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
