"""Which images come together in a step: the global batches of an epoch, and each process's part of them.

Batches follow from (seed, epoch) alone, so any process can draw those of any epoch without a saved state.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from proxygml.errors import RecipeError, counted

Indices = npt.NDArray[np.int64]


class Batches(Sampler[list[int]]):
    """The batches of an epoch, as lists of image indices; with several processes, the part of one of them.

    Process r of W takes every W-th image of a global batch, from r on. Where the batch does not divide by W, the last
    processes repeat one image each; after the parts are gathered, the batch must be cut to its entry of `sizes`.

    Args:
        class_numbers: (n,) the class of each image, 0..C-1.
        batch_size: images of a global batch.
        images_per_class: images of a class in a batch; 0 shuffles all images.
        seed: 0 or more.
        rank, world_size: this process, and how many there are.

    Raises:
        RecipeError: fewer classes than a batch needs.
    """

    def __init__(
        self,
        class_numbers: Sequence[int] | Indices,
        batch_size: int,
        images_per_class: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.class_numbers = np.asarray(class_numbers, dtype=np.int64)
        self.batch_size = batch_size
        self.images_per_class = images_per_class
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = -1
        check_batch_classes(len(np.unique(self.class_numbers)), batch_size, images_per_class)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.batches = self._deal()

    def order(self) -> Indices:
        """The images of the epoch in the order in which they are dealt into batches."""
        generator = np.random.default_rng((self.seed, self.epoch))
        if self.images_per_class == 0:
            return generator.permutation(len(self.class_numbers))
        return _grouped_order(self.class_numbers, self.batch_size, self.images_per_class, generator)

    def _deal(self) -> list[Indices]:
        """The epoch's batches over all processes. A last batch of a single image is left out: it has no statistics."""
        order = self.order()
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            share = -(-len(batch) // self.world_size)
            padded = np.resize(batch, share * self.world_size)
            yield padded[self.rank :: self.world_size].tolist()

    @property
    def sizes(self) -> list[int]:
        """How many images each global batch holds."""
        return [len(batch) for batch in self.batches]

    def __len__(self) -> int:
        return len(self.batches)


def check_batch_classes(num_classes: int, batch_size: int, images_per_class: int) -> None:
    """Raise RecipeError where there are fewer classes than a batch needs."""
    if images_per_class and num_classes * images_per_class < batch_size:
        raise RecipeError(
            f"a batch of {batch_size} with images_per_class {images_per_class} needs "
            f"{counted(batch_size // images_per_class, 'class')}, but {num_classes:,} can be trained on"
        )


def _grouped_order(classes: Indices, batch_size: int, group_size: int, generator: np.random.Generator) -> Indices:
    """Every image at least once, in groups of `group_size` of one class, no class twice in a batch.

    A batch draws its classes in proportion to the groups that they have left; near the end of the epoch, where too few
    have any, it is filled up with images of other classes.
    """
    members = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    groups = [_groups(images, group_size, generator) for images in members]
    left = np.array([len(of_class) for of_class in groups])
    per_batch = batch_size // group_size
    order: list[Indices] = []
    while left.any():
        drawn = generator.choice(
            len(left), min(per_batch, int(np.count_nonzero(left))), replace=False, p=left / left.sum()
        )
        left[drawn] -= 1
        order += [groups[c][left[c]] for c in drawn]
        others = np.setdiff1d(np.arange(len(left)), drawn)
        filling = generator.permutation(others)[: per_batch - len(drawn)]
        order += [_groups(members[c], group_size, generator)[0] for c in filling]
    return np.concatenate(order)


def _groups(images: Indices, group_size: int, generator: np.random.Generator) -> list[Indices]:
    """The images in random order, cut into groups; the last is topped up with images drawn again."""
    missing = -len(images) % group_size
    again = generator.choice(images, missing, replace=missing > len(images))
    return list(np.concatenate([generator.permutation(images), again]).reshape(-1, group_size))
