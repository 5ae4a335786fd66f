"""The formats of image files that are read: how a file's first bytes tell its format and its size in pixels."""

import re
import struct
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

from proxygml.data.images.jpeg import JPEG, read_header
from proxygml.errors import ImageError, install_command


class Format(NamedTuple):
    """How files of a format are called."""

    ending: str
    media_type: str


FORMATS: Mapping[str, Format] = {
    "JPEG": Format("jpg", "image/jpeg"),
    "PNG": Format("png", "image/png"),
    "WEBP": Format("webp", "image/webp"),
    "GIF": Format("gif", "image/gif"),
    "BMP": Format("bmp", "image/bmp"),
    "AVIF": Format("avif", "image/avif"),
    "TIFF": Format("tif", "image/tiff"),
    "HEIF": Format("heic", "image/heic"),
    "JPEG2000": Format("jp2", "image/jp2"),
    "PPM": Format("ppm", "image/x-portable-pixmap"),
    "TGA": Format("tga", "image/x-tga"),
}
"""The formats that commands and server read, by Pillow's names. HEIF (HEIC) needs the extra `heif`. Others are refused:
they are rare, and for some Pillow runs other programs."""

PNG, TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How these files start."""

CODESTREAM = b"\xff\x4f\xff\x51"
"""Of JPEG 2000: its start and the segment that gives its sizes."""

HEAD, MAX_TAGS = 2**16, 1000
"""Bytes in which an AVIF, HEIF or JPEG 2000 file describes its parts; tags in a table of a TIFF."""

HEIF_ENDINGS = (".heic", ".heics", ".heif", ".heifs", ".hif")
"""Of the names of HEIF files."""

_HEIF_PACKAGE = "pillow_heif"
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
_PPM = re.compile(rb"P[1-6f]\s+(?:#[^\n]*\n\s*)*(\d{1,10})\s+(?:#[^\n]*\n\s*)*(\d{1,10})\s")
_TGA_DEPTHS = {1: (8, 16), 2: (15, 16, 24, 32), 3: (8, 16)}  # bits of a pixel: with a palette, in colour, grey


_STARTS: Mapping[bytes, str] = {
    **{JPEG: "JPEG", PNG: "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"BM": "BMP", CODESTREAM: "JPEG2000"},
    **dict.fromkeys(TIFF, "TIFF"),
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
}


@cache  # it looks for a package on the disk, and a server needs the answer for each upload
def readable_formats() -> tuple[str, ...]:
    """The names of FORMATS that this installation reads."""
    return tuple(name for name in FORMATS if name != "HEIF" or find_spec(_HEIF_PACKAGE) is not None)


def register_heif(name: str) -> None:
    """Let Pillow read HEIF.

    Raises:
        ImageError: the extra `heif` is not installed; the message names the image.
    """
    if find_spec(_HEIF_PACKAGE) is None:
        raise ImageError(
            f"{name} is a HEIC (HEIF) image, which takes the package pillow-heif to be read: convert it to JPEG, or "
            f"install the extra heif: {install_command('heif')}"
        )
    _register()


@cache
def _register() -> None:
    from pillow_heif import register_heif_opener  # noqa: PLC0415  # an extra

    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


def image_kind(data: bytes) -> str | None:
    """The format that a file's first bytes state, one of FORMATS; None for any other."""
    for start, kind in _STARTS.items():
        if data.startswith(start):
            return kind
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _kind_by_brand(data)
    if data[:1] == b"P" and data[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6", b"f"):
        return "PPM"
    return "TGA" if _is_tga(data) else None


def _kind_by_brand(data: bytes) -> str | None:
    """AVIF and HEIF are one container; the list of brands at its start tells which pictures it holds."""
    end = min(int.from_bytes(data[:4]), 256)
    brands = {data[at : at + 4] for at in (8, *range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def _is_tga(data: bytes) -> bool:
    """Whether the first 18 bytes can be the header of a TGA, which no signature marks."""
    if len(data) < 18:
        return False
    palette, kind, width, height, depth, flags = struct.unpack_from("<xBB9xHHBB", data)
    fits = palette in (0, 1) and (kind & ~8 != 1 or palette == 1) and depth in _TGA_DEPTHS.get(kind & ~8, ())
    return bool(fits and width and height and not flags & 0xC0)


def image_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels that a file's header states; None where it states none, or its format is another."""
    kind = image_kind(data)
    try:
        return None if kind is None else _SIZES[kind](data)
    except struct.error:
        return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    header = read_header(data)
    return None if header is None else (header.height, header.width)


def _png_size(data: bytes) -> tuple[int, int] | None:
    width, height = struct.unpack_from(">II", data, 16)
    return (height, width) if data[12:16] == b"IHDR" else None


def _gif_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return height, width


def _bmp_size(data: bytes) -> tuple[int, int]:
    old = int.from_bytes(data[14:18], "little") == 12
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    return abs(height), abs(width)


def _ispe_size(data: bytes) -> tuple[int, int] | None:
    """AVIF, HEIF: the largest of the boxes `ispe` (image spatial extents): of the image, and of its tiles."""
    sizes, at = [], data.find(b"ispe")
    while 0 <= at < HEAD:
        width, height = struct.unpack_from(">II", data, at + 8)
        sizes.append((height, width))
        at = data.find(b"ispe", at + 4)
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    """The values of the tags 257 and 256 in the first table."""
    order, big, tags = tiff_table(data)
    values = {}
    for at in tags[:MAX_TAGS]:
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in (256, 257) and kind in (3, 4, 16):
            (values[tag],) = struct.unpack_from(order + {3: "H", 4: "I", 16: "Q"}[kind], data, at + (12 if big else 8))
    return (values[257], values[256]) if len(values) == 2 else None


def tiff_table(data: bytes) -> tuple[str, bool, range]:
    """The byte order of a TIFF, whether its numbers have 64 bits, and where the tags of its first table lie."""
    order, big = "<" if data.startswith(b"II") else ">", b"+" in data[2:4]
    entry, counter, number = (20, "Q", "Q") if big else (12, "H", "I")
    (table,) = struct.unpack_from(order + number, data, 8 if big else 4)
    if table > len(data):
        raise struct.error("the table lies outside of the file")
    (tags,) = struct.unpack_from(order + counter, data, table)
    first = table + struct.calcsize(order + counter)
    return order, big, range(first, first + min(tags, 2**32) * entry, entry)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[27:30], "little") + 1, int.from_bytes(data[24:27], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    return None


def _jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    at = data.find(CODESTREAM, 0, HEAD)
    right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
    return (bottom - top, right - left) if at >= 0 else None


def _ppm_size(data: bytes) -> tuple[int, int] | None:
    found = _PPM.match(data[:HEAD])
    return (int(found[2]), int(found[1])) if found else None


def _tga_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 12)
    return height, width


_SIZES: Mapping[str, Callable[[bytes], tuple[int, int] | None]] = {
    "AVIF": _ispe_size,
    "BMP": _bmp_size,
    "GIF": _gif_size,
    "HEIF": _ispe_size,
    "JPEG": _jpeg_size,
    "JPEG2000": _jpeg2000_size,
    "PNG": _png_size,
    "PPM": _ppm_size,
    "TGA": _tga_size,
    "TIFF": _tiff_size,
    "WEBP": _webp_size,
}
