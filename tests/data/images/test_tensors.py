"""Decoding keeps its promises on every kind of file, and crops depend on (seed, epoch, index) alone."""

import io
import math
import os
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
from torch.utils.data import DataLoader

from proxygml.data.images import decode, transforms
from proxygml.data.images import tensors as images
from proxygml.data.images.settings import ImageSettings
from proxygml.data.images.tensors import ImageDataset, decode_image
from proxygml.errors import ImageError, RecipeError
from tests.helpers.pictures import as_tensor, encoded, gradient

ORIENTATION = 274


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


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
    few_colours = gradient().quantize(64).convert("RGB")
    decoded = decode_image(encoded(few_colours, format, **({"lossless": True} if format == "WEBP" else {})))
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded, as_tensor(few_colours))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_come_out_as_pillow_decodes_them(mode: str) -> None:
    data = encoded(gradient().convert(mode), "JPEG", quality=95)
    decoded = decode_image(data)
    expected = as_tensor(Image.open(io.BytesIO(data)))
    assert decoded.shape == (3, 30, 40)
    assert (decoded.int() - expected.int()).abs().max() <= 2


def test_jpegs_are_decoded_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(gradient(), "JPEG")
    monkeypatch.delattr(Image, "open")
    assert decode_image(data).shape == (3, 30, 40)


def test_jpegs_are_decoded_by_pillow_where_simplejpeg_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise RuntimeError("unsupported")

    data = encoded(gradient(), "JPEG", quality=95, exif=oriented(6))
    expected = decode_image(data)
    monkeypatch.setattr(decode, "decode_jpeg", refuse)
    assert (decode_image(data).int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_modes_without_transparency(mode: str) -> None:
    image = gradient().convert(mode)
    # Compressed, because Pillow 12.3 cannot read the YCbCr TIFF that it writes without.
    options = {"format": "PNG"} if mode in "1LP" else {"format": "TIFF", "compression": "tiff_lzw"}
    data = encoded(gradient(), "PNG") if mode == "HSV" else encoded(image, **options)
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
    image = gradient()
    data = encoded(image, format, exif=oriented(orientation), **({"quality": 95} if format == "JPEG" else {}))
    image.getexif()[ORIENTATION] = orientation
    expected = as_tensor(ImageOps.exif_transpose(image))
    decoded = decode_image(data)
    assert decoded.shape == expected.shape
    assert (decoded.int() - expected.int()).abs().float().mean() < 8


def test_orientation_of_16_bit_grey() -> None:
    levels = np.array([[0, 256 * 9, 65535]], dtype=np.uint16)
    decoded = decode_image(encoded(Image.fromarray(levels), "PNG", exif=oriented(6)))
    assert decoded[0].tolist() == [[0], [9], [255]]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(format: str) -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    data = encoded(red, format, save_all=True, append_images=[blue], **({"lossless": True} if format == "WEBP" else {}))
    assert decode_image(data)[:, 0, 0].tolist() == [255, 0, 0]


# --- decoding: what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("part", [0.001, 0.02, 0.5, 0.9])
def test_truncated_files_are_named(tmp_path: Path, format: str, part: float) -> None:
    data = encoded(gradient(100, 100), format)
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


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TGA", "WEBP"]), st.data())
def test_damaged_bytes_give_an_image_or_an_image_error(format: str, data: st.DataObject) -> None:
    damaged = bytearray(encoded(gradient(), format))
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
            tmp_path / "a.jpg", lambda height, width, b=bottom: transforms.Region(b // 2, 7, b - b // 2, 30)
        )  # type: ignore[misc]
        assert torch.equal(part, whole[:, bottom // 2 : bottom, 7:37])


def test_a_photo_has_the_pixels_that_pillow_gives_it() -> None:
    photo = encoded(gradient(333, 500), "JPEG", quality=90)
    expected = as_tensor(Image.open(io.BytesIO(photo)))
    assert torch.equal(decode_image(photo), expected)


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_part_is_of_the_upright_image(tmp_path: Path, format: str, orientation: int) -> None:
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(encoded(gradient(), format, exif=oriented(orientation)))
    whole, sizes = decode_image(path), []

    def choose(height: int, width: int) -> transforms.Region:
        sizes.append((height, width))
        return transforms.Region(2, 1, 9, 20)

    assert torch.equal(images.decode_part(path, choose), whole[:, 2:11, 1:21])
    assert sizes == [tuple(whole.shape[1:])]


def test_parts_of_damaged_files_are_refused(tmp_path: Path) -> None:
    data = encoded(gradient(), "JPEG")
    for name, content in (
        ("cut.jpg", data[: len(data) // 2]),
        ("bomb.jpg", jpeg_header(65_000, 60_000)),
        ("no.png", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=re.escape(name)):
            images.decode_part(tmp_path / name, lambda height, width: transforms.Region(0, 0, 1, 1))


# --- the data set -------------------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for i in range(6):
        gradient(20 + i, 30).rotate(15 * i).save(tmp_path / f"{i}.png")
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
    cut = transforms.cut_box(decode_image(tmp_path / "a.jpg"), (5, 20, 66, 90), "a")
    for epoch in range(20):
        dataset.set_epoch(epoch)
        expected = transforms.train_transform(settings, np.random.default_rng((3, epoch, 0)))(cut)
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
    assert torch.equal(image, transforms.test_transform(SMALL)(decode_image(paths[5])[:, 4:22, 3:20]))
    assert torch.equal(dataset[0][0], transforms.test_transform(SMALL)(decode_image(paths[0])))
    assert len(dataset) == 6


def test_wrong_arguments_of_the_data_set_are_named(paths: list[Path]) -> None:
    with pytest.raises(ImageError, match=r"shape \(2, 4\), but must have \(6, 4\)"):
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


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge"])
def test_what_is_no_ordinary_file_is_refused_unread(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 40 * 2**30)  # takes no room on the disk
    with pytest.raises(ImageError, match="must be an ordinary file|such a file has at most|Is a directory"):
        decode_image(path)
