"""The settings of images: the `images` section of a recipe.

They stand apart from transforms.py, which does what they say, so that the command line can list them without PyTorch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from proxygml.arguments import check_fields
from proxygml.errors import RecipeError, check_setting

Interpolation = Literal["bilinear", "bicubic"]

LARGEST_SIDE = 4096
"""Pixels; a batch of such squares fills the memory of the largest devices."""


@dataclass(frozen=True)
class ImageSettings:
    """How images are cut and scaled for the network: the `images` section of a recipe.

    Raises:
        RecipeError: a value is impossible; the message names the key.
    """

    size: int = 224
    """Side of the square that the network sees, in pixels."""

    resize: int = 256
    """Shorter side, in pixels, that a test image is scaled to before its centre is cut out; at least `size`."""

    test_scale: float = 1.0
    """How many times larger than in training (`size` and `resize`) the images are that a trained network embeds. Things
    look larger in random crops than in whole images, so that larger images suit it better (Touvron et al., "Fixing the
    train-test resolution discrepancy", NeurIPS 2019), and more of their pixels are seen. The time to embed an image
    grows with the square; a training step takes as long as before."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest area of a random training crop, as fractions of the image's area."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width of a random training crop divided by its height."""

    horizontal_flip: bool = True
    """Whether every second training image, at random, is mirrored left to right. Turn it off for characters."""

    rotation: float = 0.0
    """Training images are turned by a random angle of at most so many degrees to either side, before the crop."""

    quarter_turns: bool = False
    """Whether each training class, turned by 90, 180 and 270 degrees, makes three further ones: an epoch then has four
    times the images. For characters and the like, of which a turned one is another."""

    fill: int = 255
    """Grey level, 0 (black) to 255 (white), of the corners that a turned image leaves empty."""

    interpolation: Interpolation = "bilinear"
    """How pixels are interpolated when an image is scaled; always with antialiasing."""

    def __post_init__(self) -> None:
        _check(
            self.interpolation in get_args(Interpolation), "interpolation", self.interpolation, "bilinear or bicubic"
        )
        check_fields(self, RecipeError, "images.")
        least_scale, greatest_scale = _pair("crop_scale", self.crop_scale)
        least_ratio, greatest_ratio = _pair("crop_ratio", self.crop_ratio)
        _check(1 <= self.size <= LARGEST_SIDE, "size", self.size, f"1 to {LARGEST_SIDE:,}")
        expected = f"images.size ({self.size}) to {LARGEST_SIDE:,}"
        _check(self.size <= self.resize <= LARGEST_SIDE, "resize", self.resize, expected)
        _check(
            0 < least_scale <= greatest_scale <= 1,
            "crop_scale",
            self.crop_scale,
            "a least and a greatest fraction, above 0 and up to 1",
        )
        _check(
            0 < least_ratio <= greatest_ratio < math.inf,
            "crop_ratio",
            self.crop_ratio,
            "a least and a greatest ratio, above 0",
        )
        _check(0 <= self.rotation <= 180, "rotation", self.rotation, "between 0 and 180 degrees")
        _check(0 <= self.fill <= 255, "fill", self.fill, "between 0 and 255")
        _check(
            0 < self.test_scale < math.inf
            and round(self.test_scale * self.size) >= 1
            and round(self.test_scale * self.resize) <= LARGEST_SIDE,
            "test_scale",
            self.test_scale,
            f"above 0, so that the {self.resize} pixels of images.resize become {LARGEST_SIDE:,} at most",
        )

    @cached_property
    def at_test(self) -> "ImageSettings":
        """With the sizes of the images that are embedded, and so a `test_scale` of 1."""
        size, resize = (round(self.test_scale * side) for side in (self.size, self.resize))
        return self if self.test_scale == 1 else replace(self, size=size, resize=resize, test_scale=1.0)

    @property
    def as_trained(self) -> "ImageSettings":
        """With a `test_scale` of 1: whole images of the size that training sees."""
        return replace(self, test_scale=1.0)


def _check(holds: bool, key: str, found: object, expected: str) -> None:
    check_setting(holds, f"images.{key}", found, expected)


def _pair(key: str, values: Sequence[float]) -> tuple[float, float]:
    _check(len(values) == 2, key, values, "two numbers, the least and the greatest")
    return values[0], values[1]
