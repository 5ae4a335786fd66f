"""JPEG: reading its header and counting its scans without decoding it, and decoding only the rows that are needed."""

import re
import struct
from typing import NamedTuple

import simplejpeg

from proxygml.data.images.orientation import UPRIGHT, Pixels, orientation_of, turned

JPEG = b"\xff\xd8"
"""How every JPEG starts."""

_MAX_HEADER_SEGMENTS = 1000
_EXIF, _APPLICATION_1, _APPLICATION_2, _SCAN, _END = b"Exif\x00\x00", 0xE1, 0xE2, 0xDA, 0xD9
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset((*range(0xC0), *range(0xD0, 0xDA)))  # no length follows these markers
_MARKER = re.compile(rb"\xff[^\x00\xff]")
# Inside of a scan, FF 00 is data and FF D0 to FF D7 are restarts.
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Rows decoded below the last one needed: colours stored at half or quarter height are interpolated from rows so far.
_CONTEXT_ROWS = 8


class JpegHeader(NamedTuple):
    """What the header of a JPEG says."""

    height: int
    """Of the image as it is stored, in pixels."""
    width: int
    height_at: int
    """Position of the height in the file, two bytes."""
    orientation: int
    """1 (upright) to 8, as EXIF numbers them."""


def read_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG; None where it has none, or none within 1000 segments."""
    at, orientation = 2, UPRIGHT
    for _ in range(_MAX_HEADER_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or found.start() > len(data) - 9:
            return None
        at, marker = found.end(), data[found.end() - 1]
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return JpegHeader(height, width, at + 3, orientation)
        if marker not in _WITHOUT_LENGTH:
            end = at + int.from_bytes(data[at : at + 2], "big")
            if marker == _APPLICATION_1 and data.startswith(_EXIF, at + 2) and orientation == UPRIGHT:
                orientation = orientation_of(data[at + 2 : end])
            at = end
    return None


def without_metadata(data: bytes) -> bytes:
    """A JPEG without its segments APP1 and APP2 (EXIF, XMP, further pictures), which another decoder might refuse."""
    kept, at = [data[:2]], 2
    while (found := _MARKER.search(data, at)) is not None:
        marker, start = data[found.end() - 1], found.end()
        end = start if marker in _WITHOUT_LENGTH else start + int.from_bytes(data[start : start + 2], "big")
        if marker in _START_OF_FRAME:
            break
        if marker not in (_APPLICATION_1, _APPLICATION_2):
            kept.append(data[at:end])
        at = max(end, start)
    return b"".join([*kept, data[at:]])


class JpegParts(NamedTuple):
    """How much work a JPEG is for a decoder."""

    scans: int
    """Passes over the image."""
    segments: int
    """Tables and metadata."""


def count_parts(data: bytes, most: JpegParts) -> JpegParts:
    """The scans and segments of a JPEG up to its end; counting stops where one of them exceeds `most`.

    A baseline JPEG has one scan, or one a colour; a progressive one has about ten. Decoding takes time for each of
    them, however few bytes it has. The markers are followed as a decoder follows them, so that neither a picture
    inside the metadata nor what cameras append after the end is counted.
    """
    at, scans, segments = 2, 0, 0
    while scans <= most.scans and segments <= most.segments and (found := _MARKER_IN_SCAN.search(data, at)):
        at, marker = found.end(), data[found.end() - 1]
        if marker == _END:
            break
        if marker not in _WITHOUT_LENGTH or marker == _SCAN:
            scans, segments = scans + (marker == _SCAN), segments + (marker != _SCAN)
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return JpegParts(scans, segments)


def is_truncated(data: bytes) -> bool:
    """Whether a scan begins after the last end of an image: an unfinished download, also where zeros pad it."""
    # The search for the end comes first, because it is fast; the search for a scan continues from there.
    return data.find(_START_OF_SCAN, max(0, data.rfind(_END_OF_IMAGE))) >= 0


def decode_jpeg(data: bytes, header: JpegHeader, rows: int = 0) -> Pixels:
    """Decode a JPEG, or at least the first `rows` rows of one that is upright.

    Returns:
        uint8 (H, W, 3), RGB, upright.

    Raises:
        RuntimeError, ValueError: this decoder does not know its kind, or it is damaged.
    """
    if rows and header.orientation == UPRIGHT and rows + _CONTEXT_ROWS < header.height:
        # Rows are stored from top to bottom: a decoder that reads a smaller height stops there.
        buffer = bytearray(data)
        struct.pack_into(">H", buffer, header.height_at, rows + _CONTEXT_ROWS)
        pixels: Pixels = simplejpeg.decode_jpeg(buffer, "RGB", strict=False)
        return pixels
    return turned(simplejpeg.decode_jpeg(data, "RGB", strict=False), header.orientation)
