"""Watching a training: means over an epoch, collapse, divergence, and which proxies are kept as hard negatives."""

import csv
import math
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from proxygml.console import warn
from proxygml.errors import DivergedError
from proxygml.files import atomic_write
from proxygml.loss.proxygml_loss import ProxyGMLLoss
from proxygml.loss.sharded import classes_of
from proxygml.training.checkpoint import EpochMetrics, Progress
from proxygml.training.processes import any_process, parts_of_processes
from proxygml.training.recipe import Recipe

LOG_EVERY = 20  # steps between two looks at the loss and the mean cosine; on a GPU a look waits for the queue
COLLAPSED = 0.9  # mean cosine of a batch above which the embeddings hardly differ

UNSPREAD_EPOCHS = 5  # after the warm-up, in which a network that starts in a narrow cone may still spread


@torch.no_grad()
def mean_cosine(embeddings: Tensor, size: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Mean cosine between two different embeddings of a global batch: near 1 when all point the same way.

    Args:
        embeddings: L2-normalised (m, D): the batch, or this process's part of it.
        size: M, how many embeddings the batch holds.
        group: the processes that hold the parts; each sends D numbers. None: this one holds them all.
    """
    total = embeddings.sum(dim=0)
    if group is not None:
        dist.all_reduce(total, group=group)
    return (total.square().sum() - size) / max(size * (size - 1), 1)


class CollapseWatch:
    """Notices when the embeddings of the batches start to gather in one direction.

    A network may start that way and spread; so only a rise after some spread counts, smoothed over some 20 batches.
    """

    def __init__(self) -> None:
        self.smoothed: float | None = None
        self.least = math.inf
        self.step = 0

    def begins(self, cosine: float, step: int) -> bool:
        """Take the mean cosine of a step's batch, and return whether a collapse begins."""
        memory = 0.95 ** max(step - self.step, 1)
        self.smoothed = cosine if self.smoothed is None else memory * self.smoothed + (1 - memory) * cosine
        self.step = step
        self.least = min(self.least, self.smoothed)
        return self.smoothed > COLLAPSED and self.smoothed > self.least + 0.1


def collapse_message(cosine: float, epoch: int, recipe: Recipe) -> str:
    """What a collapse is, and what to try."""
    if recipe.backbone_lr:
        warm_up = "" if recipe.warmup_epochs else "a warm-up (warmup_epochs 1), "
        rate = f"{warm_up}a lower backbone_lr than {recipe.backbone_lr:g}"
    else:  # a backbone that is not trained cannot have collapsed: the layer has not spread its features yet
        rate = f"a higher embedding_lr than {recipe.embedding_lr:g}"
    return (
        f"collapse: in epoch {epoch} the mean cosine between the embeddings of a batch is {cosine:.2f}; they hardly "
        f"differ, even where the loss looks healthy. Try {rate} or a higher proxy_lr than {recipe.proxy_lr:g}"
    )


class Meter:
    """Means over an epoch, kept on the device so that counting does not wait for it.

    Args:
        items: what is trained on, in the note: images or vectors.
    """

    def __init__(self, items: str = "images") -> None:
        self.items = items
        self.start = time.perf_counter()
        self.images = 0
        self.steps = 0
        self.last_loss = torch.zeros(())
        self.loss = torch.zeros((), dtype=torch.float64)
        self.cosine = torch.zeros((), dtype=torch.float64)
        self.note = ""

    def add(self, loss: Tensor, cosine: Tensor, size: int) -> None:
        """Count a step on a global batch of `size` images: its loss, and their mean cosine."""
        self.last_loss = loss.detach()
        self.loss = self.loss.to(loss.device) + self.last_loss
        self.cosine = self.cosine.to(loss.device) + cosine
        self.images += size
        self.steps += 1

    def describe(self, loss: float, cosine: float) -> None:
        """Renew the note beside the progress bar, once there is a loss to show."""
        if self.steps:
            self.note = f"loss {loss:.3f}, mean cosine {cosine:.2f}, {self.images_per_second:.0f} {self.items}/s"

    def describe_means(self) -> None:
        """Make the note that of the whole epoch, as metrics.csv has it."""
        means = self.means()
        self.describe(means["loss"], means["mean_cosine"])

    @property
    def images_per_second(self) -> float:
        """Of all processes together, since the epoch began."""
        return self.images / (time.perf_counter() - self.start)

    def means(self) -> EpochMetrics:
        """The epoch's loss, mean cosine, seconds and images per second."""
        return {
            "loss": float(self.loss) / self.steps,
            "mean_cosine": float(self.cosine) / self.steps,
            "seconds": round(time.perf_counter() - self.start, 3),
            "images_per_second": round(self.images_per_second, 1),
        }


@dataclass
class Monitor:
    """Looks at the batches of a run: logs them, warns of a collapse once, and stops a run that diverges."""

    recipe: Recipe
    checkpoints: Path
    accelerator: Accelerator
    progress: Progress
    collapse: CollapseWatch = field(default_factory=CollapseWatch)

    def look(self, meter: Meter, mean: Tensor, epoch: int, step: int) -> None:
        """Look at a batch, by its mean cosine, before its loss is computed: on CPUs at each, on a GPU at every 20th.

        Raises:
            DivergedError: the last loss or the embeddings are not finite.
        """
        now = self.progress.steps % LOG_EVERY == 0
        if mean.device.type != "cpu" and not now:
            return
        cosine = float(mean)
        self.check_finite_loss(meter.last_loss, epoch, step)
        if not math.isfinite(cosine):
            self._raise_diverged("the embeddings hold NaN or infinite values", epoch, step)
        if now:
            losses = {"batch/loss": float(meter.last_loss), "batch/mean_cosine": cosine}
            self.accelerator.log(losses, step=self.progress.steps)
            meter.describe(float(meter.last_loss), cosine)
        if self.collapse.begins(cosine, self.progress.steps):
            self._warn_of_collapse(cosine, epoch)

    def warn_if_unspread(self, metrics: EpochMetrics) -> None:
        """A network that starts in a narrow cone may take some epochs to spread; one that stays there has collapsed."""
        epoch = self.progress.epoch
        patience = min(self.recipe.epochs, self.recipe.warmup_epochs + UNSPREAD_EPOCHS)
        if metrics["mean_cosine"] > COLLAPSED and epoch >= patience:
            self._warn_of_collapse(metrics["mean_cosine"], epoch)

    def _warn_of_collapse(self, cosine: float, epoch: int) -> None:
        """Once in a run."""
        if not self.progress.collapse_named and self.accelerator.is_main_process:
            warn(collapse_message(cosine, epoch, self.recipe))
        self.progress.collapse_named = True

    def check_finite_loss(self, loss: Tensor, epoch: int, step: int) -> None:
        """Raise DivergedError where the loss is NaN or infinite."""
        if not math.isfinite(loss):
            self._raise_diverged(f"the loss became {float(loss)}", epoch, step)

    @torch.no_grad()
    def check_finite_network(self, network: nn.Module, inputs: Tensor, epoch: int, step: int) -> None:
        """Raise DivergedError where the network that the last step left gives NaN: that step has no loss yet.

        Where one process finds NaN in its part of the batch, all of them raise it.
        """
        if any_process(not torch.isfinite(network.eval()(inputs)).all(), self.accelerator):
            self._raise_diverged("the network gives NaN or infinite embeddings", epoch, step)

    def _raise_diverged(self, what: str, epoch: int, step: int) -> None:
        kept = (
            f"the last good state, after epoch {self.progress.epoch}, is kept in {self.checkpoints}"
            if self.progress.epoch
            else "no epoch had finished"
        )
        raise DivergedError(
            f"{what} in epoch {epoch}, step {step}; {kept}. Try a lower backbone_lr ({self.recipe.backbone_lr:g}) or "
            f"proxy_lr ({self.recipe.proxy_lr:g}), warmup_epochs of 1 or more ({self.recipe.warmup_epochs}), or "
            f"precision bf16 or fp32 ({self.recipe.precision})"
        )


class ProxyCounter:
    """Counts how often each proxy is kept in the sub-graph of a sample of another class.

    Where the classes are divided over processes, each counts for the proxies that it holds.
    """

    def __init__(self, criterion: ProxyGMLLoss) -> None:
        self.criterion = criterion
        self.counts = torch.zeros(len(criterion.proxies), dtype=torch.int64, device=criterion.proxies.device)

    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Count the sub-graphs of a batch."""
        self.counts += self.criterion.kept_by_others(embeddings.detach(), labels)

    def write(self, path: Path, classes: tuple[str, ...], is_main_process: bool) -> None:
        """Write one row per proxy: its class, its number within the class, how often it was kept.

        All processes call this. The main one writes; of the others it holds the counts of one at a time.
        """
        loss, per_class = self.criterion, self.criterion.proxies_per_class
        parts = iter([self.counts])
        if loss.process_group is not None:
            number = dist.get_world_size(loss.process_group)
            sizes = [len(classes_of(loss.num_classes, process, number)) * per_class for process in range(number)]
            parts = parts_of_processes(self.counts, sizes, loss.process_group)
        if not is_main_process:
            deque(parts, maxlen=0)  # sends this process's counts
            return
        with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "proxy", "kept"])
            for row, count in enumerate(count for part in parts for count in part.tolist()):
                writer.writerow([classes[row // per_class], row % per_class, count])
