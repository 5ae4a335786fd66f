"""Which way up an image is: the orientation tag of its EXIF block, and turning pixels by it.

The tag is read here, by itself. Pillow reads the whole block, in which a file of 64 kB can claim hundreds of megabytes.
"""

import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

UPRIGHT = 1
ORIENTATION = 0x0112
"""The number of the tag."""
_EXIF = b"Exif\x00\x00"
_INTEGERS = {
    1: "B",
    3: "H",
    4: "I",
    6: "b",
    8: "h",
    9: "i",
}  # TIFF's types of numbers that fit in an entry of a table of tags
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def orientation_of(exif: bytes) -> int:
    """The orientation that an EXIF block states.

    Args:
        exif: the block, with or without the six bytes `Exif\\0\\0` in front.

    Returns:
        1 (upright) to 8, as EXIF numbers them; 1 where the block states none or cannot be read.
    """
    block = exif
    while block.startswith(_EXIF):  # some programs write it twice
        block = block.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return UPRIGHT
    with suppress(struct.error):  # cut off
        (table,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, table)
        return read_entry(block, order, range(table + 2, table + 2 + 12 * count, 12)).orientation
    return UPRIGHT


class OrientationEntry(NamedTuple):
    """The entry for the orientation in a table of tags."""

    orientation: int
    at: int | None
    """Where the entry starts; None where there is none."""


def read_entry(data: bytes, order: str, entries: range, big: bool = False) -> OrientationEntry:
    """Look for the orientation in a table of tags, of EXIF or TIFF.

    Args:
        data: the block or file.
        order: `<` or `>`, the order of its bytes.
        entries: where the entries start.
        big: whether they are those of a BigTIFF.

    Raises:
        struct.error: the table is cut off.
    """
    for at in entries:
        tag, kind, values = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, at)
        if tag == ORIENTATION:
            if values != 1 or kind not in _INTEGERS:  # of a type that no orientation has
                return OrientationEntry(UPRIGHT, at)
            (value,) = struct.unpack_from(order + _INTEGERS[kind], data, at + (12 if big else 8))
            return OrientationEntry(value if 1 <= value <= 8 else UPRIGHT, at)
    return OrientationEntry(UPRIGHT, None)


def stated_orientation(info: Mapping[str | tuple[int, int], Any]) -> int:
    """The orientation in what Pillow collected about an image (`Image.info`): EXIF, or else XMP.

    The files of TIFF, AVIF and HEIF state it elsewhere.
    """
    exif = info.get("exif")
    if exif is None and isinstance(text := info.get("Raw profile type exif"), str):
        try:  # as ImageMagick writes it into a PNG: a name, a length, hexadecimal digits
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:
            return UPRIGHT
    if isinstance(exif, bytes) and (orientation := orientation_of(exif)) != UPRIGHT:
        return orientation
    xmp = info.get("xmp", info.get("XML:com.adobe.xmp"))
    found = _XMP.search(xmp.encode() if isinstance(xmp, str) else xmp or b"")
    return int(found[1]) if found else UPRIGHT


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels (H, W, 3) turned upright, for the orientation 1..8; (W, H, 3) for 5 to 8."""
    if orientation == UPRIGHT:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    # What remains is to mirror along one axis, both or none.
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels.copy()  # PyTorch takes no reversed axes
