"""Backbones by name, with their weights: any timm model, and our own small files.

A backbone has `forward_features`, from normalised images to features, `num_features`, and the input space that its
weights were trained in. Pooling and all that follows is in head.py.
"""

import math
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from proxygml.data.images.settings import ImageSettings
from proxygml.errors import RecipeError, WeightsError, check_setting, did_you_mean
from proxygml.models.bn_inception import BNInception
from proxygml.models.conv4 import SMALL_WIDTHS, Conv4
from proxygml.models.weights import load_state, load_weights
from proxygml.urls import as_place

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

PRETRAINED_OWN = {"bn_inception": "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth"}


@dataclass(frozen=True)
class InputSpace:
    """How RGB in 0..1 becomes the input that a backbone was trained on: (x - mean) / std, then BGR if `bgr`.

    Raises:
        RecipeError: a value with which that cannot be computed.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False

    def __post_init__(self) -> None:
        check_setting(all(map(math.isfinite, self.mean)), "input.mean", self.mean, "three numbers")
        holds = all(0 < value < math.inf for value in self.std)
        check_setting(holds, "input.std", self.std, "three numbers above 0")


_CENTRED = InputSpace(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

OWN: dict[str, tuple[Callable[[], nn.Module], InputSpace]] = {
    "bn_inception": (BNInception, InputSpace(BNInception.mean, BNInception.std, bgr=True)),
    "conv4": (Conv4, _CENTRED),
    "conv4_small": (partial(Conv4, SMALL_WIDTHS), _CENTRED),
}


class Backbone(NamedTuple):
    """A network with `forward_features` and `num_features`, and the input space of its weights."""

    network: nn.Module
    space: InputSpace


def build_backbone(name: str, weights: str, images: ImageSettings) -> Backbone:
    """The network of that name with its weights.

    Args:
        name: `bn_inception`, `conv4`, `conv4_small` or a timm model.
        weights: `pretrained`, `none`, or the path of a .safetensors, .pth or .pt file.
        images: the sizes of images that it will see.

    Raises:
        RecipeError: no backbone has that name, or it takes images of one size only and there are two.
        WeightsError: the weights cannot be read or downloaded, or do not fit.
    """
    backbone, space = _build_own(name) if name in OWN else _build_timm(name, weights == "pretrained", images)
    if weights == "pretrained" and name in OWN:
        load_state(backbone, _download(name), Path(PRETRAINED_OWN[name]).name)
    elif weights not in ("pretrained", "none"):
        load_weights(backbone, as_place(weights, "embedder.weights", WeightsError))
    return Backbone(backbone, space)


def _build_own(name: str) -> Backbone:
    kind, space = OWN[name]
    return Backbone(kind(), space)


def _build_timm(name: str, pretrained: bool, images: ImageSettings) -> Backbone:
    import timm  # noqa: PLC0415  (loads all of its models; our own need none of it)

    if not timm.is_model(name):
        hint = did_you_mean(name, [*OWN, *timm.list_models()], 3)
        raise RecipeError(f"embedder.backbone is {name!r}, which neither proxygml nor timm knows: {hint}")
    try:
        config = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    except RuntimeError as error:  # of a tag after the model's name that it does not have
        tags = did_you_mean(name, timm.list_pretrained(f"{name.partition('.')[0]}.*"), 3)
        raise RecipeError(f"embedder.backbone is {name!r}, which timm does not know: {tags}") from error
    if pretrained:
        _check_reachable(name, config)
    # Only models built for one input size take the argument, and they need it.
    size: dict[str, Any] = {"img_size": images.size} if config.fixed_input_size else {}
    create = _create_for_two_sizes if size and images.test_scale != 1 else timm.create_model
    try:
        backbone = create(name, pretrained=pretrained, num_classes=0, global_pool="", **size)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise WeightsError(_how_to_fetch(name, config)) from error
    red, green, blue = zip(config.mean, config.std, strict=True)
    return Backbone(backbone, InputSpace((red[0], green[0], blue[0]), (red[1], green[1], blue[1])))


def _create_for_two_sizes(name: str, **arguments: Any) -> nn.Module:
    """A model of timm that is built for one size of images, but takes others too, of any number of patches.

    Raises:
        RecipeError: it takes no others.
    """
    import timm  # noqa: PLC0415

    # The embeddings of positions are interpolated; vision transformers fill up the last patches, Swin always does.
    for flags in (["dynamic_img_size", "dynamic_img_pad"], ["dynamic_img_size"]):
        try:
            return timm.create_model(name, **arguments | dict.fromkeys(flags, True))
        except TypeError as error:
            if "dynamic_img" not in str(error):
                raise
    raise RecipeError(f"images.test_scale is not 1, but {name} takes images of one size only: leave test_scale out")


def _check_reachable(name: str, config: "PretrainedCfg") -> None:
    """Fail at once and quietly where there is no network: the hub's own client retries for most of a minute."""
    from huggingface_hub import constants, try_to_load_from_cache  # noqa: PLC0415

    if not config.hf_hub_id:
        raise WeightsError(f"timm has no pretrained weights for {name}: set embedder.weights to a file or to none")
    if any(try_to_load_from_cache(config.hf_hub_id, file) for file in ("model.safetensors", "pytorch_model.bin")):
        return
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=10):
            return
    except urllib.error.HTTPError:
        return  # it answered, so it is there
    except OSError as error:
        raise WeightsError(_how_to_fetch(name, config)) from error


def _how_to_fetch(name: str, config: "PretrainedCfg") -> str:
    return (
        f"the pretrained weights of {name} could not be downloaded: fetch "
        f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors on a machine with a network and "
        "set embedder.weights to that file (or to none, for random weights)"
    )


def _download(name: str) -> dict[str, Tensor]:
    if name not in PRETRAINED_OWN:
        raise WeightsError(f"{name} has no pretrained weights: set embedder.weights to none, or to a file of your own")
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            PRETRAINED_OWN[name], map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"the pretrained weights of {name} could not be downloaded: fetch {PRETRAINED_OWN[name]} on a machine "
            "with a network and set embedder.weights to that file (or to none, for random weights)"
        ) from error
    return state
