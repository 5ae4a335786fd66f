"""Going on from a finished run with other classes: its network, and its proxies for the classes that both have.

Classes come and go every week; a network that has learned the old ones need not start anew. Ours.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from proxygml.errors import RecipeError, RunError
from proxygml.loss.proxygml_loss import ProxyGMLLoss
from proxygml.models.embedder import Embedder
from proxygml.models.model_description import ModelDescription, read_model
from proxygml.training.checkpoint import PROXIES
from proxygml.training.checkpoint_storage import read_index, read_rows
from proxygml.training.quarter_turns import turned_names
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.tensor_file import row_blocks

SHAPE = ("backbone", "pooling", "embedding_size", "feature_norm", "head", "hidden_size")
"""The settings of the embedder that its tensors depend on."""


def continuing(recipe: Recipe, run: Path) -> Recipe:
    """The recipe with the network of a finished run to start from; without the rows that it dropped from its catalog.

    Images turned by quarters are no classes of it: those of new classes would have no proxies to start from. It has no
    warm-up where all parts start from what is known already, as with our loss: a warm-up would leave the network
    unchanged for one of few epochs. Give `--warmup_epochs` to `train --from` to have one.

    Raises:
        RunError: there is no finished run.
    """
    old = read_model(run).embedder
    network = replace(recipe.embedder, **{key: getattr(old, key) for key in SHAPE}, weights="none")
    dropped = RunFolder(run).read_recipe().drop if recipe.drop else ""
    drop = "" if recipe.drop == dropped else recipe.drop
    warmup = 0 if recipe.loss.is_ours else recipe.warmup_epochs  # proxies of other losses start at random
    images = replace(recipe.images, quarter_turns=False)
    start = str(run.resolve())
    return replace(recipe, embedder=network, images=images, drop=drop, start_from=start, warmup_epochs=warmup)


def load_network(embedder: Embedder, run: Path) -> None:
    """Fill a network with the tensors of a finished run.

    Raises:
        RecipeError: it is a network of another shape.
        RunError, WeightsError: see Embedder.load.
    """
    old = read_model(run).embedder
    for key in SHAPE:
        found, expected = getattr(embedder.settings, key), getattr(old, key)
        if found != expected:
            raise RecipeError(
                f"embedder.{key} is {found}, but {run}, from which training is to go on, has {expected}: leave it out"
            )
    embedder.with_tensors(run)


@torch.no_grad()
def take_proxies(criterion: ProxyGMLLoss, classes: Sequence[str], run: Path) -> int:
    """Copy the proxies of the classes that a finished run has too, to those of them that this process holds.

    Args:
        criterion: the loss. Its other proxies stay as they are.
        classes: its C classes, in the order of their numbers.
        run: the folder of the finished run.

    Returns:
        How many classes of all were found; 0 where the run's loss was another one, or had another number of proxies a
        class.

    Raises:
        RunError: its checkpoint cannot be read.
    """
    folder = RunFolder(run).checkpoint
    index = None if folder is None else read_index(folder)
    stored = None if index is None else index.tensors.get(PROXIES)
    model = read_model(run)
    known = model.classes
    if isinstance(model, ModelDescription) and model.images.quarter_turns:
        known = turned_names(known)
    per_class, size = criterion.proxies_per_class, criterion.proxies.shape[1]
    if folder is None or stored is None or tuple(stored.shape) != (len(known) * per_class, size):
        return 0
    places = _places(known, classes, criterion)
    for part in stored.parts:
        chunk = stored.chunk(part)
        for rows in row_blocks(chunk.sizes, stored.dtype):
            values = read_rows(folder, PROXIES, stored, part, rows)
            _copy(values, chunk.offsets[0] + rows.start, places, criterion)
    if not criterion.proxies.isfinite().all():
        raise RunError(f"{folder} holds proxies that are NaN or infinite: take a run that ended well")
    return len(set(known) & set(classes))


def _places(known: Sequence[str], classes: Sequence[str], criterion: ProxyGMLLoss) -> Tensor:
    """For each class of the finished run, its place among the classes that this process owns; -1 where it has none."""
    owned = criterion.owned_classes
    place = {classes[number]: number - owned.start for number in owned}
    return torch.tensor([place.get(name, -1) for name in known], dtype=torch.int64)


def _copy(values: Tensor, first: int, places: Tensor, criterion: ProxyGMLLoss) -> None:
    """Copy rows of the finished run's proxies, the first of which is number `first`."""
    per_class = criterion.proxies_per_class
    number = first + torch.arange(len(values))
    place = places[number // per_class]
    mine = place >= 0
    target = place[mine] * per_class + number[mine] % per_class
    proxies = criterion.proxies
    proxies[target.to(proxies.device)] = values[mine].to(proxies.device, proxies.dtype)
