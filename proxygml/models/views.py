"""Views of an image: mirrored, turned, enlarged. An image may be embedded by the mean of several."""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from proxygml.models.embedder_settings import EmbedderSettings


class View(NamedTuple):
    """One way to look at an image; the default is the image itself."""

    mirrored: bool = False
    degrees: float = 0.0
    zoom: float = 1.0


ONE_VIEW = (View(),)
"""The image itself: what training sees."""


def views_of(settings: EmbedderSettings) -> Sequence[View]:
    """The views whose mean an image is embedded by: all combinations of mirrored, turned and enlarged that are set."""
    mirrored = (False, True) if settings.mirror else (False,)
    angles = (0.0, -settings.tilt, settings.tilt) if settings.tilt else (0.0,)
    zooms = (1.0, settings.zoom) if settings.zoom > 1 else (1.0,)
    return [View(*combination) for combination in product(mirrored, angles, zooms)]


def apply_view(images: Tensor, view: View) -> Tensor:
    """Images (M, 3, H, W) mirrored, turned around their centre and enlarged; outside, edge pixels are repeated."""
    images = images.flip(3) if view.mirrored else images
    if view.degrees == 0 and view.zoom == 1:
        return images
    angle = math.radians(view.degrees)
    cos, sin = math.cos(angle) / view.zoom, math.sin(angle) / view.zoom
    matrix = images.new_tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])
    grid = F.affine_grid(matrix, [1, *images.shape[1:]], align_corners=False)
    grid = grid.expand(images.shape[0], -1, -1, -1)  # len(images) would fix the batch size of an ONNX export
    turned = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return turned.contiguous(memory_format=torch.channels_last)
