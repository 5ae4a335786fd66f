"""Settings are checked, boxes are cut, and crops have the distribution of torchvision's."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop, v2

from proxygml.data.images import transforms
from proxygml.data.images.settings import ImageSettings
from proxygml.errors import ImageError, RecipeError
from tests.helpers.pictures import as_tensor, gradient

# --- settings and boxes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, r"images\.size is 0, but must be 1 to 4,096"),
        ({"size": 288}, r"images\.resize is 256, but must be images\.size \(288\) to 4,096"),
        ({"crop_scale": (0.0, 1.0)}, r"images\.crop_scale is \(0\.0, 1\.0\)"),
        ({"crop_scale": (0.5, 0.2)}, r"images\.crop_scale"),
        ({"crop_scale": (0.5, 1.5)}, r"images\.crop_scale"),
        ({"crop_scale": (0.5,)}, r"images\.crop_scale is \(0\.5,\), but must be two numbers"),
        ({"crop_ratio": (0.0, 1.0)}, r"images\.crop_ratio"),
        ({"crop_ratio": (1.0, math.inf)}, r"images\.crop_ratio"),
        ({"rotation": -3.0}, r"images\.rotation is -3\.0, but must be between 0 and 180 degrees"),
        ({"rotation": math.nan}, r"images\.rotation"),
        ({"fill": 256}, r"images\.fill is 256"),
        ({"interpolation": "nearest"}, r"images\.interpolation is 'nearest', but must be bilinear or bicubic"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ImageSettings(**settings)  # type: ignore[arg-type]


def test_boxes_are_cut_from_the_upright_image_and_clipped() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4).expand(3, 3, 4)
    assert transforms.cut_box(image, (1, 0, 3, 2), "a")[0].tolist() == [[1, 2], [5, 6]]
    assert transforms.cut_box(image, (-5, 2, 99, 99), "a")[0].tolist() == [[8, 9, 10, 11]]
    assert torch.equal(transforms.cut_box(image, (0, 0, 0, 0), "a"), image)
    with pytest.raises(ImageError, match=r"a\.png is 4 x 3 pixels, and its box .* = 4, 0, 9, 2"):
        transforms.cut_box(image, (4, 0, 9, 2), "a.png")


# --- transforms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(30, 40), (57, 23), (8, 8), (3, 5), (90, 31)])
def test_test_transform_is_torchvisions(height: int, width: int, interpolation: str) -> None:
    image = as_tensor(gradient(height, width))
    mode = v2.InterpolationMode(interpolation)
    expected = v2.Compose([v2.Resize(24, mode, antialias=True), v2.CenterCrop(20)])(image)
    transform = transforms.test_transform(ImageSettings(size=20, resize=24, interpolation=interpolation))
    assert torch.equal(transform(image), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50_000), (50_000, 1), (2, 7)])
def test_every_shape_comes_out_as_the_square(height: int, width: int) -> None:
    image = torch.full((3, height, width), 77, dtype=torch.uint8)
    settings = ImageSettings(size=20, resize=24, crop_scale=(0.2, 0.9))
    for transform in (
        transforms.test_transform(settings),
        transforms.train_transform(settings, np.random.default_rng(0)),
    ):
        square = transform(image)
        assert square.shape == (3, 20, 20)
        assert (square == 77).all()


@pytest.mark.parametrize(("height", "width"), [(60, 80), (20, 100), (100, 20)])
def test_random_crops_have_torchvisions_distribution(height: int, width: int) -> None:
    settings = ImageSettings(crop_scale=(0.2, 0.9), crop_ratio=(0.5, 2.0))
    generator, image, draws = np.random.default_rng(0), torch.empty(3, height, width), 4000
    ours = np.array([transforms.random_crop(height, width, settings, generator) for _ in range(draws)])
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 0.9], [0.5, 2.0]) for _ in range(draws)])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).statistic < 0.045  # exceeded by chance once in 1,700 times
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_a_turned_image_gets_the_fill_in_its_corners() -> None:
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    settings = ImageSettings(size=32, resize=32, crop_scale=(1, 1), crop_ratio=(1, 1), rotation=45, fill=200)
    transform = transforms.train_transform(settings, np.random.default_rng(0))
    turned = torch.stack([transform(image) for _ in range(20)])
    assert (turned[:, :, 16, 16] == 0).all()
    assert (turned[:, :, 0, 0] == 200).all(dim=1).sum() > 10


def test_half_of_the_images_are_mirrored() -> None:
    image = as_tensor(gradient(16, 16))
    whole = {"size": 16, "resize": 16, "crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    generator = np.random.default_rng(0)
    transform = transforms.train_transform(ImageSettings(**whole), generator)  # type: ignore[arg-type]
    squares = [transform(image) for _ in range(200)]
    mirrored = sum(torch.equal(square, image.flip(2)) for square in squares)
    assert mirrored + sum(torch.equal(square, image) for square in squares) == 200
    assert 70 < mirrored < 130
    never = transforms.train_transform(ImageSettings(**whole, horizontal_flip=False), generator)  # type: ignore[arg-type]
    assert all(torch.equal(never(image), image) for _ in range(20))
