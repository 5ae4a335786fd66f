"""The validation classes: the figures that choose the epoch whose model is kept, and how they are said."""

from accelerate import Accelerator
from torch import Tensor

from proxygml.data.catalog import Catalog
from proxygml.evaluation.metrics import score_queries
from proxygml.evaluation.rules import part_of
from proxygml.training.checkpoint import EpochMetrics, Progress
from proxygml.training.processes import own_slice, process_group


def validation_metrics(embeddings: Tensor, images: Catalog, accelerator: Accelerator) -> EpochMetrics:
    """The figures that choose the epoch to keep, 0..1: the same on all processes.

    Args:
        embeddings: (m, D), of the validation images of this process, `own_slice`.
        images: all validation images.
        accelerator: the processes.
    """
    part = own_slice(len(images), accelerator)
    scores = score_queries(
        embeddings, images.labels[part], process_group=process_group(accelerator), **part_of(images.rules, part)
    )
    return {
        "val_recall_at_1": float((scores.first_positive < 1).mean()),
        "val_map_at_r": float(scores.average_precision.mean()),
    }


def validation_message(metrics: EpochMetrics) -> str:
    """The validation figures of an epoch, in percent."""
    return (
        f"Recall@1 {100 * metrics['val_recall_at_1']:.1f}, MAP@R {100 * metrics['val_map_at_r']:.1f} "
        "on the validation classes"
    )


def kept_message(progress: Progress) -> str:
    """Which epoch's network is the model of a finished run."""
    if not progress.history:
        return "no epoch was trained: the model is the network as it starts"
    why = "; no epoch has a higher MAP@R"
    if not progress.best_epoch and progress.start:
        return f"the model is the network before the first step (epoch 0): {validation_message(progress.start)}{why}"
    if not progress.best_epoch:
        return f"the model is the network after the last epoch, {progress.epoch}"
    best = progress.history[progress.best_epoch - 1]
    kept = f"the model is the network after epoch {progress.best_epoch} of {progress.epoch}"
    return f"{kept}: {validation_message(best)}{why}"
