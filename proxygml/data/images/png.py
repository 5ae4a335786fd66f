"""PNG: leaving out metadata, so that an image is read however damaged or large its metadata are."""

import zlib

_START = 8  # bytes of the signature, and of a chunk's length and type
_CHECKSUM = 4
_XMP = b"XML:com.adobe.xmp\0\0"  # not compressed
_TEXT_WITH_EXIF = b"Raw profile type exif\0"  # as ImageMagick writes it


def without_metadata(data: bytes) -> bytes:
    """A PNG without its ancillary chunks, except those that say how the image looks or which way up it is.

    What stays: transparency (tRNS), and EXIF and XMP whose checksums are right. A wrong checksum elsewhere stays too,
    for the decoder to refuse; metadata that are damaged are left out, as libpng does.
    """
    kept, at = [data[:_START]], _START
    while at + _START <= len(data):
        kind, body = data[at + 4 : at + _START], at + _START
        end = body + int.from_bytes(data[at : at + 4], "big") + _CHECKSUM
        if end > len(data):  # cut off: the decoder says so
            break
        if _is_critical(kind) or (_states_orientation(kind, data[body : body + 32]) and _is_intact(data, at, end)):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _is_critical(kind: bytes) -> bool:
    """Whether the image cannot be shown without a chunk: its type starts with a capital letter, or is transparency."""
    return not kind[0] & 0x20 or kind == b"tRNS"


def _states_orientation(kind: bytes, start: bytes) -> bool:
    if kind == b"iTXt":
        return start.startswith(_XMP)
    return kind == b"eXIf" or (kind in (b"tEXt", b"zTXt") and start.startswith(_TEXT_WITH_EXIF))


def _is_intact(data: bytes, at: int, end: int) -> bool:
    """Whether the checksum of the chunk in at..end, over its type and its content, is right."""
    return zlib.crc32(data[at + 4 : end - _CHECKSUM]) == int.from_bytes(data[end - _CHECKSUM : end], "big")
