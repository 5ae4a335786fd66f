"""Quarter turns of training images as further classes, which characters allow: a turned letter is another letter.

The setting is `images.quarter_turns`. The idea is that of Santoro et al. 2016 and Vinyals et al. 2016 for Omniglot.
"""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from proxygml.data.images.settings import ImageSettings
from proxygml.data.images.tensors import ImageDataset

TURNS = 4
"""Upright, and turned by 90, 180 and 270 degrees against the clock."""


def num_trained(num_classes: int, images: ImageSettings) -> int:
    """How many classes there are to train on, those of turned images included."""
    return TURNS * num_classes if images.quarter_turns else num_classes


class TurnedImages(Dataset[tuple[Tensor, int]]):
    """Each image of a dataset in all turns: item i + n k is image i after k quarter turns; see ImageDataset."""

    def __init__(self, images: ImageDataset) -> None:
        self.images = images

    def set_epoch(self, epoch: int) -> None:
        self.images.set_epoch(epoch)

    def __len__(self) -> int:
        return TURNS * len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        turns, upright = divmod(index, len(self.images))
        square, _ = self.images[upright]
        return square.rot90(turns, (1, 2)), index


def turned_labels(labels: Tensor, num_classes: int) -> Tensor:
    """The classes of TurnedImages, int64 (TURNS n,), for those of its images, int64 (n,): c + C k."""
    return torch.cat([labels + num_classes * turn for turn in range(TURNS)])


def turned_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The names of all TURNS C classes."""
    turned = [f"{name}, turned {90 * turn}" for turn in range(1, TURNS) for name in classes]
    return (*classes, *turned)
