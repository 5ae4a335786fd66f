"""From a decoded image to the square that the network sees: crops, scaling, random distortions.

Everything here stays 8-bit RGB on the CPU; the embedder turns it into the network's own input space.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from proxygml.data.images.settings import ImageSettings
from proxygml.errors import ImageError

Transform = Callable[[Tensor], Tensor]


class Region(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def test_transform(settings: ImageSettings) -> Transform:
    """The transform of images that are evaluated, indexed or searched: scale the shorter side, cut out the centre.

    Returns:
        A function from uint8 (3, H, W), of any H and W from 1, to uint8 (3, S, S), S = settings.at_test.size.
    """
    size, resize = settings.at_test.size, settings.at_test.resize

    def transform(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        # The centre crop uses no more than this; scaling a whole strip of 1 x 60,000 pixels would fill the memory.
        longest = 3 * min(height, width)
        image = centre(image, min(height, longest), min(width, longest))
        height, width = image.shape[-2:]
        least = min(height, width)
        image = scaled(image, resize * height // least, resize * width // least, settings.interpolation)
        return centre(image, size, size)

    return transform


def train_transform(settings: ImageSettings, generator: np.random.Generator) -> Transform:
    """The transform of training images: turn, cut out a random part, scale it, perhaps mirror it.

    The crop has the distribution of torchvision's RandomResizedCrop: area uniform, ratio log-uniform. Every call draws
    from `generator`, and from nothing else.

    Returns:
        A function from uint8 (3, H, W), of any H and W from 1, to uint8 (3, size, size).
    """

    def transform(image: Tensor) -> Tensor:
        if settings.rotation:
            image = turned(image, generator.uniform(-settings.rotation, settings.rotation), settings.fill)
        top, left, height, width = random_crop(image.shape[-2], image.shape[-1], settings, generator)
        return finish_crop(image[:, top : top + height, left : left + width], settings, generator)

    return transform


def centre(image: Tensor, height: int, width: int) -> Tensor:
    """The centre of an image (3, H, W) that is at least that high and wide, as torchvision cuts it."""
    top, left = round((image.shape[-2] - height) / 2), round((image.shape[-1] - width) / 2)
    return image[:, top : top + height, left : left + width]


def turned(image: Tensor, degrees: float, fill: int) -> Tensor:
    """An image (3, H, W) turned anticlockwise about its centre; its corners get the grey level `fill`."""
    # Loaded here: it loads PyTorch's compiler too, and most commands turn no image.
    from torchvision.transforms import InterpolationMode  # noqa: PLC0415
    from torchvision.transforms.v2 import functional as F  # noqa: PLC0415

    rotated: Tensor = F.rotate(image, degrees, InterpolationMode.BILINEAR, fill=[float(fill)] * 3)
    return rotated


def finish_crop(crop: Tensor, settings: ImageSettings, generator: np.random.Generator) -> Tensor:
    """Scale a training crop, perhaps mirror it."""
    square = scaled(crop, settings.size, settings.size, settings.interpolation)
    return square.flip(-1) if settings.horizontal_flip and generator.random() < 0.5 else square


def scale_down(image: Tensor, shorter_side: int) -> Tensor:
    """Scale uint8 (3, H, W) until its shorter side has that many pixels; a smaller image is returned as it is."""
    return scaled(image, *scaled_size(image.shape[-2], image.shape[-1], shorter_side), "bicubic")


def scaled_size(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """The height and width that scale_down leaves."""
    least = min(height, width)
    if least <= shorter_side:
        return height, width
    return height * shorter_side // least, width * shorter_side // least


def scaled(image: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """Scale uint8 (3, H, W) to that height and width, with antialiasing."""
    # As a batch of one whose strides say that the channels come last: PyTorch then neither unpacks nor packs them.
    # Its own function, because torchvision's in front of it packs the result another way, which `collate` would undo.
    batch = image.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)
    return interpolate(batch, (height, width), mode=interpolation, antialias=True, align_corners=False)[0]


def random_crop(height: int, width: int, settings: ImageSettings, generator: np.random.Generator) -> Region:
    """Draw a training crop inside an image of that height and width.

    It follows the rules of torchvision's RandomResizedCrop: the first of ten draws that fits, or else the largest
    centred part whose ratio is allowed.
    """
    least_ratio, greatest_ratio = settings.crop_ratio
    for _ in range(10):
        area = height * width * generator.uniform(*settings.crop_scale)
        ratio = math.exp(generator.uniform(math.log(least_ratio), math.log(greatest_ratio)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(generator.integers(height - crop_height, endpoint=True))
            left = int(generator.integers(width - crop_width, endpoint=True))
            return Region(top, left, crop_height, crop_width)
    crop_height = max(1, min(height, round(width / least_ratio)))
    crop_width = max(1, min(width, round(height * greatest_ratio)))
    return Region((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def cut_box(image: Tensor, box: Sequence[int], name: str) -> Tensor:
    """Cut a box out of an upright image.

    Args:
        image: (3, H, W), as decode_image returns it: the box is in pixels of the image after its orientation tag was
            applied.
        box: x_1, y_1, x_2, y_2 with x_1 <= x < x_2 and y_1 <= y < y_2 inside; what lies outside the image is clipped.
            (0, 0, 0, 0) is the whole image.
        name: what the message calls the image.

    Raises:
        ImageError: nothing of the box lies inside the image.
    """
    top, left, height, width = box_region(box, image.shape[-2], image.shape[-1], name)
    return image[:, top : top + height, left : left + width]


def box_region(box: Sequence[int], height: int, width: int, name: str) -> Region:
    """The part of an image that a box cuts out; see cut_box."""
    if not any(box):
        return Region(0, 0, height, width)
    left, top, right, bottom = max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])
    if left >= right or top >= bottom:
        found = ", ".join(map(str, box))
        raise ImageError(
            f"{name} is {width} x {height} pixels, and its box x_1, y_1, x_2, y_2 = {found} cuts out nothing"
        )
    return Region(top, left, bottom - top, right - left)
