"""Finer feature maps from the same weights: the last strides of a backbone taken out, what follows them dilated.

A layer behind a stride that is gone sees its neighbours at the distance that it was trained for, and the map has a
position for every pixel in between (Chen et al. 2015, DeepLab; Yu and Koltun 2016). timm builds such networks; here a
network changes between its own form and the finer one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from proxygml.errors import RecipeError

Form = Literal["own", "finer"]

_STEPS = ("kernel_size", "stride", "padding", "dilation")


@dataclass(frozen=True)
class _Layer:
    """A layer of the backbone, and how it steps over its input in either form."""

    module: nn.Module
    steps: Mapping[Form, Mapping[str, Any]]


class Dilation:
    """The two forms of a backbone, which share everything that is learned.

    Args:
        backbone: a convolutional network of timm, in its own form.
        name: timm's name for it.
        output_stride: how many pixels, to a side, a position of the finer map stands for.

    Raises:
        RecipeError: timm has no form of this network so fine, or it is no finer than its own.
    """

    def __init__(self, backbone: nn.Module, name: str, output_stride: int) -> None:
        finer = _build(name, output_stride)
        if [type(own) for own in backbone.modules()] != [type(other) for other in finer.modules()]:
            raise RecipeError(_refusal(name, output_stride, "has other layers in so fine a form"))
        self._layers = [
            _Layer(own, {"own": _steps(own), "finer": _steps(other)})
            for own, other in zip(backbone.modules(), finer.modules(), strict=True)
            if not any(own.children()) and _steps(own) != _steps(other)
        ]
        if not self._layers:
            raise RecipeError(_refusal(name, output_stride, "has as fine a map already"))
        _check_positions(finer, name, output_stride)

    def take(self, form: Form) -> None:
        """Put the backbone into a form."""
        for layer in self._layers:
            for key, value in layer.steps[form].items():
                setattr(layer.module, key, value)


def _build(name: str, output_stride: int) -> nn.Module:
    import timm  # noqa: PLC0415  (loads all of its models)

    if not timm.is_model(name):
        raise RecipeError(_refusal(name, output_stride, "is none of timm's networks"))
    try:
        with torch.device("meta"):
            return timm.create_model(name, num_classes=0, global_pool="", output_stride=output_stride)
    except (TypeError, AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        raise RecipeError(_refusal(name, output_stride, "cannot be built so by timm")) from error


def _check_positions(finer: nn.Module, name: str, output_stride: int) -> None:
    """Refuse a number that timm takes, but for the next smaller that the network has."""
    side = 256
    with torch.no_grad(), torch.device("meta"):
        features = finer.eval().forward_features(torch.zeros(1, 3, side, side))  # type: ignore[operator]
    if features.shape[-1] != -(-side // output_stride):
        found = side / features.shape[-1]
        raise RecipeError(_refusal(name, output_stride, f"gives a position for every {found:g} pixels instead"))


def _steps(layer: nn.Module) -> dict[str, Any]:
    return {key: getattr(layer, key) for key in _STEPS if hasattr(layer, key)}


def _refusal(name: str, output_stride: int, reason: str) -> str:
    return (
        f"embedder.output_stride is {output_stride}, but {name} {reason}: most convolutional networks of timm take 8 "
        "or 16; 0 leaves a network as it is"
    )
