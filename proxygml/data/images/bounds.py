"""What a file may ask of a decoder: counted in the file before anything is decoded.

A bound on pixels does not bound work. A JPEG of half a megabyte can ask for thousands of passes over its pixels, a GIF
for a comment that is copied a thousand times, a TIFF for a table of tags that takes terabytes. Honest files stay far
below these bounds. Only the first frame of an animation is decoded, so the number of frames needs no bound.
"""

import struct
from contextlib import suppress
from typing import NoReturn

from proxygml.data.images.formats import CODESTREAM, HEAD, MAX_TAGS, PNG, TIFF, image_size, tiff_table
from proxygml.data.images.jpeg import JPEG, JpegParts, count_parts
from proxygml.errors import ImageError, counted

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

MAX_TILES = 10_000
"""Of a JPEG 2000 image."""

MAX_GIF_EXTENSIONS, MAX_GIF_METADATA = 100, 2**20
"""Comments and other extensions before a GIF's first frame, and their bytes: Pillow copies all for each further one."""

FREE_PARTS, BYTES_PER_PART = 1000, 1024
"""A PNG or WebP may have 1000 chunks, and one more for each kilobyte of the file."""

_BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def check_pixels(height: int, width: int, name: str, most: int = MAX_PIXELS) -> None:
    """Raise ImageError where an image of that height and width has more than `most` pixels."""
    if height * width > most:
        raise ImageError(
            f"{name} has {width:,} x {height:,} pixels, but may have at most {most:,}: scale it down, or leave it out"
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
        elif data.startswith(PNG):
            _check_chunks(data, name, "PNG", 8, "big")
        elif data.startswith(b"GIF8"):
            _check_gif(data, name)
        elif data.startswith(b"BM") and size is not None:
            _check_bmp(data, name, size[0] * size[1])
        elif data.startswith(b"RIFF"):
            _check_chunks(data, name, "WebP", 12, "little")
        elif data.startswith(TIFF):
            _check_tiff(data, name)
        elif (at := data.find(CODESTREAM, 0, HEAD)) >= 0:
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
        found = f"is a JPEG with {counted(pixels, 'pixel')} in {counted(scans, 'scan')}"
        _refuse(name, found, MAX_SCANNED_PIXELS // pixels, "scans are decoded at that size")


def _check_chunks(data: bytes, name: str, kind: str, at: int, order: str) -> None:
    """PNG: length, type, data, checksum. WebP (RIFF): type, length, data, padded to an even length."""
    most, chunks = FREE_PARTS + len(data) // BYTES_PER_PART, 0
    while at + 8 <= len(data):
        chunks += 1
        if chunks > most:
            _refuse(
                name, f"is a {kind} with more than {most:,} chunks in {counted(len(data), 'byte')}", most, "are read"
            )
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
            sizes = f"{counted(extensions, 'extension')} of {counted(at - start, 'byte')}"
            found = f"is a GIF with {sizes} before its first frame"
            _refuse(name, found, MAX_GIF_EXTENSIONS, f"of at most {MAX_GIF_METADATA:,} bytes are read")


def _check_bmp(data: bytes, name: str, pixels: int) -> None:
    header, compression = struct.unpack_from("<I", data, 14)[0], struct.unpack_from("<I", data, 30)[0]
    if header < 40 or compression not in (1, 2):
        return
    if pixels > MAX_RLE_PIXELS or len(data) > 4 * MAX_RLE_PIXELS:
        found = f"is a run-length encoded BMP of {counted(pixels, 'pixel')} and {counted(len(data), 'byte')}"
        _refuse(name, found, MAX_RLE_PIXELS, "pixels, and four times as many bytes, are decoded of that kind")


def _check_tiff(data: bytes, name: str) -> None:
    """The first table of tags: Pillow reads the values of all, which may name the same bytes again and again."""
    order, big, tags = tiff_table(data)
    if len(tags) > MAX_TAGS:
        _refuse(name, f"is a TIFF with {counted(len(tags), 'tag')}", MAX_TAGS, "are read")
    claimed = 0
    for at in tags:
        kind, values = struct.unpack_from(order + ("HQ" if big else "HI"), data, at + 2)
        claimed += values * _BYTES_OF_TYPE.get(kind, 1)
    if claimed > 2 * len(data):
        found = f"is a TIFF of {counted(len(data), 'byte')} with tags of {counted(claimed, 'byte')}"
        _refuse(name, found, 2 * len(data), "bytes of tags are read")


def _check_tiles(data: bytes, name: str, at: int) -> None:
    right, bottom, _, _, width, height, left, top = struct.unpack_from(">8I", data, at + 8)
    tiles = -(-(right - left) // max(width, 1)) * -(-(bottom - top) // max(height, 1))
    if tiles > MAX_TILES:
        _refuse(name, f"is a JPEG 2000 image of {counted(tiles, 'tile')}", MAX_TILES, "are decoded")
