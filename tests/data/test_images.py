"""Decoding keeps its promises on every kind of file, and crops depend on (seed, epoch, index) alone."""

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy.stats import ks_2samp
from torch.utils.data import DataLoader
from torchvision.transforms import RandomResizedCrop, v2

from proxygml.data import images
from proxygml.data.images import ImageDataset, ImageSettings, decode_image
from proxygml.errors import ImageError, RecipeError

ORIENTATION = 274


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def picture(height: int = 30, width: int = 40) -> Image.Image:
    """Colours that tell up from down and left from right."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([255 * x / width, 255 * y / height, 255 - 128 * x / width], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written out by hand, for the kinds that Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    frame = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", height, width) + b"\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    return b"\xff\xd8" + b"\xff\xe0\x00\x04\xff\xc0" + frame + b"\xff\xd9"


# --- decoding: what comes out -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_lossless_formats_come_out_exactly(format: str) -> None:
    few_colours = picture().quantize(64).convert("RGB")
    decoded = decode_image(encoded(few_colours, format, **({"lossless": True} if format == "WEBP" else {})))
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded, as_tensor(few_colours))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_come_out_as_pillow_decodes_them(mode: str) -> None:
    data = encoded(picture().convert(mode), "JPEG", quality=95)
    decoded = decode_image(data)
    expected = as_tensor(Image.open(io.BytesIO(data)))
    assert decoded.shape == (3, 30, 40)
    assert (decoded.int() - expected.int()).abs().max() <= 2


def test_jpegs_are_decoded_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(), "JPEG")
    monkeypatch.delattr(Image, "open")
    assert decode_image(data).shape == (3, 30, 40)


def test_jpegs_are_decoded_by_pillow_where_torchvision_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise RuntimeError("unsupported")

    data = encoded(picture(), "JPEG", quality=95, exif=oriented(6))
    expected = decode_image(data)
    monkeypatch.setattr(images, "_decode_jpeg", refuse)
    assert (decode_image(data).int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_modes_without_transparency(mode: str) -> None:
    image = picture().convert(mode)
    # Compressed, because Pillow 12.3 cannot read the YCbCr TIFF that it writes without.
    options = {"format": "PNG"} if mode in "1LP" else {"format": "TIFF", "compression": "tiff_lzw"}
    data = encoded(picture(), "PNG") if mode == "HSV" else encoded(image, **options)
    assert (decode_image(data).int() - as_tensor(image).int()).abs().max() <= 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_laid_over_white(mode: str) -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putalpha(Image.frombytes("L", (3, 1), bytes([255, 128, 0])))
    converted = image.convert("LA" if mode == "LA" else "RGBA")
    assert decode_image(encoded(converted, "PNG"))[:, 0].tolist() == [[0, 127, 255]] * 3


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_transparent_palette_entries_become_white(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    decoded = decode_image(encoded(image, "PNG", transparency=transparency))
    assert decoded[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]


def test_a_transparent_grey_level_becomes_white() -> None:
    image = Image.frombytes("L", (2, 1), bytes([7, 99]))
    assert decode_image(encoded(image, "PNG", transparency=7))[0, 0].tolist() == [255, 99]


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(format: str) -> None:
    levels = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    decoded = decode_image(encoded(Image.fromarray(levels), format))
    assert decoded[:, 0].tolist() == [[0, 0, 1, 128, 255]] * 3


def test_16_bit_colour_is_scaled() -> None:
    row = b"\x00" + np.array([0, 32768, 65535, 256, 255, 51200], dtype=">u2").tobytes()
    assert decode_image(png(2, 1, depth=16, colour=2, rows=row))[:, 0].T.tolist() == [[0, 128, 255], [1, 0, 200]]


def test_16_bit_grey_with_alpha_is_laid_over_white() -> None:
    row = b"\x00" + np.array([0, 65535, 0, 0], dtype=">u2").tobytes()
    assert decode_image(png(2, 1, depth=16, colour=4, rows=row))[0, 0].tolist() == [0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    image = picture()
    data = encoded(image, format, exif=oriented(orientation), **({"quality": 95} if format == "JPEG" else {}))
    image.getexif()[ORIENTATION] = orientation
    expected = as_tensor(ImageOps.exif_transpose(image))
    decoded = decode_image(data)
    assert decoded.shape == expected.shape
    assert (decoded.int() - expected.int()).abs().float().mean() < 8


def test_orientation_of_16_bit_grey() -> None:
    levels = np.array([[0, 256 * 9]], dtype=np.uint16)
    decoded = decode_image(encoded(Image.fromarray(levels), "PNG", exif=oriented(6)))
    assert decoded[0].tolist() == [[0], [9]]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(format: str) -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    data = encoded(red, format, save_all=True, append_images=[blue], **({"lossless": True} if format == "WEBP" else {}))
    assert decode_image(data)[:, 0, 0].tolist() == [255, 0, 0]


# --- decoding: what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("part", [0.001, 0.02, 0.5, 0.9])
def test_truncated_files_are_named(tmp_path: Path, format: str, part: float) -> None:
    data = encoded(picture(100, 100), format)
    path = tmp_path / f"cut.{format.lower()}"
    path.write_bytes(data[: math.ceil(part * len(data))])
    with pytest.raises(ImageError, match=r"cut\..*(truncated|damaged|no image)"):
        decode_image(path)


def test_empty_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html><body>404</body></html>")
    with pytest.raises(ImageError, match=r"empty\.jpg is empty"):
        decode_image(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match=r"page\.jpg is no image .*<html>"):
        decode_image(str(tmp_path / "page.jpg"))
    with pytest.raises(ImageError, match=r"nowhere\.jpg cannot be read: No such file"):
        decode_image(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match=r"cannot be read: Is a directory"):
        decode_image(tmp_path)
    with pytest.raises(ImageError, match=r"image in memory \(3 bytes\)"):
        decode_image(b"abc")


@pytest.mark.parametrize(
    "bomb", [png(20_000, 20_000, 1, 0, b""), png(13_000, 13_800, 8, 0, b""), jpeg_header(65_000, 60_000)]
)
def test_too_many_pixels_are_refused_by_the_header(bomb: bytes) -> None:
    with pytest.raises(ImageError, match="pixels"):
        decode_image(bomb)


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match="floating-point"):
        decode_image(encoded(Image.new("F", (2, 2)), "TIFF"))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TGA", "WEBP"]), st.data())
def test_damaged_bytes_give_an_image_or_an_image_error(format: str, data: st.DataObject) -> None:
    damaged = bytearray(encoded(picture(), format))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_image(bytes(damaged))
    except ImageError as error:
        assert "image in memory" in str(error)
    else:
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3


# --- decoding: a part of an image ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 3}, {}], ids=str)
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
def test_a_part_has_the_pixels_of_the_whole(tmp_path: Path, subsampling: str, options: dict[str, object]) -> None:
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 50, 3), dtype=np.uint8))
    noisy.save(tmp_path / "a.jpg", subsampling=subsampling, **options)  # type: ignore[arg-type]
    whole = decode_image(tmp_path / "a.jpg")
    for bottom in range(1, 76):
        part = images.decode_part(
            tmp_path / "a.jpg", lambda height, width, b=bottom: images.Region(b // 2, 7, b - b // 2, 30)
        )  # type: ignore[misc]
        assert torch.equal(part, whole[:, bottom // 2 : bottom, 7:37])


def test_a_photo_has_the_pixels_that_pillow_gives_it() -> None:
    photo = encoded(picture(333, 500), "JPEG", quality=90)
    expected = as_tensor(Image.open(io.BytesIO(photo)))
    assert torch.equal(decode_image(photo), expected)


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_part_is_of_the_upright_image(tmp_path: Path, format: str, orientation: int) -> None:
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(encoded(picture(), format, exif=oriented(orientation)))
    whole, sizes = decode_image(path), []

    def choose(height: int, width: int) -> images.Region:
        sizes.append((height, width))
        return images.Region(2, 1, 9, 20)

    assert torch.equal(images.decode_part(path, choose), whole[:, 2:11, 1:21])
    assert sizes == [tuple(whole.shape[1:])]


def test_parts_of_damaged_files_are_refused(tmp_path: Path) -> None:
    data = encoded(picture(), "JPEG")
    for name, content in (
        ("cut.jpg", data[: len(data) // 2]),
        ("bomb.jpg", jpeg_header(65_000, 60_000)),
        ("no.png", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=re.escape(name)):
            images.decode_part(tmp_path / name, lambda height, width: images.Region(0, 0, 1, 1))


# --- settings and boxes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, r"images\.size is 0, but must be 1 or more"),
        ({"size": 288}, r"images\.resize is 256, but must be images\.size \(288\) or more"),
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
    assert images.cut_box(image, (1, 0, 3, 2), "a")[0].tolist() == [[1, 2], [5, 6]]
    assert images.cut_box(image, (-5, 2, 99, 99), "a")[0].tolist() == [[8, 9, 10, 11]]
    assert torch.equal(images.cut_box(image, (0, 0, 0, 0), "a"), image)
    with pytest.raises(ImageError, match=r"a\.png is 4 x 3 pixels, and its box .* = 4, 0, 9, 2"):
        images.cut_box(image, (4, 0, 9, 2), "a.png")


# --- transforms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(30, 40), (57, 23), (8, 8), (3, 5), (90, 31)])
def test_test_transform_is_torchvisions(height: int, width: int, interpolation: str) -> None:
    image = as_tensor(picture(height, width))
    mode = v2.InterpolationMode(interpolation)
    expected = v2.Compose([v2.Resize(24, mode, antialias=True), v2.CenterCrop(20)])(image)
    transform = images.test_transform(ImageSettings(size=20, resize=24, interpolation=interpolation))
    assert torch.equal(transform(image), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50_000), (50_000, 1), (2, 7)])
def test_every_shape_comes_out_as_the_square(height: int, width: int) -> None:
    image = torch.full((3, height, width), 77, dtype=torch.uint8)
    settings = ImageSettings(size=20, resize=24, crop_scale=(0.2, 0.9))
    for transform in images.test_transform(settings), images.train_transform(settings, np.random.default_rng(0)):
        square = transform(image)
        assert square.shape == (3, 20, 20)
        assert (square == 77).all()


@pytest.mark.parametrize(("height", "width"), [(60, 80), (20, 100), (100, 20)])
def test_random_crops_have_torchvisions_distribution(height: int, width: int) -> None:
    settings = ImageSettings(crop_scale=(0.2, 0.9), crop_ratio=(0.5, 2.0))
    generator, image, draws = np.random.default_rng(0), torch.empty(3, height, width), 4000
    ours = np.array([images.random_crop(height, width, settings, generator) for _ in range(draws)])
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 0.9], [0.5, 2.0]) for _ in range(draws)])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).statistic < 0.045  # exceeded by chance once in 1,700 times
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_a_turned_image_gets_the_fill_in_its_corners() -> None:
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    settings = ImageSettings(size=32, resize=32, crop_scale=(1, 1), crop_ratio=(1, 1), rotation=45, fill=200)
    transform = images.train_transform(settings, np.random.default_rng(0))
    turned = torch.stack([transform(image) for _ in range(20)])
    assert (turned[:, :, 16, 16] == 0).all()
    assert (turned[:, :, 0, 0] == 200).all(dim=1).sum() > 10


def test_half_of_the_images_are_mirrored() -> None:
    image = as_tensor(picture(16, 16))
    whole = {"size": 16, "resize": 16, "crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    generator = np.random.default_rng(0)
    transform = images.train_transform(ImageSettings(**whole), generator)  # type: ignore[arg-type]
    squares = [transform(image) for _ in range(200)]
    mirrored = sum(torch.equal(square, image.flip(2)) for square in squares)
    assert mirrored + sum(torch.equal(square, image) for square in squares) == 200
    assert 70 < mirrored < 130
    never = images.train_transform(ImageSettings(**whole, horizontal_flip=False), generator)  # type: ignore[arg-type]
    assert all(torch.equal(never(image), image) for _ in range(20))


# --- the data set -------------------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for i in range(6):
        picture(20 + i, 30).rotate(15 * i).save(tmp_path / f"{i}.png")
    return sorted(tmp_path.glob("*.png"))


SMALL = ImageSettings(size=12, resize=14, rotation=5)


def epoch_of(loader: DataLoader[tuple[torch.Tensor, int]]) -> dict[int, torch.Tensor]:
    return {int(i): image for batch, indices in loader for image, i in zip(batch, indices, strict=True)}


def same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[i], other[i]) for i in one)


def test_crops_depend_on_seed_epoch_and_index_alone(paths: list[Path]) -> None:
    dataset = ImageDataset(paths, None, SMALL, training=True, seed=3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = [dataset[i][0] for i in range(6)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert all(torch.equal(dataset[i][0], first[i]) for i in reversed(range(6)))
    again = ImageDataset(paths, None, SMALL, training=True, seed=3)
    assert torch.equal(again[4][0], first[4])
    assert not torch.equal(ImageDataset(paths, None, SMALL, training=True, seed=4)[4][0], first[4])
    dataset.set_epoch(1)
    assert not torch.equal(dataset[4][0], first[4])
    twins = ImageDataset([paths[0], paths[0]], None, SMALL, training=True)
    assert not torch.equal(twins[0][0], twins[1][0])


def test_training_items_are_the_random_crop_of_the_whole_image(tmp_path: Path) -> None:
    """Whether or not the file is decoded in part."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    settings, boxes = ImageSettings(size=12, resize=12), np.array([[5, 20, 66, 90]])
    dataset = ImageDataset([tmp_path / "a.jpg"], boxes, settings, training=True, seed=3)
    cut = images.cut_box(decode_image(tmp_path / "a.jpg"), (5, 20, 66, 90), "a")
    for epoch in range(20):
        dataset.set_epoch(epoch)
        expected = images.train_transform(settings, np.random.default_rng((3, epoch, 0)))(cut)
        assert torch.equal(dataset[0][0], expected)


def test_a_batch_holds_its_items_channels_last(paths: list[Path]) -> None:
    dataset = ImageDataset(paths, None, SMALL, training=True)
    batch, indices = images.collate([dataset[i] for i in (3, 1)])
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert batch.dtype == torch.uint8
    assert indices.tolist() == [3, 1]
    assert torch.equal(batch, torch.stack([dataset[3][0], dataset[1][0]]))


def test_workers_that_outlive_an_epoch_see_the_next(paths: list[Path]) -> None:
    alone = ImageDataset(paths, None, SMALL, training=True, seed=3)
    dataset = ImageDataset(paths, None, SMALL, training=True, seed=3)
    loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=2, persistent_workers=True)
    for epoch in (0, 1, 5):
        dataset.set_epoch(epoch)
        alone.set_epoch(epoch)
        assert same(epoch_of(loader), {i: alone[i][0] for i in range(6)})
    dataset.set_epoch(6)
    next(iter(loader))  # an epoch that is broken off leaves prefetched batches behind
    dataset.set_epoch(7)
    alone.set_epoch(7)
    assert same(epoch_of(loader), {i: alone[i][0] for i in range(6)})


def test_workers_that_are_spawned_share_the_epoch(paths: list[Path]) -> None:
    dataset = ImageDataset(paths, None, SMALL, training=True, seed=3)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn", persistent_workers=True
    )
    for epoch in (0, 2):
        dataset.set_epoch(epoch)
        for image, index in loader:
            assert torch.equal(image, dataset[index][0])


def test_test_images_are_the_centre_of_their_box(paths: list[Path]) -> None:
    boxes = np.array([[0, 0, 0, 0]] * 5 + [[3, 4, 20, 22]])
    dataset = ImageDataset(paths, boxes, SMALL, training=False)
    image, index = dataset[5]
    assert index == 5
    assert image.shape == (3, 12, 12)
    assert torch.equal(image, images.test_transform(SMALL)(decode_image(paths[5])[:, 4:22, 3:20]))
    assert torch.equal(dataset[0][0], images.test_transform(SMALL)(decode_image(paths[0])))
    assert len(dataset) == 6


def test_wrong_arguments_of_the_data_set_are_named(paths: list[Path]) -> None:
    with pytest.raises(ImageError, match=r"shape \(2, 4\), but there are 6 images"):
        ImageDataset(paths, np.zeros((2, 4), dtype=np.int64), SMALL, training=False)
    with pytest.raises(RecipeError, match="seed is -1"):
        ImageDataset(paths, None, SMALL, training=True, seed=-1)
    with pytest.raises(ImageError, match=r"0\.png is 30 x 20 pixels, and its box"):
        ImageDataset(paths[:1], np.array([[40, 0, 50, 9]]), SMALL, training=False)[0]


def test_a_jpeg_whose_end_is_padded_with_zeros_is_truncated() -> None:
    """As an unfinished download into a file of the full size leaves it."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")
    whole = file.getvalue()
    assert decode_image(whole).shape == (3, 64, 64)
    assert decode_image(whole + b"what cameras append").shape == (3, 64, 64)
    with pytest.raises(ImageError, match="truncated"):
        decode_image(whole[: len(whole) // 2] + bytes(len(whole) // 2))
