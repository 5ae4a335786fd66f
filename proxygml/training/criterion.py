"""Builds and checks the loss that a recipe names: ProxyGMLLoss, or a loss of pytorch-metric-learning with its miner.

Only classes that the library lists can be built: a recipe names a class, never a path to import from.
"""

import inspect
import os
import warnings
from collections.abc import Mapping

import psutil
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn

from proxygml.console import warn
from proxygml.errors import RecipeError, did_you_mean
from proxygml.loss.proxygml_loss import ProxyGMLLoss
from proxygml.training.loss_settings import OURS, Argument, LossSettings

DERIVED = ("num_classes", "embedding_size")  # known from the data and the network
# Arguments that take an object of the library, which no recipe can hold.
OBJECTS = (
    "collect_stats",
    "distance",
    "embedding_regularizer",
    "mat_based_loss",
    "reducer",
    "weight_init_func",
    "weight_regularizer",
)
# Base classes, and a loss that compares two views of each image, while training has one.
UNFIT = (
    "BaseMetricLossFunction",
    "GenericPairLoss",
    "VICRegLoss",
    "BaseMiner",
    "EmbeddingsAlreadyPackagedAsTriplets",
    "HDCMiner",
)


class MinedLoss(nn.Module):
    """A loss over those pairs or triplets of a batch that a miner chooses."""

    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(M, D) embeddings and (M,) class numbers to the scalar loss."""
        loss: Tensor = self.loss(embeddings, labels, self.miner(embeddings, labels))
        return loss


def make_criterion(
    settings: LossSettings, num_classes: int, embedding_size: int, process_group: dist.ProcessGroup | None = None
) -> nn.Module:
    """The loss of a recipe: called with embeddings (M, embedding_size) and labels (M,) in 0..num_classes - 1.

    Args:
        settings: which loss, and its arguments.
        num_classes: C.
        embedding_size: D.
        process_group: the processes that train together. ProxyGMLLoss divides its classes over them, unless
            `loss.sharded` is false.

    Raises:
        RecipeError: there is no loss or miner of that name, or it has no such argument.
    """
    if settings.is_ours:
        return _ours(settings, num_classes, embedding_size, process_group if settings.sharded else None)
    # Slow to import, and only other losses than ours need it.
    from pytorch_metric_learning import losses, miners  # noqa: PLC0415
    from pytorch_metric_learning.losses import BaseMetricLossFunction  # noqa: PLC0415
    from pytorch_metric_learning.miners import BaseMiner  # noqa: PLC0415

    derived = dict(zip(DERIVED, (num_classes, embedding_size), strict=True))
    classes = _classes(vars(losses), BaseMetricLossFunction)
    kind = _choose(settings.name, classes, "loss.name", [OURS, *classes])
    loss = _build(kind, settings.arguments, derived, "loss.arguments")
    if not settings.miner:
        return loss
    classes = _classes(vars(miners), BaseMiner)
    kind = _choose(settings.miner, classes, "loss.miner", list(classes))
    return MinedLoss(loss, _build(kind, settings.miner_arguments, {}, "loss.miner_arguments"))


def _ours(
    settings: LossSettings, num_classes: int, embedding_size: int, process_group: dist.ProcessGroup | None
) -> ProxyGMLLoss:
    arguments = settings.of_ours()
    del arguments["sharded"]
    dtype = getattr(torch, arguments.pop("proxy_dtype"))
    size = num_classes * settings.proxies_per_class * embedding_size * dtype.itemsize
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine, as torchrun says
    _check_memory(size * here // (1 if process_group is None else dist.get_world_size(process_group)), settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        criterion = ProxyGMLLoss(num_classes, embedding_size, **arguments, dtype=dtype, process_group=process_group)
    if PartialState().is_main_process:
        for warning in caught:  # without the line of source that Python's own form shows
            warn(f"loss: {warning.message}")
    return criterion


def _classes(module: Mapping[str, object], base: type) -> dict[str, type[nn.Module]]:
    return {
        name: kind
        for name, kind in module.items()
        if isinstance(kind, type) and issubclass(kind, base) and issubclass(kind, nn.Module) and name not in UNFIT
    }


def _check_memory(size: int, settings: LossSettings) -> None:
    """Raise RecipeError where the proxies on this machine, of so many bytes, are more than its memory."""
    memory = psutil.virtual_memory().total
    if size > memory:
        raise RecipeError(
            f"loss.proxies_per_class is {settings.proxies_per_class}, which makes proxies of {size / 2**30:,.0f} GiB, "
            f"but this machine has {memory / 2**30:,.0f} GiB: take fewer, "
            "a smaller embedder.embedding_size, or more machines"
        )


def _choose(name: str, classes: Mapping[str, type[nn.Module]], key: str, known: list[str]) -> type[nn.Module]:
    if name not in classes:
        raise RecipeError(
            f"{key} is {name!r}, which is neither ours nor of pytorch-metric-learning: "
            f"{did_you_mean(name, sorted(known))}"
        )
    return classes[name]


def _build(kind: type[nn.Module], arguments: Mapping[str, Argument], derived: Mapping[str, int], key: str) -> nn.Module:
    parameters = _parameters(kind)
    settable = [name for name in parameters if name not in (*OBJECTS, *DERIVED)]
    for name, value in arguments.items():
        if name not in settable:
            raise RecipeError(
                f"{key}: {kind.__name__} has no argument {name!r} that a recipe can set: {did_you_mean(name, settable)}"
            )
        _check_type(value, parameters[name].default, f"{key}.{name}")
    known = {name: value for name, value in derived.items() if name in parameters}
    try:
        return kind(**known, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise RecipeError(f"{key} is {dict(arguments)}, which {kind.__name__} refuses: {error}") from error


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """The parameters of a class's constructor, and those that it passes on to the constructors of its bases."""
    found: dict[str, inspect.Parameter] = {}
    for ancestor in kind.__mro__[:-1]:
        if "__init__" not in vars(ancestor):
            continue
        parameters = list(inspect.signature(vars(ancestor)["__init__"]).parameters.values())[1:]
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for parameter in parameters:
            if parameter.kind not in variadic:
                found.setdefault(parameter.name, parameter)
        if all(parameter.kind != inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _check_type(value: Argument, default: object, key: str) -> None:
    """Raise RecipeError for a value of another kind than the default: the library would fail only in mid-training."""
    if not isinstance(default, (bool, int, float)):
        return
    is_flag = isinstance(default, bool)
    fits = isinstance(value, bool) if is_flag else isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fits:
        expected = "true or false" if is_flag else "a number"
        raise RecipeError(f"{key} is {value!r}, but must be {expected}, such as {default!r}")
