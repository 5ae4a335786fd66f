"""Checkpoints: everything that training needs to go on after its last finished epoch, and how it is read back."""

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from proxygml.data.catalog import Catalog
from proxygml.data.columns import BOX_COLUMNS, EMBEDDING_ROW
from proxygml.errors import RunError
from proxygml.files import atomic_write, check_size

LARGEST_SHARE = 8
"""A checkpoint may be so many times as large as network and loss: optimisers keep two numbers for each of theirs."""

ROOM = 256 * 2**20
"""Bytes that a checkpoint may have beside that."""

EpochMetrics = dict[str, float]
"""A row of metrics.csv: what one epoch gave."""


@dataclass
class Progress:
    """The progress of a run: the part of a checkpoint that is not tensors."""

    epoch: int = 0
    history: list[EpochMetrics] = field(default_factory=list)
    steps: int = 0
    best_epoch: int = 0
    collapse_named: bool = False

    def check(self) -> None:
        """Raise TypeError or ValueError where a value cannot be what training left."""
        for name in ("epoch", "steps", "best_epoch"):
            if type(getattr(self, name)) is not int:
                raise TypeError(f"progress.{name} is {getattr(self, name)!r}, but must be a whole number")
        if not (0 <= self.best_epoch <= self.epoch == len(self.history) and self.steps >= 0):
            raise ValueError(f"it is of epoch {self.epoch} and of {len(self.history)} rows of metrics")
        for row in self.history:
            if not isinstance(row, dict) or not all(isinstance(value, (int, float)) for value in row.values()):
                raise TypeError("progress.history must be rows of numbers")


def training_data_fingerprint(images: Catalog) -> str:
    """What identifies the training images and their labels, in words that a message can show."""
    own = ["path"] if images.has_images else [EMBEDDING_ROW]
    columns = [*own, "label", *(column for column in BOX_COLUMNS if column in images.table)]
    digest = hashlib.sha256(images.table[columns].to_csv(index=False).encode()).hexdigest()[:12]
    items = "images" if images.has_images else "vectors"
    return f"{len(images)} training {items} of {len(images.classes)} classes ({digest})"


@dataclass(frozen=True)
class CheckpointFile:
    """The checkpoint of a run, and what is saved to it and restored from it.

    Args:
        path: the file.
        accelerator: whose loss scaler is kept too.
        embedder, criterion, optimizers: what learns; restored in place.
        catalog: the table of the training images, for messages.
        data: the fingerprint of the training images.
    """

    path: Path
    accelerator: Accelerator
    embedder: nn.Module
    criterion: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    catalog: str
    data: str

    def save(self, progress: Progress) -> None:
        """Write the checkpoint, whole or not at all."""
        scaler = self.accelerator.scaler
        with atomic_write(self.path) as temporary:
            torch.save(
                {
                    "progress": asdict(progress),
                    "data": self.data,
                    "embedder": self.embedder.state_dict(),
                    "criterion": self.criterion.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                    "scaler": None if scaler is None else scaler.state_dict(),
                },
                temporary,
            )

    def restore(self) -> Progress:
        """Go back to the last finished epoch.

        Raises:
            RunError: the checkpoint cannot be read, or the training images are not those that it was made with.
        """
        check_size(self.path, LARGEST_SHARE * self._bytes() + ROOM, RunError)
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            return self._restore(state)
        except RunError:
            raise
        except (
            AttributeError,
            EOFError,
            IndexError,
            KeyError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
            pickle.UnpicklingError,
        ) as error:
            raise RunError(
                f"{self.path} cannot be read, or is not of the recipe beside it ({error}): put the recipe back, or "
                "start another run"
            ) from error

    def _restore(self, state: dict[str, Any]) -> Progress:
        if state["data"] != self.data:
            raise RunError(
                f"{self.catalog} has {self.data}, but {self.path} comes from training on {state['data']}: "
                "put the old catalog back, or start another run"
            )
        self.embedder.load_state_dict(state["embedder"])
        self.criterion.load_state_dict(state["criterion"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        progress = Progress(**state["progress"])
        progress.check()
        return progress

    def _bytes(self) -> int:
        """What network and loss take."""
        tensors = [*self.embedder.state_dict().values(), *self.criterion.state_dict().values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, torch.Tensor))
