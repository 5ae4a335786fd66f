"""What a file may ask of a decoder: counted in the file before anything is decoded.

A bound on pixels does not bound work. A JPEG of half a megabyte can ask for thousands of passes over its pixels, a GIF
for a comment that is copied a thousand times, a TIFF for a table of tags that takes terabytes. Honest files stay far
below these bounds. Only the first frame of an animation is decoded, so the number of frames needs no bound.
"""

import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NoReturn

from proxygml.data.jpeg import JPEG, JpegParts, count_parts, read_header
from proxygml.errors import ImageError

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused before they are decoded: half a gigabyte as RGB, Pillow's own bound."""

MAX_SCANS = 100
"""Of a JPEG. A baseline one has 1 to 4, a progressive one about 10."""

MAX_SEGMENTS = 1000
"""Of a JPEG: tables and metadata. A colour profile has up to 255, other metadata a few dozen."""

MAX_SCANNED_PIXELS = 2_500_000_000
"""Pixels times scans of a JPEG: 14 scans of MAX_PIXELS, 100 scans of 25 megapixels."""

MAX_RLE_PIXELS = 4_000_000
"""Of a run-length encoded BMP, which Pillow decodes in Python."""

MAX_TAGS, MAX_TILES = 1000, 10_000
"""Tags in a table of a TIFF, and tiles of a JPEG 2000 image."""

MAX_GIF_EXTENSIONS, MAX_GIF_METADATA = 100, 2**20
"""Comments and other extensions before a GIF's first frame, and their bytes: Pillow copies all for each further one."""

FREE_PARTS, BYTES_PER_PART = 1000, 1024
"""A PNG or WebP may have 1000 chunks, and one more for each kilobyte of the file."""

_PNG, _TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AVIF_HEAD = 2**16  # bytes, in which an AVIF describes its parts
_CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000: its start and the segment that gives its sizes
_BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def image_kind(data: bytes) -> str | None:
    """The format that a file's first bytes state, by Pillow's names; None for another than the seven of _SIZES."""
    starts = {JPEG: "JPEG", _PNG: "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"BM": "BMP"}
    for start, kind in (starts | dict.fromkeys(_TIFF, "TIFF")).items():
        if data.startswith(start):
            return kind
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4]), 256)
        brands = [data[at : at + 4] for at in range(8, end, 4)]
        return "AVIF" if b"avif" in brands or b"avis" in brands else None
    return None


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


def _avif_size(data: bytes) -> tuple[int, int] | None:
    """The largest of the boxes `ispe` (image spatial extents): of the image, and of tiles that it may consist of."""
    sizes, at = [], data.find(b"ispe")
    while 0 <= at < _AVIF_HEAD:
        width, height = struct.unpack_from(">II", data, at + 8)
        sizes.append((height, width))
        at = data.find(b"ispe", at + 4)
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    """The values of the tags 257 and 256 in the first table."""
    order, big, tags = _tiff_table(data)
    values = {}
    for at in tags[:MAX_TAGS]:
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in (256, 257) and kind in (3, 4, 16):
            (values[tag],) = struct.unpack_from(order + {3: "H", 4: "I", 16: "Q"}[kind], data, at + (12 if big else 8))
    return (values[257], values[256]) if len(values) == 2 else None


def _tiff_table(data: bytes) -> tuple[str, bool, range]:
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


_SIZES: Mapping[str, Callable[[bytes], tuple[int, int] | None]] = {
    "AVIF": _avif_size,
    "BMP": _bmp_size,
    "GIF": _gif_size,
    "JPEG": _jpeg_size,
    "PNG": _png_size,
    "TIFF": _tiff_size,
    "WEBP": _webp_size,
}


def check_pixels(height: int, width: int, name: str, most: int = MAX_PIXELS) -> None:
    """Raise ImageError where an image of that height and width has more than `most` pixels."""
    if height * width > most:
        raise ImageError(
            f"{name} has {width:,} x {height:,} pixels, but at most {most:,} pixels are decoded: scale it down, or "
            "leave it out"
        )


def check_bounds(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raise ImageError where decoding the file would take more work or memory than an honest image does.

    Args:
        data: the file.
        name: what messages call it.
        max_pixels: height times width may be at most this.
    """
    size = image_size(data)
    if size is not None:
        check_pixels(*size, name, max_pixels)
    with suppress(struct.error):  # cut off: the decoder says so
        if data.startswith(JPEG):
            _check_jpeg(data, name, 0 if size is None else size[0] * size[1])
        elif data.startswith(_PNG):
            _check_chunks(data, name, "PNG", 8, "big")
        elif data.startswith(b"GIF8"):
            _check_gif(data, name)
        elif data.startswith(b"BM") and size is not None:
            _check_bmp(data, name, size[0] * size[1])
        elif data.startswith(b"RIFF"):
            _check_chunks(data, name, "WebP", 12, "little")
        elif data.startswith(_TIFF):
            _check_tiff(data, name)
        elif (at := data.find(_CODESTREAM, 0, 2**16)) >= 0:
            _check_tiles(data, name, at)


def _refuse(name: str, found: str, most: int, what: str) -> NoReturn:
    raise ImageError(
        f"{name} {found}, but at most {most:,} {what}: save it anew with an ordinary program, or leave it out"
    )


def _check_jpeg(data: bytes, name: str, pixels: int) -> None:
    scans, segments = count_parts(data, JpegParts(MAX_SCANS, MAX_SEGMENTS))
    if scans > MAX_SCANS:
        _refuse(name, f"is a JPEG with more than {MAX_SCANS} scans", MAX_SCANS, "are decoded (about 10 are usual)")
    if segments > MAX_SEGMENTS:
        _refuse(name, f"is a JPEG with more than {MAX_SEGMENTS:,} segments", MAX_SEGMENTS, "are read")
    if pixels * scans > MAX_SCANNED_PIXELS:
        found = f"is a JPEG with {pixels:,} pixels in {scans} scans"
        _refuse(name, found, MAX_SCANNED_PIXELS // pixels, "scans are decoded at that size")


def _check_chunks(data: bytes, name: str, kind: str, at: int, order: str) -> None:
    """PNG: length, type, data, checksum. WebP (RIFF): type, length, data, padded to an even length."""
    most, chunks = FREE_PARTS + len(data) // BYTES_PER_PART, 0
    while at + 8 <= len(data):
        chunks += 1
        if chunks > most:
            _refuse(name, f"is a {kind} with more than {most:,} chunks in {len(data):,} bytes", most, "are read")
        if order == "big":
            if data[at + 4 : at + 8] == b"IEND":
                return
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        else:
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            at += 8 + length + length % 2


def _check_gif(data: bytes, name: str) -> None:
    (flags,) = struct.unpack_from("B", data, 10)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    start, extensions = at, 0
    while data[at : at + 1] == b"!":  # an extension: a type, then blocks that start with their length; 0 ends it
        at, extensions = at + 2, extensions + 1
        while at < len(data) and data[at] and at - start <= MAX_GIF_METADATA:
            at += 1 + data[at]
        at += 1
        if extensions > MAX_GIF_EXTENSIONS or at - start > MAX_GIF_METADATA:
            found = f"is a GIF with {extensions:,} extensions of {at - start:,} bytes before its first frame"
            _refuse(name, found, MAX_GIF_EXTENSIONS, f"of at most {MAX_GIF_METADATA:,} bytes are read")


def _check_bmp(data: bytes, name: str, pixels: int) -> None:
    header, compression = struct.unpack_from("<I", data, 14)[0], struct.unpack_from("<I", data, 30)[0]
    if header < 40 or compression not in (1, 2):
        return
    if pixels > MAX_RLE_PIXELS or len(data) > 4 * MAX_RLE_PIXELS:
        found = f"is a run-length encoded BMP of {pixels:,} pixels and {len(data):,} bytes"
        _refuse(name, found, MAX_RLE_PIXELS, "pixels, and four times as many bytes, are decoded of that kind")


def _check_tiff(data: bytes, name: str) -> None:
    """The first table of tags: Pillow reads the values of all, which may name the same bytes again and again."""
    order, big, tags = _tiff_table(data)
    if len(tags) > MAX_TAGS:
        _refuse(name, f"is a TIFF with {len(tags):,} tags", MAX_TAGS, "are read")
    claimed = 0
    for at in tags:
        kind, values = struct.unpack_from(order + ("HQ" if big else "HI"), data, at + 2)
        claimed += values * _BYTES_OF_TYPE.get(kind, 1)
    if claimed > 2 * len(data):
        found = f"is a TIFF of {len(data):,} bytes with tags of {claimed:,} bytes"
        _refuse(name, found, 2 * len(data), "bytes of tags are read")


def _check_tiles(data: bytes, name: str, at: int) -> None:
    right, bottom, _, _, width, height, left, top = struct.unpack_from(">8I", data, at + 8)
    tiles = -(-(right - left) // max(width, 1)) * -(-(bottom - top) // max(height, 1))
    if tiles > MAX_TILES:
        _refuse(name, f"is a JPEG 2000 image of {tiles:,} tiles", MAX_TILES, "are decoded")
