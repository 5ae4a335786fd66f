"""The batches of an epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxygml.errors import RecipeError
from proxygml.training.sampler import Batches


def test_plain_shuffling_shows_every_image_once_in_a_new_order_each_epoch() -> None:
    batches = Batches(np.zeros(50), batch_size=8, seed=3)
    first = [index for batch in batches for index in batch]
    assert sorted(first) == list(range(50))
    assert batches.sizes == [8] * 6 + [2]
    batches.set_epoch(1)
    assert [index for batch in batches for index in batch] != first
    assert [index for batch in Batches(np.zeros(50), 8, seed=3) for index in batch] == first


def test_last_batch_of_a_single_image_is_left_out() -> None:
    assert Batches(np.zeros(17), batch_size=8).sizes == [8, 8]


@given(
    st.lists(st.integers(1, 9), min_size=4, max_size=12),
    st.sampled_from([(4, 1), (4, 2), (8, 2), (12, 3), (8, 8)]),
    st.integers(0, 1000),
)
def test_images_per_class(class_sizes: list[int], shape: tuple[int, int], seed: int) -> None:
    """Every batch holds m images of each of its classes, and every image comes at least once in an epoch."""
    batch_size, per_class = shape
    classes = np.repeat(np.arange(len(class_sizes)), class_sizes)
    batches = [np.array(batch) for batch in Batches(classes, batch_size, per_class, seed)]
    for batch in batches:
        assert len(batch) == batch_size
        assert set(np.unique(classes[batch], return_counts=True)[1]) == {per_class}
    assert set(np.concatenate(batches)) == set(range(len(classes)))


def test_too_few_classes_are_named() -> None:
    with pytest.raises(RecipeError, match="batch of 32 with images_per_class 4 needs 8 classes, but 3 can be"):
        Batches([0, 1, 2], 32, 4)


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("per_class", [0, 2])
def test_the_parts_of_all_processes_make_the_global_batches(world_size: int, per_class: int) -> None:
    classes = np.arange(30) % 6
    whole = list(Batches(classes, 8, per_class))
    parts = [list(Batches(classes, 8, per_class, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for number, batch in enumerate(whole):
        shares = [part[number] for part in parts]
        assert len({len(share) for share in shares}) == 1
        interleaved = np.array(shares).T.flatten().tolist()
        assert interleaved[: len(batch)] == batch
