"""Whether a head on vectors retrieves better than the vectors as they came; where it does not, what to do.

A layer that is trained on few classes can make vectors worse for classes that it has not seen.
"""

import torch

from proxygml.console import note, warn
from proxygml.errors import counted
from proxygml.evaluation.gains import Gain
from proxygml.models.embedder import Embedder
from proxygml.training.history import read_history
from proxygml.training.processes import make_accelerator, own_slice
from proxygml.training.run_folder import RunFolder
from proxygml.training.splits import split_for_training
from proxygml.training.validation import validation_message, validation_metrics
from proxygml.training.vectors import unit_blocks


def print_validation_of_given(run: RunFolder) -> None:
    """Print how a finished run's vectors retrieve on its validation classes as they came; warn where that is no worse.

    The comparison favours the model, whose epoch these classes have chosen. So where it is not ahead even here, it is
    unlikely to be ahead elsewhere. Nothing is printed of a run of images, or without validation classes. All processes
    call this.
    """
    recipe = run.read_recipe()
    if not recipe.takes_vectors:
        return
    validation = split_for_training(recipe, own=False)[1]
    if validation is None:
        return
    accelerator = make_accelerator(recipe)
    part = own_slice(len(validation), accelerator)
    vectors = torch.cat([torch.empty(0, validation.vector_source.size), *unit_blocks(validation, part)])
    given = validation_metrics(vectors, validation, accelerator)
    if not accelerator.is_main_process:
        return
    history = read_history(run.metrics)
    if "val_map_at_r" not in history:  # no epoch was trained, and the start is random
        return
    message = f"the vectors as they came: {validation_message(given)}"
    if history["val_map_at_r"].max() > given["val_map_at_r"]:
        note(message)
    else:
        warn(f"{message}; the model has no higher MAP@R. {advice(Embedder.load(run.path))}")


def print_verdict(gain: Gain, embedder: Embedder) -> None:
    """Print whether a model is better on the test classes than the vectors as they came, beyond the 95% intervals.

    Args:
        gain: over the vectors as they came.
        embedder: the model.
    """
    first = next(name for name in gain if name.startswith("Recall@"))
    shown = {name: gain[name] for name in (first, "MAP@R")}
    figures = ", ".join(f"{name} {estimate.in_points()}" for name, estimate in shown.items())
    words, worse = verdict(shown)
    message = f"on the test classes, the model is {words} the vectors as they came: {figures} points"
    if worse:
        warn(f"{message}. {advice(embedder)}")
    else:
        note(message)


def verdict(gain: Gain) -> tuple[str, bool]:
    """What the intervals of these figures say, such as `better in MAP@R than`; and whether to advise against it."""
    better = [name for name, estimate in gain.items() if estimate.low > 0]
    worse = [name for name, estimate in gain.items() if estimate.high < 0]
    if better and worse:
        return f"better in {' and '.join(better)} but worse in {' and '.join(worse)} than", True
    if better or worse:
        return f"{'better' if better else 'worse'} in {' and '.join(better or worse)} than", bool(worse)
    return "neither surely better nor surely worse than", True


def advice(embedder: Embedder) -> str:
    """What to do where a head gains nothing."""
    given, made, classes = embedder.num_features, embedder.embedding_size, len(embedder.classes)
    shorter = f", unless you want {counted(made, 'number')} in place of {given:,}" if made < given else ""
    return (
        f"Use the vectors as they are{shorter}; or train on more classes (it had {classes:,}), or with another "
        "embedding_start, whitening or embedding_lr"
    )
