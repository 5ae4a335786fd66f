"""Small files that ask for far more work or memory than an image of their pixels does."""

import struct
import zlib


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def _bits(text: str) -> bytes:
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def jpeg_with_scans(side: int, scans: int, before: bytes = b"", between: bytes = b"") -> bytes:
    """A grey progressive JPEG whose scans after the first are nearly empty: each is a pass over all its pixels.

    Args:
        side: height and width.
        scans: all of them.
        before: segments in front of the header.
        between: segments in front of each scan.
    """
    blocks = (-(-side // 8)) ** 2
    head = b"\xff\xd8" + before + segment(0xDB, b"\0" + b"\x01" * 64)
    head += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\0")
    head += segment(0xC4, b"\x00" + bytes([1] + [0] * 15) + b"\x00") + segment(
        0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0"
    )
    first = segment(0xDA, b"\x01\x01\x00" + bytes([0, 0, 0])) + _bits("0" * blocks)
    run = _bits(("0" + "1" * 14) * (blocks // 0x7FFF + 1))
    scan = between + segment(0xDA, b"\x01\x01\x00" + bytes([1, 63, 0x10])) + run
    return head + first + scan * (scans - 1) + b"\xff\xd9"


def png_with_chunks(chunks: int, text: bytes = b"") -> bytes:
    """A PNG of one pixel with so many empty chunks, and a compressed text."""

    def chunk(kind: bytes, data: bytes = b"") -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    packed = chunk(b"zTXt", b"a\0\0" + zlib.compress(text)) if text else b""
    return head + chunk(b"teSt") * chunks + packed + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND")


def gif_with_comments(comments: int, size: int = 1) -> bytes:
    """A GIF of one pixel with so many comments in front of it, each of so many blocks of 255 bytes."""
    comment = b"!\xfe" + (b"\xff" + b"a" * 255) * size + b"\0"
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return head + comment * comments + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02D\x01\0;"


def webp_with_chunks(webp: bytes, chunks: int) -> bytes:
    """A WebP with so many empty chunks appended."""
    body = webp[12:] + b"TEST\0\0\0\0" * chunks
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def tiff_with_tags(tags: int, values: int) -> bytes:
    """A TIFF of a few kilobytes; each of its tags claims the same `values` bytes."""
    body = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", tags)
    body += b"".join(struct.pack("<HHII", 60_000 + n % 5000, 1, values, 8) for n in range(tags))
    return body + bytes(max(4, values - len(body)))


def bmp_of_runs(side: int) -> bytes:
    """A run-length encoded BMP of nothing but ends of lines."""
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 1, 1, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + head + bytes(1024) + b"\0\0" * side + b"\0\1"


def jpeg2000_with_tiles(side: int, tile: int) -> bytes:
    """The header of a JPEG 2000 image, cut into tiles of that side."""
    sizes = struct.pack(">H8IH", 0, side, side, 0, 0, tile, tile, 0, 0, 1) + b"\x07\x01\x01"
    return b"\xff\x4f" + segment(0x51, sizes) + b"\xff\xd9"
