"""Intact images of every kind are read as they look, on every path that reads them."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from proxygml.data.images import decode as decoding
from proxygml.data.images.bounds import image_size
from proxygml.data.images.decode import decode, decode_silently, image_endings
from proxygml.data.images.decoder_pool import DecoderPool
from proxygml.data.images.formats import FORMATS, image_kind, readable_formats
from proxygml.data.images.levels import OWN, as_levels
from proxygml.data.images.tensors import decode_part
from proxygml.data.images.transforms import Region
from proxygml.errors import ImageError
from tests.data.images.test_tensors import png
from tests.helpers.bombs import segment
from tests.helpers.pictures import encoded, gradient

HEADER = b"Exif\0\0"


def exif(order: str = "<", tag: int = 274, kind: int = 3, count: int = 1, value: int = 6) -> bytes:
    """An EXIF block, without its header, of one entry."""
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    entry = struct.pack(f"{order}HHHI", 1, tag, kind, count)
    return (
        start
        + entry
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value))
        + bytes(4)
    )


UNREADABLE = {
    "empty": b"",
    "cut off": exif()[:17],
    "cut off in the header": exif()[:6],
    "of the wrong order": b"MM" + exif()[2:],
    "of no order": b"XX" + exif()[2:],
    "garbage": bytes(range(256)),
    "orientation 0": exif(value=0),
    "orientation 9": exif(value=9),
    "orientation 65535": exif(value=65535),
    "orientation as text": exif(kind=2, value=ord("6")),
    "orientation as a fraction": exif(kind=5, value=8),
    "orientation of no type": exif(kind=99),
    "several orientations": exif(count=3),
    "billions of orientations": exif(count=2**31),
    "a table outside": exif()[:4] + b"\xff\xff\xff\xff" + exif()[8:],
    "tables of EXIF and GPS outside": exif(tag=34665, kind=4, value=2**31) + exif(tag=34853, kind=4, value=7),
}


def png_with_exif(block: bytes) -> bytes:
    return encoded(gradient(), "PNG", exif=HEADER + block)


@pytest.mark.parametrize("block", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_read_leaves_the_image_as_it_is(format: str, block: bytes) -> None:
    plain = decode(encoded(gradient(), format), "plain")
    for header in (HEADER, b"", HEADER * 2):
        assert np.array_equal(decode(encoded(gradient(), format, exif=header + block), "the image"), plain)


@pytest.mark.parametrize("block", UNREADABLE.values(), ids=UNREADABLE)
def test_exif_of_an_avif_is_never_read(block: bytes) -> None:
    """It has a property of its own for the orientation, which Pillow applies only where it can read the EXIF."""
    whole = encoded(gradient(), "AVIF", exif=exif(tag=270, kind=2, count=300) + bytes(300))
    at = whole.index(exif(tag=270)[:8])
    damaged = whole[:at] + block[:300].ljust(8, b"\0") + whole[at + max(8, len(block[:300])) :]
    assert np.array_equal(decode(damaged, "the image"), decode(encoded(gradient(), "AVIF"), "plain"))


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}], ids=str)
@pytest.mark.parametrize("tag", [274, 34665, 34853, 40965])
@pytest.mark.parametrize(("kind", "value"), [(2, 54), (3, 0), (3, 9), (5, 8), (4, 2**31), (7, 5), (12, 8), (99, 1)])
def test_tags_of_a_tiff_that_cannot_be_read_leave_it_as_it_is(
    tag: int, kind: int, value: int, options: dict[str, object]
) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[65000] = 1
    data = bytearray(encoded(gradient(), "TIFF", tiffinfo=info, **options))
    big = "big_tiff" in options
    at = data.index(struct.pack("<HH", 65000, 3))
    data[at : at + (20 if big else 12)] = struct.pack("<HHQQ" if big else "<HHII", tag, kind, 1, value)
    assert np.array_equal(decode(bytes(data), "the image"), decode(encoded(gradient(), "TIFF"), "plain"))


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}], ids=str)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned(orientation: int, options: dict[str, object]) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[274] = orientation
    image = gradient()
    data = encoded(image, "TIFF", tiffinfo=info, **options)
    image.getexif()[274] = orientation
    assert np.array_equal(decode(data, "the image"), np.asarray(ImageOps.exif_transpose(image)))


# JPEG: where the EXIF may stand --------------------------------------------------------------------------------------


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    plain = encoded(gradient(), "JPEG", quality=95)
    return plain[:2] + b"".join(segment(marker, content) for marker, content in segments) + plain[2:]


XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation='3'/></x:xmpmeta>"
PLACES = {
    "alone": [(0xE1, HEADER + exif())],
    "in big-endian order": [(0xE1, HEADER + exif(">"))],
    "with its header twice": [(0xE1, HEADER * 2 + exif())],
    "after XMP": [(0xE1, XMP), (0xE1, HEADER + exif())],
    "before XMP": [(0xE1, HEADER + exif()), (0xE1, XMP)],
    "after other segments": [(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"), (0xED, b"Photoshop 3.0\0"), (0xE1, HEADER + exif())],
    "after a comment with a marker": [(0xFE, b"\xff\xc0\xff\xda"), (0xE1, HEADER + exif())],
    "after EXIF that cannot be read": [(0xE1, HEADER + b"XX"), (0xE1, HEADER + exif())],
    "before more EXIF": [(0xE1, HEADER + exif()), (0xE1, HEADER + exif(value=3))],
    "before a damaged list of pictures": [(0xE1, HEADER + exif()), (0xE2, b"MPF\0II*\0\xff\xff\xff\xff")],
    "as a long number": [(0xE1, HEADER + exif(kind=4))],
}


@pytest.mark.parametrize("place", PLACES)
def test_a_jpeg_is_turned_wherever_its_exif_stands(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg_with(*PLACES[place])
    expected = np.rot90(decode(encoded(gradient(), "JPEG", quality=95), "plain"), -1)
    assert np.array_equal(decode(data, "the image"), expected)
    (tmp_path / "a.jpg").write_bytes(data)
    part = decode_part(tmp_path / "a.jpg", lambda height, width: Region(2, 1, 9, 20))
    assert np.array_equal(part.permute(1, 2, 0).numpy(), expected[2:11, 1:21])

    def refuse(*_: object) -> None:
        raise RuntimeError("unsupported")

    monkeypatch.setattr(decoding, "decode_jpeg", refuse)  # by Pillow, as the kinds that simplejpeg does not know
    assert np.abs(decode(data, "the image").astype(int) - expected).max() <= 2


@pytest.mark.parametrize("block", UNREADABLE.values(), ids=UNREADABLE)
def test_exif_that_cannot_be_read_is_no_matter_to_pillow_either(block: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("unsupported")

    monkeypatch.setattr(decoding, "decode_jpeg", refuse)
    data = jpeg_with((0xE1, HEADER + block), (0xE2, b"MPF\0" + block))
    assert decode(data, "the image").shape == (30, 40, 3)


def chunk(kind: bytes, content: bytes, *, damaged: bool = False) -> bytes:
    """A part of a PNG, with its checksum or a wrong one."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ damaged)


def with_chunk(data: bytes, inserted: bytes, before: bytes) -> bytes:
    at = data.index(before) - 4
    return data[:at] + inserted + data[at:]


METADATA = {
    "pHYs": bytes(9),
    "tEXt": b"Comment\0a comment",
    "zTXt": b"Comment\0\0" + zlib.compress(b"a comment"),
    "iTXt": b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>',
    "iCCP": b"name\0\0" + zlib.compress(b"no profile"),
    "eXIf": exif(),
    "gAMA": struct.pack(">I", 45455),
    "abCd": b"of a program",
}


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("kind", METADATA)
def test_a_png_whose_metadata_have_a_wrong_checksum_is_read_without_them(kind: str, before: bytes) -> None:
    plain = encoded(gradient(), "PNG")
    damaged = with_chunk(plain, chunk(kind.encode(), METADATA[kind], damaged=True), before)
    assert np.array_equal(decode(damaged, "a.png"), decode(plain, "a.png"))


def test_metadata_of_a_png_may_be_of_any_size() -> None:
    plain = encoded(gradient(), "PNG")
    large = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(8 * 2**20)))
    assert np.array_equal(decode(with_chunk(plain, large, b"IDAT"), "a.png"), decode(plain, "a.png"))


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"eXIf", exif()),
        (b"iTXt", METADATA["iTXt"]),
        (b"tEXt", b"Raw profile type exif\0\nexif\n32\n" + exif().hex().encode() + b"\n"),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n32\n" + exif().hex().encode() + b"\n")),
    ],
)
def test_a_png_is_turned_by_metadata_with_the_right_checksum(kind: bytes, content: bytes, before: bytes) -> None:
    plain = encoded(gradient(), "PNG")
    turned = decode(with_chunk(plain, chunk(kind, content), before), "a.png")
    assert np.array_equal(turned, np.rot90(decode(plain, "a.png"), -1))


@pytest.mark.parametrize("kind", [b"IHDR", b"tRNS"])
def test_a_png_whose_picture_has_a_wrong_checksum_is_refused(kind: bytes) -> None:
    data = bytearray(encoded(Image.fromarray(np.zeros((4, 4), np.uint8)), "PNG", transparency=3))
    at = data.index(kind)
    data[at + 4 + int.from_bytes(data[at - 4 : at])] ^= 1
    with pytest.raises(ImageError, match=r"a\.png is .*damaged"):
        decode(bytes(data), "a.png")


# Other numbers than 0..255 -------------------------------------------------------------------------------------------

RAMP = np.linspace(0, 1, 12).reshape(3, 4)


def stored(values: np.ndarray, format: str = "TIFF", **options: object) -> bytes:
    return encoded(Image.fromarray(values), format, **options)


NUMBERS = {
    "32-bit TIFF of 0..255": (stored((RAMP * 255).astype(np.int32)), 255),
    "compressed 32-bit TIFF of 0..255": (stored((RAMP * 255).astype(np.int32), compression="tiff_lzw"), 255),
    "32-bit TIFF of 12 bits": (stored((RAMP * 4095).astype(np.int32)), 4095),
    "32-bit TIFF of 16 bits": (stored((RAMP * 65535).astype(np.int32)), 65535),
    "32-bit TIFF of larger numbers": (stored((RAMP * 1e9).astype(np.int32)), OWN),
    "32-bit TIFF with negative numbers": (stored((RAMP * 3000 - 1000).astype(np.int32)), OWN),
    "float TIFF of 0..1": (stored(RAMP.astype(np.float32)), 1),
    "float TIFF a little beyond 0..1": (stored(np.concatenate([RAMP, [[-0.02, 1.03, 0, 1]]]).astype(np.float32)), 1),
    "float TIFF of 0..255": (stored((RAMP * 255).astype(np.float32)), 255),
    "float TIFF of other numbers": (stored((RAMP * 1e6 - 10).astype(np.float32)), OWN),
    "10 bits in a 16-bit PNG": (stored((RAMP * 1023).astype(np.uint16), "PNG"), 1023),
    "10 bits in a 16-bit TIFF": (stored((RAMP * 1023).astype(np.uint16)), 1023),
    "12 bits in a 16-bit TIFF": (stored((RAMP * 4095).astype(np.uint16)), 4095),
    "12 bits in a 16-bit PNG": (stored((RAMP * 4095).astype(np.uint16), "PNG"), 4095),
    "12 bits in a 16-bit PPM": (stored((RAMP * 4095).astype(np.uint16), "PPM"), 4095),
    "8 bits in a 16-bit PNG": (stored((RAMP * 255).astype(np.uint16), "PNG"), 255),
    "16 bits in a PNG": (stored((RAMP * 65535).astype(np.uint16), "PNG"), None),
    "16 bits in a TIFF": (stored((RAMP * 65535).astype(np.uint16)), None),
    "black in 16 bits": (stored(np.zeros((3, 4), np.uint16)), None),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_any_range_become_levels(kind: str) -> None:
    data, white = NUMBERS[kind]
    pixels, assumption = decode_silently(data, "scan.tif")
    expected = np.zeros((3, 4)) if "black" in kind else RAMP * 255
    assert np.abs(pixels[:3].astype(float) - expected[..., None]).max() <= 1
    assert (assumption is None) == (white is None)
    if assumption is not None:
        assert assumption.white == white
        assert assumption.text.startswith("scan.tif has pixels of ")
        assert ("4,095 as white was assumed" in assumption.text) == (white == 4095)


def grey_tiff(values: np.ndarray, order: str, *, deflate: bool = False, white: int = 1) -> bytes:
    """A grey TIFF in either byte order, of kinds that Pillow does not write."""
    height, width = values.shape
    pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    pixels = zlib.compress(pixels) if deflate else pixels
    bits, kind = 8 * values.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 8 if deflate else 1), (262, 3, white)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(pixels)), (339, 3, kind)]
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        packed = struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
        table += struct.pack(f"{order}HHI", tag, kind, 1) + packed
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return start + struct.pack(f"{order}I", 8 + len(pixels)) + pixels + table + bytes(4)


def test_12_bits_in_a_big_endian_tiff() -> None:
    pixels, assumption = decode_silently(grey_tiff((RAMP * 4095).astype(np.uint16), ">"), "scan.tif")
    assert np.abs(pixels[..., 0] - RAMP * 255).max() <= 1
    assert assumption is not None
    assert decode_silently(grey_tiff((RAMP * 65535).astype(np.uint16), ">"), "scan.tif").assumption is None


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white", [0, 1])
@pytest.mark.parametrize(
    ("kind", "top"), [("f8", 1), ("f8", 255), ("f4", 1), ("f4", 4095), ("i4", 65535), ("u2", 1023)]
)
def test_numbers_of_a_tiff_in_either_byte_order(kind: str, top: int, white: int, order: str, deflate: bool) -> None:
    data = grey_tiff((RAMP * top).astype(kind), order, deflate=deflate, white=white)
    levels = decode(data, "scan.tif")[..., 0]
    expected = RAMP * 255 if white else 255 - RAMP * 255
    assert np.abs(levels - expected).max() <= 1


def test_a_number_beyond_those_of_32_bits_has_no_colour() -> None:
    with pytest.raises(ImageError, match="infinite"):
        decode(grey_tiff(np.array([[0.0, 1e300]]), "<"), "scan.tif")


def deep_png(values: np.ndarray, colour: int) -> bytes:
    """A PNG of 16-bit numbers (H, W, channels)."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, depth=16, colour=colour, rows=rows)


@pytest.mark.parametrize("top", [255, 4095, 65535])
@pytest.mark.parametrize("opaque", [None, "top", 65535])
def test_16_bit_colours_of_a_png_that_use_fewer_bits(top: int, opaque: str | int | None) -> None:
    colours = np.stack([RAMP * top, RAMP[::-1] * top, 0 * RAMP + top], axis=2)
    if opaque is not None:
        colours = np.concatenate([colours, np.full((3, 4, 1), top if opaque == "top" else opaque)], axis=2)
    pixels, assumption = decode_silently(deep_png(colours, 2 if opaque is None else 6), "deep.png")
    assert np.abs(pixels - colours[..., :3] / top * 255).max() <= 1
    assert (assumption is None) == (top == 65535)


@pytest.mark.parametrize("top", [255, 1023, 4095, 65535])
@pytest.mark.parametrize("opaque", ["top", 65535])
def test_16_bit_grey_with_opacity_that_uses_fewer_bits(top: int, opaque: str | int) -> None:
    opacity = np.full((3, 4), top if opaque == "top" else opaque)
    opacity[0, 0] = 0
    pixels, assumption = decode_silently(deep_png(np.stack([RAMP * top, opacity], axis=2), 4), "deep.png")
    expected = np.where(opacity == 0, 255, RAMP * 255)
    assert np.abs(pixels - expected[..., None]).max() <= 1
    assert (assumption is None) == (top == 65535)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_16_bit_colours_of_a_tiff_that_use_fewer_bits(top: int, order: str) -> None:
    colours = (np.stack([RAMP, RAMP[::-1], 0 * RAMP + 1], axis=2) * top).astype(f"{order}u2")
    body = colours.tobytes()
    entries = [(256, 3, 4), (257, 3, 3), (258, 3, (16, 16, 16)), (259, 3, 1), (262, 3, 2), (273, 4, 8)]
    entries += [(277, 3, 3), (278, 3, 3), (279, 4, len(body))]
    bits_at = 8 + len(body)
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        if isinstance(value, tuple):
            table += struct.pack(f"{order}HHII", tag, kind, 3, bits_at)
        else:
            packed = struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
            table += struct.pack(f"{order}HHI", tag, kind, 1) + packed
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", bits_at + 6)
    data = start + body + struct.pack(f"{order}HHH", 16, 16, 16) + table + bytes(4)
    pixels, assumption = decode_silently(data, "deep.tif")
    assert np.abs(pixels - colours / top * 255).max() <= 1
    assert (assumption is None) == (top == 65535)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(ImageError, match=r"scan\.tif .*NaN or infinite"):
        decode(stored(np.array([[0.5, value]], np.float32)), "scan.tif")


def test_a_tiff_whose_zero_is_white_is_not_inverted() -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0
    data = bytearray(stored((RAMP * 65535).astype(np.uint16)))
    at = data.index(struct.pack("<HHI", 262, 3, 1))
    data[at + 8] = 0
    assert np.abs(decode(bytes(data), "scan.tif")[..., 0] - (1 - RAMP) * 255).max() <= 1


def test_pillow_images_follow_the_same_rule() -> None:
    for values, top in ((RAMP * 4095, np.uint16), (RAMP * 255, np.int32), (RAMP, np.float32)):
        pixels = decoding.upright_pixels(Image.fromarray(values.astype(top)), "a Pillow image")
        assert np.abs(pixels[..., 0] - RAMP * 255).max() <= 1


def test_levels_of_every_range_reach_black_and_white() -> None:
    for white in (255, 1023, 4095, 65535):
        levels, _ = as_levels(np.array([0, white], np.int32), "a", None)
        assert levels.tolist() == [0, 255]


def test_one_warning_for_all_images_of_a_kind_also_over_processes(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(NUMBERS["12 bits in a 16-bit PNG"][0])
        (tmp_path / f"{number}.tif").write_bytes(NUMBERS["float TIFF of 0..1"][0])
    program = """
import sys
from pathlib import Path
from torch.utils.data import DataLoader
from proxygml.data.images.decoder_pool import DecoderPool
from proxygml.data.images.settings import ImageSettings
from proxygml.data.images.tensors import ImageDataset
paths = sorted(Path(sys.argv[1]).iterdir())
for _ in DataLoader(ImageDataset(paths, None, ImageSettings(size=8, resize=8), training=False), num_workers=2):
    pass
with DecoderPool(2) as pool:
    for path in paths:
        pool.inspect(path)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert {f"{tmp_path}/" in line and line.startswith("warning: ") for line in lines} == {True}
    assert sum("4,095" in line for line in lines) == 1


def test_the_processes_that_decode_tell_what_was_assumed(tmp_path: Path) -> None:
    (tmp_path / "scan.tif").write_bytes(NUMBERS["32-bit TIFF of 12 bits"][0])
    program = (
        "import sys; from pathlib import Path; from proxygml.data.images.decoder_pool import DecoderPool\n"
        "with DecoderPool(1) as pool:\n    print(pool.decode(Path(sys.argv[1]).read_bytes(), 'scan.tif').max())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "scan.tif"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "255"
    assert done.stderr.startswith("warning: scan.tif has pixels of whole numbers")


# Other kinds ---------------------------------------------------------------------------------------------------------


def ycck_jpeg() -> bytes:
    """As Photoshop writes CMYK: with a segment that says so."""
    return encoded(gradient().convert("CMYK"), "JPEG", quality=95, subsampling="4:2:0")


def test_cmyk_and_ycck_jpegs_look_as_in_pillow() -> None:
    for data in (ycck_jpeg(), encoded(gradient().convert("CMYK"), "JPEG", quality=95, keep_rgb=True)):
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert np.abs(decode(data, "print.jpg") - expected).max() <= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 1000)])
@pytest.mark.parametrize("format", [name for name in readable_formats() if name != "HEIF"])
def test_thin_images(format: str, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (200, 30, 60))
    data = encoded(image, format, **({"lossless": True} if format == "WEBP" else {}))
    assert image_kind(data) == format
    assert image_size(data) == (size[1], size[0])
    pixels = decode(data, "thin")
    assert pixels.shape == (size[1], size[0], 3)
    assert np.abs(pixels.astype(int) - (200, 30, 60)).max() <= 4


def test_a_transparent_level_of_16_bit_grey_becomes_white() -> None:
    data = stored(np.array([[7, 65535, 0]], np.uint16), "PNG", transparency=7)
    assert decode(data, "a.png")[0, :, 0].tolist() == [255, 255, 0]


def test_lab_colours_are_converted() -> None:
    image = Image.new("LAB", (2, 2), (138, 208, 195))  # L 54, a 80, b 67: nearly pure red
    red, green, blue = decode(encoded(image, "TIFF"), "lab.tif")[0, 0].tolist()
    assert red > 240
    assert max(green, blue) < 40


def test_foreign_files_are_told_which_kinds_are_read() -> None:
    for foreign in (
        b"%PDF-1.7 " + bytes(50),
        b"%!PS-Adobe-3.0 EPSF",
        b"\x89HDF\r\n\x1a\n" + bytes(60),
        b"\0\0\1\xba" * 20,
    ):
        assert image_kind(foreign) is None
        with pytest.raises(ImageError, match=r"a\.pdf is no image of a known format .*JPEG, PNG"):
            decode(foreign, "a.pdf")


# HEIF ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heic() -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif = pillow_heif.from_pillow(gradient(60, 80))
    heif.save(file, quality=95, exif=HEADER + exif())
    return file.getvalue()


def test_heic_is_read_and_turned(heic: bytes, tmp_path: Path) -> None:
    expected = np.rot90(np.asarray(gradient(60, 80)), -1).astype(int)
    assert image_kind(heic) == "HEIF"
    pixels = decode(heic, "IMG_1.HEIC")
    if pixels.shape[:2] == (60, 80):  # libheif's encoder kept the pixels and states no orientation
        expected = np.asarray(gradient(60, 80)).astype(int)
    assert np.abs(pixels - expected).mean() < 8
    (tmp_path / "IMG_1.HEIC").write_bytes(heic)
    with DecoderPool(1) as pool:
        assert np.array_equal(pool.decode(heic, "IMG_1.HEIC"), pixels)
        assert pool.inspect(tmp_path / "IMG_1.HEIC")[1:] == pixels.shape[:2]


def test_heic_that_is_damaged_or_too_large_is_named(heic: bytes) -> None:
    with pytest.raises(ImageError, match="IMG_1.*pixels"):
        decode(heic, "IMG_1.HEIC", max_pixels=100)
    for end in (30, 200, len(heic) // 2, len(heic) - 200):
        with pytest.raises(ImageError, match="IMG_1"):
            decode(heic[:end], "IMG_1.HEIC")


def test_without_the_extra_a_heic_names_it(tmp_path: Path) -> None:
    start = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    program = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "import importlib.util as util; found = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'pillow_heif' else found(name, *rest)\n"
        "from proxygml.data.images.decode import decode\nfrom proxygml.data.images.formats import readable_formats\n"
        "from proxygml.errors import ImageError\n"
        f"print('HEIF' in readable_formats())\ntry:\n    decode({start!r}, 'IMG_1.HEIC')\n"
        "except ImageError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    readable, message = done.stdout.splitlines()
    assert readable == "False"
    assert "IMG_1.HEIC is a HEIC (HEIF) image" in message
    assert "convert it to JPEG, or install the extra heif" in message
    assert "pip install" in message
    assert "[heif]" in message


def test_heic_files_are_images_by_their_names() -> None:
    assert {".heic", ".heif", ".hif", ".avif", ".jp2", ".tga", ".tif", ".ppm"} <= image_endings()
    assert set(readable_formats()) <= set(FORMATS)
