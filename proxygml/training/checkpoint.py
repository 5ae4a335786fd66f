"""Checkpoints: everything that training needs to go on after its last finished epoch, and how it is read back.

How the files are written and read is in checkpoint_storage.py.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from proxygml.data.catalog import Catalog
from proxygml.data.catalog.fingerprints import csv_parts
from proxygml.data.catalog.vectors import sample_of
from proxygml.data.columns import BOX_COLUMNS, EMBEDDING_ROW
from proxygml.errors import RunError, counted
from proxygml.files import atomic_write, check_ending, check_overwrite, remove_folder
from proxygml.loss.lazy_adam import LazyAdam
from proxygml.loss.proxygml_loss import ProxyGMLLoss
from proxygml.training.checkpoint_storage import (
    Index,
    LocalRows,
    Stored,
    load,
    read_index,
    read_rows,
    save,
)
from proxygml.training.run_folder import RunFolder
from proxygml.training.tensor_file import Source, row_blocks, write_tensor_file

PROXIES = "criterion.proxies"
"""The name of ProxyGMLLoss's proxies in a checkpoint."""

ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}
LAZY_ADAM_STATE = ADAM_STATE | {"decay", "decayed"}
"""What the optimisers keep of a parameter that they have updated."""

EpochMetrics = dict[str, float]
"""A row of metrics.csv: what one epoch gave."""


@dataclass
class Progress:
    """The progress of a run: the part of a checkpoint that is not tensors."""

    epoch: int = 0
    history: list[EpochMetrics] = field(default_factory=list)
    steps: int = 0
    best_epoch: int = 0
    """The epoch whose model is kept; 0: the start, where it was judged, or else the last one."""
    start: EpochMetrics = field(default_factory=dict)
    """The figures on validation classes before the first step; empty where the start was not judged."""
    collapse_named: bool = False

    @property
    def epochs(self) -> list[EpochMetrics]:
        """The rows of metrics.csv: the start, where it was judged, then each epoch."""
        return [self.start, *self.history] if self.start else self.history

    def check(self) -> None:
        """Raise TypeError or ValueError where a value cannot be what training left."""
        for name in ("epoch", "steps", "best_epoch"):
            if type(getattr(self, name)) is not int:
                raise TypeError(f"progress.{name} is {getattr(self, name)!r}, but must be a whole number")
        if not (0 <= self.best_epoch <= self.epoch == len(self.history) and self.steps >= 0):
            raise ValueError(f"it is of epoch {self.epoch} and of {counted(len(self.history), 'row')} of metrics")
        for row in [*self.history, self.start]:
            if not isinstance(row, dict) or not all(isinstance(value, (int, float)) for value in row.values()):
                raise TypeError("progress.history must be rows of numbers")


def training_data_fingerprint(images: Catalog, takes_vectors: bool) -> str:
    """What identifies the training images, or vectors, and their labels, in words that a message can show."""
    own = ["path"] if images.has_images else [EMBEDDING_ROW]
    columns = [*own, "label", *(column for column in BOX_COLUMNS if column in images.table)]
    digest = hashlib.sha256()
    for text in csv_parts(images.table[columns]):
        digest.update(text)
    if takes_vectors:
        digest.update(sample_of(images.vector_source, images.vector_rows))
    item = "vector" if takes_vectors else "image"
    count, classes = counted(len(images), f"training {item}"), counted(len(images.classes), "class")
    return f"{count} of {classes} ({digest.hexdigest()[:12]})"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run: what is saved to them and restored from them.

    Each process holds, saves and restores its own classes' proxies and their moments; all else is the same on each. So
    any number of processes can go on from what any other number saved.

    Args:
        folder: the folder of all checkpoints of the run.
        accelerator: whose loss scaler is kept too.
        embedder, criterion, optimizers: what learns; restored in place.
        catalog: the table of the training images, for messages.
        data: the fingerprint of the training images.
    """

    folder: Path
    accelerator: Accelerator
    embedder: nn.Module
    criterion: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    catalog: str
    data: str

    def save(self, progress: Progress) -> None:
        """Write a checkpoint, whole or not at all, then remove those before it. All processes call this together."""
        scaler, folder = self.accelerator.scaler, self.folder / f"epoch-{progress.epoch:04d}"
        state = list(self._optimizer_state())
        values = {
            "progress": asdict(progress),
            "data": self.data,
            "classes": self._classes(),
            "optimizers": {name: value for name, _, value in state if not isinstance(value, Tensor)},
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        tensors = self._model()
        for name, parameter, value in state:
            if isinstance(value, Tensor):
                tensors[name] = self._rows(parameter, value)
        save(folder, tensors, values)
        if self.accelerator.is_main_process:
            for path in [*self.folder.glob("epoch-*"), *self.folder.glob(".epoch-*.tmp")]:
                if path != folder:
                    remove_folder(path)

    def restore(self, folder: Path) -> Progress:
        """Go back to where a checkpoint was saved. All processes call this together.

        Raises:
            RunError: the checkpoint cannot be read, or the training images are not those that it was made with.
        """
        index = read_index(folder)
        self._check_data(folder, index.values.get("data"))
        try:
            return self._restore(folder, index)
        except RunError:
            raise
        except (AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(
                f"{folder} cannot be read, or is not of the recipe beside it ({error}): put the recipe back, or "
                "start another run"
            ) from error

    def _check_data(self, folder: Path, data: object) -> None:
        """Raise RunError where the checkpoint is of other training images."""
        if data != self.data:
            raise RunError(
                f"{self.catalog} has {self.data}, but {folder} comes from training on {data}: "
                "put the old catalog back, or start another run"
            )

    def _restore(self, folder: Path, index: Index) -> Progress:
        progress = Progress(**index.values["progress"])
        progress.check()
        if index.values["classes"] != self._classes():
            raise ValueError(f"it has [classes, proxies of each] {index.values['classes']}, not {self._classes()}")
        tensors, states = self._model(), _states(index, self.optimizers)
        parameters = [_parameters(optimizer) for optimizer in self.optimizers]
        for name, stored in index.tensors.items():
            if name.startswith("optimizers."):
                number, place, key = _split(name)
                parameter = parameters[number][place]
                blank = torch.zeros(_local_shape(stored, parameter), dtype=stored.dtype, device=parameter.device)
                tensors[name] = self._rows(parameter, blank)
                states[number][place][key] = blank
        _check_names(index.tensors, tensors)
        load(folder, index, tensors)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            _check_state(optimizer, state)
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(index.values["scaler"])
        return progress

    def _model(self) -> dict[str, LocalRows]:
        """The tensors of network and loss, which share memory with them."""
        tensors = {f"embedder.{name}": LocalRows(tensor) for name, tensor in self.embedder.state_dict().items()}
        if isinstance(self.criterion, ProxyGMLLoss):
            return tensors | {PROXIES: self._rows(self.criterion.proxies, self.criterion.proxies.detach())}
        return tensors | {
            f"criterion.{name}": LocalRows(tensor) for name, tensor in self.criterion.state_dict().items()
        }

    def _classes(self) -> list[int] | None:
        """What the rows of the proxies stand for: how many classes, and how many proxies of each."""
        loss = self.criterion
        return [loss.num_classes, loss.proxies_per_class] if isinstance(loss, ProxyGMLLoss) else None

    def _rows(self, parameter: Tensor, tensor: Tensor) -> LocalRows:
        """What this process holds of a tensor that has the rows of a parameter, or no dimension."""
        loss = self.criterion
        if isinstance(loss, ProxyGMLLoss) and parameter is loss.proxies and tensor.dim():
            per_class = loss.proxies_per_class
            return LocalRows(tensor, loss.owned_classes.start * per_class, loss.num_classes * per_class)
        return LocalRows(tensor)

    def _optimizer_state(self) -> Iterator[tuple[str, Tensor, Tensor | float]]:
        """All that the optimisers keep: by which name (numbers of optimiser and parameter, key), of which parameter."""
        for number, optimizer in enumerate(self.optimizers):
            for place, parameter in enumerate(_parameters(optimizer)):
                for key, value in optimizer.state.get(parameter, {}).items():
                    yield f"optimizers.{number}.{place}.{key}", parameter, value


def export_proxies(run_folder: Path, path: Path, force: bool = False) -> tuple[int, int]:
    """Write all proxies of a run's last checkpoint to one `.safetensors` file, a piece at a time: in little memory.

    Args:
        run_folder: of a run with ProxyGMLLoss; trained by one process or by several.
        path: the file to write, ending in .safetensors. It holds one tensor, `proxies`, (C*N, D), class-major.
        force: replace a file that is there.

    Returns:
        Its shape.

    Raises:
        OverwriteError: the file is there already, and `force` is False.
        RunError: the folder has no checkpoint, or that one no proxies.
        UserError: the path does not end in .safetensors.
    """
    check_ending(path, ".safetensors")
    check_overwrite(path, force)
    folder = RunFolder(run_folder).checkpoint
    if folder is None:
        raise RunError(f"{run_folder} has no checkpoint, which the proxies would be read from: train it for an epoch")
    index = read_index(folder)
    if PROXIES not in index.tensors:
        raise RunError(f"{folder} holds no proxies: its loss is not ProxyGMLLoss")
    stored = index.tensors[PROXIES]
    pieces = (
        read_rows(folder, PROXIES, stored, part, rows)
        for part in stored.parts
        for rows in row_blocks(stored.chunk(part).sizes, stored.dtype)
    )
    with atomic_write(path) as temporary:
        write_tensor_file(temporary, {"proxies": Source(stored.dtype, tuple(stored.shape), pieces)})
    count, size = stored.shape
    return count, size


def loss_parameters(folder: Path) -> int:
    """How many numbers the loss of a checkpoint holds."""
    tensors = read_index(folder).tensors
    # Not what a loss keeps beside its parameters, such as the numbers that a state must agree with.
    learned = [name for name in tensors if name.startswith("criterion.") and not name.endswith("_extra_state")]
    return sum(tensors[name].shape.numel() for name in learned)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _split(name: str) -> tuple[int, int, str]:
    """The number of an optimiser, that of its parameter, and the key of what it keeps."""
    _, number, place, key = name.split(".")
    return int(number), int(place), key


def _states(index: Index, optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[int, dict[str, Any]]]:
    """For each optimiser, for each parameter of which a checkpoint holds something, the values that are no tensors."""
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    for name in index.tensors:
        if name.startswith("optimizers."):
            number, place, _ = _split(name)
            states[number].setdefault(place, {})
    for name, value in index.values["optimizers"].items():
        number, place, key = _split(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise TypeError(f"{name} is {value!r}, but must be a number")
        states[number][place][key] = value
    return states


def _local_shape(stored: Stored, parameter: Tensor) -> torch.Size:
    """The shape of what this process holds of a tensor with the rows of a parameter, or with no dimension."""
    if not stored.shape:
        return stored.shape
    if stored.shape[1:] not in (parameter.shape[1:], torch.Size(())):
        raise ValueError(f"an optimiser's rows are {tuple(stored.shape[1:])}, not {tuple(parameter.shape[1:])}")
    return torch.Size((*parameter.shape[:1], *stored.shape[1:]))


def _check_names(stored: dict[str, Stored], expected: dict[str, LocalRows]) -> None:
    """Raise ValueError where a checkpoint has other tensors than expected, or one of another shape or type."""
    for name in stored.keys() ^ expected.keys():
        raise ValueError(f"{name} is {'not expected' if name in stored else 'missing'}")
    for name, rows in expected.items():
        found, wanted = stored[name], (rows.shape, rows.tensor.dtype)
        if (found.shape, found.dtype) != wanted:
            raise ValueError(f"{name} is {found.dtype} of shape {tuple(found.shape)}, not {wanted[1]}, {wanted[0]}")


def _check_state(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]]) -> None:
    """Raise ValueError where an optimiser could not go on from a state."""
    lazy = isinstance(getattr(optimizer, "optimizer", optimizer), LazyAdam)
    expected = LAZY_ADAM_STATE if lazy else ADAM_STATE
    for place, kept in state.items():
        if kept.keys() != expected:
            raise ValueError(f"of parameter {place} an optimiser kept {sorted(kept)}, not {sorted(expected)}")
