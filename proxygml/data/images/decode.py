"""From the bytes of an image file to upright 8-bit RGB pixels. No PyTorch: the processes that decode stay small."""

import io
import re
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin, UnidentifiedImageError

from proxygml.data.images import png
from proxygml.data.images.bounds import MAX_PIXELS, check_bounds, check_pixels
from proxygml.data.images.formats import FORMATS, HEAD, HEIF_ENDINGS, MAX_TAGS, image_kind, register_heif, tiff_table
from proxygml.data.images.jpeg import decode_jpeg, is_truncated, read_header, without_metadata
from proxygml.data.images.levels import Assumption, as_levels, tell_once
from proxygml.data.images.orientation import ORIENTATION, UPRIGHT, Pixels, read_entry, stated_orientation, turned
from proxygml.data.images.packed import packed_place, read_packed
from proxygml.errors import ImageError
from proxygml.files import PathLike, check_size
from proxygml.urls import Url, as_place

LARGEST_IMAGE = 2**31
"""Bytes of a file: twice what MAX_PIXELS take with 16 bits a colour and without compression."""

_SIXTEEN_BITS = re.compile(r"(LA|RGB[AXa]?);16[BLN]")
_BIG_ENDIAN = re.compile(r"([IF];(?:32|64))B(S?F?)$")
_EXIF_ITEM = re.compile(rb"(infe.{8}|infe.{10})Exif", re.DOTALL)  # by which an AVIF says that it has EXIF
_PHOTOMETRIC = 262  # the tag of a TIFF that says whether 0 is black

# What Pillow's readers are known to raise when the bytes are not what they should be.
_DECODER_FAILURES = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
# Grey TIFFs that Pillow can unpack, but has no entry for: 64-bit floating-point numbers; at 16 and 32 bits, 0 as white.
for _order, _big in ((b"II", ""), (b"MM", "B")):
    for _black in (0, 1):
        for _kind, _bits, _mode, _raw in (
            (1, 16, f"I;16{_big}", f"I;16{_big}"),
            (2, 32, "I", f"I;32{_big}S"),
            (3, 64, "F", f"F;64{_big}F"),
        ):
            TiffImagePlugin.OPEN_INFO.setdefault((_order, _black, (_kind,), 1, (_bits,), ()), (_mode, _raw))
# An ImageError says what the user needs to know; Pillow's warnings are not shown.
warnings.filterwarnings("ignore", module=r"PIL\.")


def image_endings() -> frozenset[str]:
    """Endings of file names that belong to FORMATS (MPO is a kind of JPEG), in lower case, with their dot."""
    known = {ending for ending, format in Image.registered_extensions().items() if format in (*FORMATS, "MPO")}
    return frozenset(known | set(HEIF_ENDINGS))


def read_file(place: PathLike, kept: bool = False) -> bytes:
    """The bytes of an image file.

    Args:
        place: a path or a URL.
        kept: whether what is read from a URL is kept on the disk, since it will be read again.

    Raises:
        ImageError: it cannot be read.
    """
    if (packed := packed_place(place)) is not None:
        return read_packed(packed)
    path = as_place(place, "an image", ImageError)
    if isinstance(path, Url):
        from proxygml.remote import read, read_kept  # noqa: PLC0415  (most images are files)

        return (read_kept if kept else read)(path, LARGEST_IMAGE, ImageError)
    try:
        if not path.is_dir():  # of which reading says so itself
            check_size(path, LARGEST_IMAGE, ImageError)
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error


class Decoded(NamedTuple):
    """An image, and what had to be assumed about its numbers, if anything."""

    pixels: Pixels
    assumption: Assumption | None


def decode(data: bytes, name: str, rows: int = 0, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode the bytes of an image file; where its range had to be assumed, this is printed once (see levels.py).

    Orientation tags are applied, and count as upright where they cannot be read; transparent parts become white; other
    numbers than 0..255 are scaled; of an animation the first frame is taken. JPEG is decoded by simplejpeg, HEIF by
    pillow-heif, all else by Pillow.

    Args:
        data: the file.
        name: what messages call it.
        rows: decode at least this many rows, from the top; 0 for all.
        max_pixels: height times width may be at most this.

    Returns:
        uint8 (H, W, 3), 0..255.

    Raises:
        ImageError: the file is empty, truncated, damaged, no image of a format that is read, or exceeds a bound (see
            bounds.py).
    """
    pixels, assumption = decode_silently(data, name, rows, max_pixels)
    tell_once(assumption)
    return pixels


def decode_silently(data: bytes, name: str, rows: int = 0, max_pixels: int = MAX_PIXELS) -> Decoded:
    """As `decode`, without printing."""
    if not data:
        raise ImageError(f"{name} is empty: fetch it again, or leave it out")
    check_bounds(data, name, max_pixels)
    kind, orientation = image_kind(data), None
    if kind is None:
        raise ImageError(_unknown(data, name))
    if kind == "JPEG":
        if is_truncated(data):
            raise ImageError(f"{name} is a JPEG that is truncated: fetch it again, or leave it out")
        header = read_header(data)
        if header is None:
            raise ImageError(_unknown(data, name))
        # Pillow decodes the rare kinds that this decoder refuses, or gives the reason why nobody can.
        with suppress(RuntimeError, ValueError):
            return Decoded(decode_jpeg(data, header, rows), None)
        orientation, data = header.orientation, without_metadata(data)
    elif kind == "TIFF":
        orientation, data = _upright_tiff(data)
    elif kind == "PNG":
        data = png.without_metadata(data)
    elif kind == "AVIF":
        data = _EXIF_ITEM.sub(rb"\1skip", data[:HEAD]) + data[HEAD:]
    elif kind == "HEIF":
        register_heif(name)
    return _decode_with_pillow(data, name, kind, max_pixels, orientation)


def _upright_tiff(data: bytes) -> tuple[int, bytes]:
    """The orientation that a TIFF states, and the file as one that states none."""
    with suppress(struct.error):
        order, big, entries = tiff_table(data)
        orientation, at = read_entry(data, order, entries[:MAX_TAGS], big)
        if at is not None:
            upright = struct.pack(order + ("HHQHxxxxxx" if big else "HHIHxx"), ORIENTATION, 3, 1, UPRIGHT)
            data = data[:at] + upright + data[at + len(upright) :]
        return orientation, data
    return UPRIGHT, data


def _decode_with_pillow(data: bytes, name: str, kind: str, max_pixels: int, orientation: int | None) -> Decoded:
    """`orientation`: what the file states; None looks for it in what Pillow has read."""
    try:
        with _opened(data, kind) as file:
            check_pixels(file.height, file.width, name, max_pixels)
            if kind in ("AVIF", "HEIF"):  # their own properties state it, which the decoders apply
                file.info.pop("xmp", None)
            stored = _raw_mode(file)
            decoded = _decoded(file, name)
            if stored is not None and (colours := _twelve_bits(file, data, kind, stored)) is not None:
                decoded = _decoded_colours(colours, name)
            orientation = stated_orientation(file.info) if orientation is None else orientation
            return decoded._replace(pixels=turned(decoded.pixels, orientation))
    except UnidentifiedImageError as error:
        raise ImageError(_unknown(data, name)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large to be decoded safely: {error}") from error
    except ImageError:
        raise
    except _DECODER_FAILURES as error:
        raise ImageError(_damaged(name, error)) from error


@contextmanager
def _opened(data: bytes, kind: str) -> Iterator[ImageFile.ImageFile]:
    with _quiet(), Image.open(io.BytesIO(data), formats=(kind,)) as file:
        if kind == "TIFF":  # it states that it is upright, and Pillow would fail on other tags that it need not read
            file.load_end = lambda: None  # type: ignore[method-assign]
            file.tile = [_in_native_order(tile) for tile in file.tile]
        yield file


def _in_native_order(tile: ImageFile._Tile) -> ImageFile._Tile:
    """A part of a TIFF, as it is stored; of a compressed one, libtiff gives the numbers in this machine's order.

    Pillow takes numbers of 16 bits for that, but those of 32 bits for the file's order.
    """
    if tile.codec_name != "libtiff" or not isinstance(tile.args, tuple):
        return tile
    return tile._replace(args=(_BIG_ENDIAN.sub(r"\1N\2", tile.args[0]), *tile.args[1:]))


def upright_pixels(image: Image.Image, name: str) -> Pixels:
    """The pixels of a Pillow image as those of its file are decoded: see `decode`.

    Raises:
        ImageError: the image, which Pillow may read only now, is truncated or damaged.
    """
    try:
        pixels, assumption = _decoded(image, name)
        tell_once(assumption)
        return turned(pixels, stated_orientation(image.info))
    except ImageError:
        raise
    except _DECODER_FAILURES as error:
        raise ImageError(_damaged(name, error)) from error


def _damaged(name: str, error: Exception) -> str:
    return f"{name} is truncated or damaged ({error}): fetch it again, or leave it out"


def _unknown(data: bytes, name: str) -> str:
    kind = image_kind(data)
    if kind is None:
        return (
            f"{name} is no image of a known format (it starts with {data[:8]!r}; known are {', '.join(FORMATS)}): "
            "convert it, fetch it again, or leave it out"
        )
    return (
        f"{name} is a file of the format {kind} whose header is damaged or cut off, or of a kind of {kind} that is not "
        f"decoded (it starts with {data[:8]!r}): convert it to 8-bit RGB, fetch it again, or leave it out"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of Pillow's, whatever the filters are by now; all threads share them, so only the main one may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decoded(image: Image.Image, name: str) -> Decoded:
    """The pixels as they are stored, not turned."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _decoded_numbers(image, name)
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    if image.has_transparency_data:
        return Decoded(np.array(_over_white(image.convert("RGBA"))), None)
    return Decoded(np.array(image.convert("RGB")), None)


def _over_white(coloured: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")


def _decoded_numbers(image: Image.Image, name: str) -> Decoded:
    """An image of one channel of 16-bit, 32-bit or floating-point numbers."""
    values = np.asarray(image)
    sixteen_bits = image.mode.startswith("I;16") or image.format == "PPM"
    levels, assumption = as_levels(values, name, 65535 if sixteen_bits else None)
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # 0 is white there
        levels = 255 - levels
    if isinstance(clear := image.info.get("transparency"), int):
        levels = np.where(values == clear, np.uint8(255), levels)
    return Decoded(np.repeat(levels[..., None], 3, axis=2), assumption)


def _raw_mode(image: ImageFile.ImageFile) -> str | None:
    """How 16-bit colours are stored in a file that is not loaded yet, such as `RGB;16B`; None for all else."""
    arguments = image.tile[0].args if image.tile else None
    raw = arguments[0] if isinstance(arguments, tuple) else arguments
    return raw if isinstance(raw, str) and _SIXTEEN_BITS.fullmatch(raw) else None


def _twelve_bits(file: Image.Image, data: bytes, kind: str, stored: str) -> npt.NDArray[np.uint16] | None:
    """16-bit colours (H, W, channels) of a loaded file that have at most 12 bits; None where they have more.

    Pillow keeps the upper bytes alone. It gives the lower ones when it takes the numbers for those of the other order.
    """
    upper = np.asarray(file).astype(np.uint16)
    if upper[..., :3].max() > 15:
        return None
    layout, order = stored.split(";16")
    if layout == "LA":
        return _grey_with_opacity(data, kind)
    little = order == "L" or (order == "N" and sys.byteorder == "little")
    other = f"{layout};16{'B' if little else 'L'}"
    with _opened(data, kind) as again:
        again.tile = [
            tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
            for tile in again.tile
        ]
        colours: npt.NDArray[np.uint16] = upper << 8 | np.asarray(again)
    return colours


def _grey_with_opacity(data: bytes, kind: str) -> npt.NDArray[np.uint16]:
    """16-bit grey and its opacity as colours (H, W, 4): a pixel has four bytes, which are read as those of RGBA."""
    with _opened(data, kind) as file:
        file._mode = "RGBA"  # there is no public way
        file.tile = [tile._replace(args="RGBA") for tile in file.tile]
        numbers = np.asarray(file).view(">u2")
        colours: npt.NDArray[np.uint16] = numbers[..., [0, 0, 0, 1]].astype(np.uint16)
    return colours


def _decoded_colours(colours: npt.NDArray[np.uint16], name: str) -> Decoded:
    """Colours (H, W, 3 or 4) of 16 bits, the fourth channel being the opacity."""
    levels, assumption = as_levels(colours[..., :3], name, 65535)
    if colours.shape[2] == 4:
        opacity, _ = as_levels(colours[..., 3:], name, 65535)
        levels = np.array(_over_white(Image.fromarray(np.concatenate([levels, opacity], axis=2))))
    return Decoded(levels, assumption)
