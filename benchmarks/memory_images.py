"""A catalog's images decoded once and kept in memory, and random crops of them made in batches on the device.

For training many small networks on few images: a run then waits for no decoder. The crops are those that
proxygml.data.images.tensors.ImageDataset draws for the same seed, epoch and image.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proxygml.data.catalog import Catalog
from proxygml.data.images.settings import ImageSettings
from proxygml.data.images.tensors import decode_image
from proxygml.data.images.transforms import cut_box, random_crop, test_transform

WHOLE = (0, 0, 0, 0)


@dataclass(frozen=True)
class Split:
    """The images of a split, and what the catalog says of them.

    Attributes:
        catalog: its rows.
        images: uint8 (3, H, W) each.
    """

    catalog: Catalog
    images: list[Tensor]
    _squares: dict[tuple[int, int, str], Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, catalog: Catalog, threads: int) -> Split:
        """Decode the images, several at a time."""
        boxes = [WHOLE] * len(catalog) if catalog.boxes is None else catalog.boxes.tolist()

        def one(row: int) -> Tensor:
            path = str(catalog.paths[row])
            return cut_box(decode_image(path), boxes[row], path).contiguous()

        with ThreadPoolExecutor(threads) as pool:
            return cls(catalog, list(pool.map(one, range(len(catalog)))))

    def squares(self, settings: ImageSettings) -> Tensor:
        """The images as they are evaluated, uint8 (n, 3, S, S), S = settings.at_test.size; made once for each."""
        key = settings.at_test.size, settings.at_test.resize, settings.interpolation
        if key not in self._squares:
            transform = test_transform(settings)
            self._squares[key] = torch.stack([transform(image) for image in self.images])
        return self._squares[key]


class Crops:
    """Training images on a device, and random crops of them.

    Args:
        images: uint8 (3, H, W) each; they are padded to one size.
        settings: of the crops. Rotation is not supported.
        seed: of the run.
        device: where the images are kept and the crops made.
    """

    def __init__(self, images: Sequence[Tensor], settings: ImageSettings, seed: int, device: torch.device) -> None:
        if settings.rotation:
            raise ValueError(f"images.rotation is {settings.rotation}, but crops in memory are not turned")
        self.settings, self.seed, self.device = settings, seed, device
        self.sizes = [(image.shape[1], image.shape[2]) for image in images]
        height, width = (max(sides) for sides in zip(*self.sizes, strict=True))
        self.pixels = torch.zeros(len(images), 3, height, width, dtype=torch.uint8, device=device)
        for kept, image in zip(self.pixels, images, strict=True):
            kept[:, : image.shape[1], : image.shape[2]] = image
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the crops of an epoch."""
        self.regions = torch.zeros(len(self.sizes), 4)  # top, left, height, width
        self.mirrored = torch.zeros(len(self.sizes), dtype=torch.bool)
        for index, (height, width) in enumerate(self.sizes):
            generator = np.random.default_rng((self.seed, epoch, index))
            self.regions[index] = torch.tensor(random_crop(height, width, self.settings, generator))
            self.mirrored[index] = self.settings.horizontal_flip and generator.random() < 0.5
        self.regions, self.mirrored = self.regions.to(self.device), self.mirrored.to(self.device)

    def batch(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """The crops of these images, uint8 (m, 3, size, size)."""
        rows, size = torch.from_numpy(indices).to(self.device), self.settings.size
        top, left, height, width = self.regions[rows].unbind(1)
        down = resize_weights(top, height, size, self.pixels.shape[2])
        across = resize_weights(left, width, size, self.pixels.shape[3])
        across = torch.where(self.mirrored[rows, None, None], across.flip(1), across)
        # Along rows first, and rounded between, as PyTorch scales 8-bit images.
        narrow = (self.pixels[rows].float() @ across[:, None].mT).round_()
        return (down[:, None] @ narrow).round_().clamp_(0, 255).byte()


def resize_weights(start: Tensor, length: Tensor, size: int, total: int) -> Tensor:
    """The weight of each pixel of a side in each pixel of the scaled crop: bilinear interpolation with antialiasing.

    The filter is that of torch.nn.functional.interpolate with antialias=True, which gets the crop alone.

    Args:
        start: (m,) the first pixel of each crop.
        length: (m,) how many pixels it has.
        size: how many it is scaled to.
        total: how many pixels the side of the image has.

    Returns:
        float32 (m, size, total); rows sum to 1.
    """
    scale = (length / size)[:, None]
    centre = start[:, None] + scale * (torch.arange(size, device=start.device) + 0.5)
    pixel = torch.arange(total, device=start.device) + 0.5
    distance = (pixel - centre[:, :, None]).abs() / scale.clamp(min=1)[:, :, None]
    first, last = start[:, None, None], (start + length)[:, None, None]
    weights = (1 - distance).clamp_(min=0) * ((pixel > first) & (pixel < last))
    return weights / weights.sum(dim=2, keepdim=True)
