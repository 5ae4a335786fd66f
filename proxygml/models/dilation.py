"""Finer feature maps from the same weights: the backbone's last strides become 1, and the layers behind are dilated.

A layer behind a removed stride still sees its neighbours at the distance that it was trained for, and the map has
positions for all pixels in between (Chen et al. 2015, DeepLab; Yu and Koltun 2016). timm builds such networks.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from proxygml.errors import RecipeError

_STEPS = ("kernel_size", "stride", "padding", "dilation")


class FinerMap:
    """A network without weights of its own that computes a finer feature map with the weights of a backbone.

    Args:
        backbone: a convolutional network of timm.
        name: timm's name for it.
        output_stride: how many pixels, to a side, a position of the finer map stands for.

    Raises:
        RecipeError: timm has no such form of this network, or it is no finer than the network itself.
    """

    def __init__(self, backbone: nn.Module, name: str, output_stride: int) -> None:
        finer = _build(name, output_stride)
        if [type(own) for own in backbone.modules()] != [type(other) for other in finer.modules()]:
            raise RecipeError(_refusal(name, output_stride, "has other layers in so fine a form"))
        pairs = zip(backbone.modules(), finer.modules(), strict=True)
        if all(_steps(own) == _steps(other) for own, other in pairs if not any(own.children())):
            raise RecipeError(_refusal(name, output_stride, "has as fine a map already"))
        _check_positions(finer, name, output_stride)
        self._network = _FeatureMap(finer).eval()

    def __call__(self, backbone: nn.Module, images: Tensor) -> Tensor:
        """The finer feature map of normalised images, by the backbone's present weights and running statistics."""
        tensors = [*backbone.named_parameters(remove_duplicate=False), *backbone.named_buffers(remove_duplicate=False)]
        features: Tensor = functional_call(self._network, {f"finer.{name}": found for name, found in tensors}, images)
        return features


class _FeatureMap(nn.Module):
    """Calls forward_features, since functional_call calls only a module's forward."""

    def __init__(self, finer: nn.Module) -> None:
        super().__init__()
        self.finer = finer

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.finer.forward_features(images)  # type: ignore[operator]
        return features


def _build(name: str, output_stride: int) -> nn.Module:
    """The network on the meta device: its layers, without memory for weights."""
    import timm  # noqa: PLC0415  (loads all of its models)

    if not timm.is_model(name):
        raise RecipeError(_refusal(name, output_stride, "is none of timm's networks"))
    try:
        with torch.device("meta"):
            return timm.create_model(name, num_classes=0, global_pool="", output_stride=output_stride)
    except (TypeError, AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        raise RecipeError(_refusal(name, output_stride, "cannot be built so by timm")) from error


def _check_positions(finer: nn.Module, name: str, output_stride: int) -> None:
    """Raise RecipeError for a stride that timm accepts, but replaces by the next smaller one that the network has."""
    side = 256
    with torch.no_grad(), torch.device("meta"):
        features = finer.eval().forward_features(torch.zeros(1, 3, side, side))  # type: ignore[operator]
    if features.shape[-1] != -(-side // output_stride):
        found = side / features.shape[-1]
        raise RecipeError(_refusal(name, output_stride, f"gives a position for every {found:g} pixels instead"))


def _steps(layer: nn.Module) -> dict[str, Any]:
    """How a layer steps over its input."""
    return {key: getattr(layer, key) for key in _STEPS if hasattr(layer, key)}


def _refusal(name: str, output_stride: int, reason: str) -> str:
    return (
        f"embedder.output_stride is {output_stride}, but {name} {reason}: most convolutional networks of timm take 8 "
        "or 16; 0 leaves a network as it is"
    )
