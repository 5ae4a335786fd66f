"""Files that ask for too much work are refused before they are decoded; honest ones are not."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from proxygml.data.images.bounds import MAX_SCANS, check_bounds, image_size
from proxygml.data.images.decode import decode
from proxygml.errors import ImageError
from tests.helpers import bombs
from tests.helpers.pictures import encoded, gradient

WEBP = encoded(gradient(), "WEBP")
BOMBS = {
    "scans": (bombs.jpeg_with_scans(64, MAX_SCANS + 1), "JPEG with more than 100 scans, but at most 100"),
    "scans of many pixels": (
        bombs.jpeg_with_scans(5200, 95),
        "JPEG with 27,040,000 pixels in 95 scans, but at most 92",
    ),
    "scans behind a false end": (
        bombs.jpeg_with_scans(64, 200, between=bombs.segment(0xFE, b"\xff\xd9")),
        "more than 100 scans",
    ),
    "scans behind an unknown marker": (bombs.jpeg_with_scans(64, 200, between=b"\xff\x02"), "more than 100 scans"),
    "segments": (
        bombs.jpeg_with_scans(64, 2, before=bombs.segment(0xE1, b"Exif\0\0a") * 1001),
        "1,000 segments|header",
    ),
    "segments between scans": (
        bombs.jpeg_with_scans(64, 2, between=bombs.segment(0xFE, b"a") * 1001),
        "JPEG with more than 1,000 segments",
    ),
    "PNG chunks": (bombs.png_with_chunks(2000), "PNG with more than 1,0.. chunks"),
    "WebP chunks": (bombs.webp_with_chunks(WEBP, 2000), "WebP with more than 1,0.. chunks"),
    "GIF comments": (bombs.gif_with_comments(200), "GIF with 101 extensions"),
    "GIF comment": (bombs.gif_with_comments(1, 5000), "at most 1,048,576 bytes are read"),
    "TIFF tags": (bombs.tiff_with_tags(900, 50_000), "TIFF of .* bytes with tags of 45,000,000 bytes"),
    "TIFF table": (bombs.tiff_with_tags(3000, 4), "TIFF with 3,000 tags, but at most 1,000"),
    "BMP runs": (bombs.bmp_of_runs(3000), "run-length encoded BMP of 9,000,000 pixels"),
    "tiles": (bombs.jpeg2000_with_tiles(4000, 16), "JPEG 2000 image of 62,500 tiles, but at most 10,000"),
}


def test_a_large_text_in_a_png_is_not_read() -> None:
    assert decode(bombs.png_with_chunks(0, bytes(2**24)), "the image") is not None


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_by_its_name_before_it_is_decoded(kind: str) -> None:
    data, message = BOMBS[kind]
    with pytest.raises(ImageError, match=rf"^the image .*({message}).*(leave it out)"):
        decode(data, "the image")


def honest() -> Iterator[tuple[str, bytes]]:
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    profile = bytes(range(256)) * 3000  # in 12 segments of a JPEG
    yield "progressive JPEG", encoded(noisy, "JPEG", progressive=True, icc_profile=profile)
    yield "JPEG with what a camera appends", encoded(noisy, "JPEG") + bytes(1000)
    yield "JPEG with a picture inside", encoded(noisy, "JPEG", comment=bombs.jpeg_with_scans(8, 200))
    yield "JPEG of 100 scans", bombs.jpeg_with_scans(64, MAX_SCANS)
    frames = [noisy.rotate(angle) for angle in range(20)]
    for format in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        yield f"{format} of many frames", encoded(noisy, format, save_all=True, append_images=frames)
    yield "PNG of small chunks", encoded(noisy, "PNG", icc_profile=profile, compress_level=0)
    yield "BMP", encoded(noisy, "BMP")
    yield "GIF with comments", bombs.gif_with_comments(90, 30)
    yield "JPEG 2000", encoded(noisy, "JPEG2000", tile_size=(64, 64))
    yield "AVIF", encoded(noisy, "AVIF")


@pytest.mark.parametrize(("kind", "data"), list(honest()), ids=lambda value: value if isinstance(value, str) else "")
def test_honest_files_are_within_the_bounds(kind: str, data: bytes) -> None:
    assert decode(data, "the image").shape[2] == 3


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF", "JPEG2000", "PPM", "TGA"])
def test_the_size_is_read_from_the_header(format: str) -> None:
    for options in (
        ({}, {"lossless": True}, {"lossless": True, "exif": b"Exif\0\0MM\0*"}) if format == "WEBP" else ({},)
    ):
        assert image_size(encoded(gradient(30, 41), format, **options)) == (30, 41)
    assert image_size(encoded(gradient(30, 41), format)[:7]) is None


def test_the_bound_on_pixels_is_the_callers() -> None:
    data = encoded(gradient(30, 41), "PNG")
    check_bounds(data, "the image", max_pixels=1230)
    with pytest.raises(ImageError, match="has 41 x 30 pixels, but may have at most 1,229"):
        check_bounds(data, "the image", max_pixels=1229)
    with pytest.raises(ImageError, match="1,229"):
        decode(encoded(gradient(30, 41), "TIFF"), "the image", max_pixels=1229)


def test_bytes_that_are_cut_off_are_left_to_the_decoder() -> None:
    for data, _ in BOMBS.values():
        for length in range(0, min(len(data), 400), 7):
            try:
                decode(data[:length], "the image")
            except ImageError as error:
                assert "the image" in str(error)


def test_the_size_of_a_tiff_is_read_whatever_its_table_says() -> None:
    big = b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0"
    for data in (b"II*\0\xff\xff\xff\xff", big + b"\xff" * 8 + bytes(100), big[:8] + b"\xff" * 8 + bytes(100)):
        assert image_size(data) is None
        with pytest.raises(ImageError):
            decode(data, "the image")
