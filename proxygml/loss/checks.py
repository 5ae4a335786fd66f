"""What ProxyGMLLoss checks: its arguments, its batches and what is loaded into it."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np

Labels: TypeAlias = Union[Tensor, "np.ndarray[Any, Any]", Sequence[int]]


def check_count(name: str, value: int) -> int:
    """Return an argument as a whole number of at least 1, also one of NumPy's; raise ValueError if it is none."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise ValueError(f"{name} is {value!r}, but must be a whole number of at least 1")
    return number


def check_number(name: str, value: float, expected: str, holds: Callable[[float], bool]) -> float:
    """Return an argument as a number, also one of NumPy's; raise ValueError where it is none, or not as expected."""
    number = _as_float(value)
    if number is None or not math.isfinite(number) or not holds(number):
        raise ValueError(f"{name} is {value!r}, but must be a number {expected}")
    return number


def sample_size(proxy_sample: int | float | None, total: int) -> int:
    """How many of all proxies the regulariser looks at in a step."""
    if proxy_sample is None:
        return total
    number = _as_float(proxy_sample)
    if number is not None and number >= 1 and _is_a(Integral, proxy_sample):
        return min(int(proxy_sample), total)
    if number is not None and 0 < number < 1:
        return max(1, round(number * total))
    raise ValueError(
        f"proxy_sample is {proxy_sample!r}, but must be None, a whole number of at least 1 or a fraction in (0, 1)"
    )


def _as_float(value: object) -> float | None:
    """A number of Python's or NumPy's in Python's precision, 0.05 and not 0.05000000074; None for anything else."""
    if isinstance(value, bool) or not _is_a(Real, value):
        return None
    try:
        return float(str(value))
    except ValueError:  # a whole number of more digits than are read
        return math.inf


def _is_a(kind: type, value: object) -> bool:
    return isinstance(value, kind)


def check_sparse(sparse: bool, proxy_weight: float) -> None:
    """Raise ValueError for sparse gradients with a regulariser."""
    if sparse and proxy_weight > 0:
        raise ValueError(
            f"sparse is True and proxy_weight is {proxy_weight}, but the regulariser moves every proxy, so that no "
            "gradient is sparse: set proxy_weight to 0, or leave sparse out"
        )


def warn_if_raised(neighbors: int, neighbor_ratio: float, num_classes: int, proxies_per_class: int) -> None:
    """Warn where the neighbour ratio would have left a sample no negative."""
    total = num_classes * proxies_per_class
    asked = math.ceil(neighbor_ratio * num_classes * proxies_per_class)
    if asked < neighbors:
        warnings.warn(
            f"neighbor_ratio {neighbor_ratio} keeps {asked} of {total} proxies, which leaves no negative beside the "
            f"{proxies_per_class} of a sample's own class: raised to {neighbors}",
            stacklevel=3,
        )


def check_batch(embeddings: Tensor, labels: Labels, num_classes: int, embedding_size: int) -> Tensor:
    """The labels as int64 on the embeddings' device; ValueError where a batch is not as the loss expects.

    Values are read on the CPU only: reading them would make an accelerator wait.
    """
    labels = torch.as_tensor(labels)
    if not embeddings.is_floating_point():
        raise ValueError(f"embeddings are {embeddings.dtype}, but the loss needs floating-point numbers")
    if embeddings.dim() != 2 or embeddings.shape[1] != embedding_size:
        shape = tuple(embeddings.shape)
        raise ValueError(f"embeddings have shape {shape}, but the loss was built for (M, {embedding_size})")
    if labels.shape != embeddings.shape[:1]:
        count, shape = len(embeddings), tuple(labels.shape)
        raise ValueError(f"labels have shape {shape}, but {count} embeddings need ({count},)")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole and len(labels):  # an empty list has no type of its own
        raise ValueError(f"labels are {labels.dtype}, but the loss needs integers: class numbers")
    labels = labels.long()  # of the wider unsigned integers torch has few operations
    if labels.device.type == "cpu":
        _check_labels(labels, num_classes)
    if embeddings.device.type == "cpu":
        _check_finite(embeddings)
    return labels.to(embeddings.device)


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if not len(labels):
        return
    least, largest = torch.aminmax(labels)
    if least.item() < 0 or largest.item() >= num_classes:
        first = int(((labels < 0) | (labels >= num_classes)).nonzero()[0])
        raise ValueError(
            f"labels[{first}] is {int(labels[first])}, but the loss was built for {num_classes} classes "
            f"(0..{num_classes - 1})"
        )


def _check_finite(embeddings: Tensor) -> None:
    # A sum that is finite has finite terms, and takes a twentieth of the time of looking at each.
    if math.isfinite(embeddings.detach().sum().item()):
        return
    finite = torch.isfinite(embeddings).all(dim=1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(f"embeddings[{first}] holds NaN or infinite values: look at the network or its learning rate")


def check_loaded(loss: nn.Module, state: Mapping[str, Any], prefix: str, *_: object) -> None:
    """Let the loss look at what tells whose proxies a state holds before any is copied."""
    if (extra := state.get(f"{prefix}_extra_state")) is not None:
        loss.set_extra_state(extra)


def check_state(loaded: list[int], own: list[int]) -> None:
    """Raise ValueError if loaded proxies belong to other classes, even where their number is the same.

    Both are lists of C, N, the first class and the one after the last.
    """
    if loaded != own:
        (theirs, their_number, their_first, their_end), (ours, our_number, our_first, our_end) = loaded, own
        raise ValueError(
            f"the state is that of {their_number} proxies of each of the classes {their_first}..{their_end - 1} of "
            f"{theirs}, but the loss was built for {our_number} of each of {our_first}..{our_end - 1} of {ours}: build "
            "it with the same numbers"
        )
