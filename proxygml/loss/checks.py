"""What ProxyGMLLoss checks: its arguments, its batches and what is loaded into it."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union, get_args

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Direction = Literal["samples", "proxies"]
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


def check_direction(direction: str, positive_mask: bool, mask_softmax: bool) -> None:
    """Raise ValueError for a direction that there is not, or the paper's ablations with the proxies' direction."""
    if direction not in get_args(Direction):
        raise ValueError(f"direction is {direction!r}, but must be one of {', '.join(get_args(Direction))}")
    if direction == "proxies" and not (positive_mask and mask_softmax):
        raise ValueError(
            "positive_mask or mask_softmax is False and direction is 'proxies', which has no softmax over classes and "
            "needs each sample's own proxies: leave them out"
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
    labels = _as_tensor(labels)
    if not isinstance(embeddings, Tensor) or embeddings.layout != torch.strided:
        found = embeddings.layout if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise ValueError(f"embeddings are {found}, but the loss needs a dense tensor, the output of the network")
    if embeddings.dtype not in _FLOATS:
        raise ValueError(
            f"embeddings are {embeddings.dtype}, but the loss needs floating-point numbers of 16 bits or more"
        )
    if embeddings.dim() != 2 or embeddings.shape[1] != embedding_size:
        shape = tuple(embeddings.shape)
        raise ValueError(f"embeddings have shape {shape}, but the loss was built for (M, {embedding_size})")
    if labels.shape != embeddings.shape[:1]:
        count, shape = len(embeddings), tuple(labels.shape)
        raise ValueError(f"labels have shape {shape}, but {count} embeddings need ({count},)")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole and len(labels):  # an empty list has no type of its own
        raise ValueError(f"labels are {labels.dtype}, but the loss needs integers: class numbers")
    unsigned = labels.dtype == torch.uint64
    labels = labels.long()  # of the wider unsigned integers torch has few operations
    if labels.device.type == "cpu":
        _check_labels(labels, num_classes, unsigned)
    if embeddings.device.type == "cpu":
        _check_finite(embeddings)
    return labels.to(embeddings.device)


def _as_tensor(labels: Labels) -> Tensor:
    """Labels of any kind as a tensor; of a NumPy array, or what can be made one, in an order that torch takes."""
    if isinstance(labels, Tensor):
        return labels
    try:
        if hasattr(labels, "__array__"):
            if hasattr(labels, "filled") and getattr(labels, "mask").any():  # of numpy.ma  # noqa: B009
                raise ValueError("some are masked")
            array = labels.__array__()
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(
            f"labels are of the type {type(labels).__name__} and hold no class numbers ({reason}): give whole numbers "
            "as a tensor, an array or a list"
        ) from error


def _check_labels(labels: Tensor, num_classes: int, unsigned: bool) -> None:
    """Check labels as int64, in which those of `unsigned` 64 bits from 2**63 on are negative."""
    if not len(labels):
        return
    least, largest = torch.aminmax(labels)
    if least.item() < 0 or largest.item() >= num_classes:
        first = int(((labels < 0) | (labels >= num_classes)).nonzero()[0])
        label = int(labels[first])
        raise ValueError(
            f"labels[{first}] is {label + 2**64 if unsigned and label < 0 else label}, but the loss was built for "
            f"{num_classes} classes (0..{num_classes - 1})"
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


def check_state(state: object, own: list[int]) -> None:
    """Raise ValueError if loaded proxies belong to other classes, even where their number is the same.

    Args:
        state: what was loaded; it should be a tensor like `own`.
        own: C, N, the first class and the one after the last.
    """
    if not isinstance(state, Tensor) or state.shape != (len(own),) or state.is_floating_point():
        raise ValueError(
            f"the state's _extra_state is {str(state)[:100]}, but must be a tensor of {len(own)} whole numbers: it is "
            "not the state of a ProxyGMLLoss"
        )
    loaded: list[int] = state.tolist()
    if loaded != own:
        (theirs, their_number, their_first, their_end), (ours, our_number, our_first, our_end) = loaded, own
        raise ValueError(
            f"the state is that of {their_number} proxies of each of the classes {their_first}..{their_end - 1} of "
            f"{theirs}, but the loss was built for {our_number} of each of {our_first}..{our_end - 1} of {ours}: build "
            "it with the same numbers"
        )
