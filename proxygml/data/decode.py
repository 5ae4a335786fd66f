"""From the bytes of an image file to upright 8-bit RGB pixels. No PyTorch: the processes that decode stay small."""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from proxygml.data.bounds import MAX_PIXELS, check_bounds, check_pixels, image_kind
from proxygml.data.jpeg import JPEG, decode_jpeg, is_truncated, read_header
from proxygml.data.orientation import Pixels, stated_orientation, turned
from proxygml.errors import ImageError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""The formats that are decoded, as Pillow names them. Its others are rare, and for some it runs other programs."""

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
# An ImageError says what the user needs to know; Pillow's warnings are not shown.
warnings.filterwarnings("ignore", module=r"PIL\.")


def image_endings() -> frozenset[str]:
    """Endings of file names that belong to FORMATS (MPO is a kind of JPEG), in lower case, with their dot."""
    return frozenset(ending for ending, format in Image.registered_extensions().items() if format in (*FORMATS, "MPO"))


def read_file(path: str | Path) -> bytes:
    """The bytes of an image file; ImageError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error


def decode(data: bytes, name: str, rows: int = 0, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode the bytes of an image file.

    Orientation tags are applied; transparent parts become white; 16-bit grey levels and colours are scaled to 8 bits;
    of an animation the first frame is taken. JPEG is decoded by simplejpeg, all else by Pillow.

    Args:
        data: the file.
        name: what messages call it.
        rows: decode at least this many rows, from the top; 0 for all.
        max_pixels: height times width may be at most this.

    Returns:
        uint8 (H, W, 3), 0..255.

    Raises:
        ImageError: the file is empty, truncated, damaged, no image, or exceeds a bound (see bounds.py).
    """
    if not data:
        raise ImageError(f"{name} is empty: fetch it again, or leave it out")
    check_bounds(data, name, max_pixels)
    if data.startswith(JPEG):
        if is_truncated(data):
            raise ImageError(f"{name} is a JPEG that is truncated: fetch it again, or leave it out")
        header = read_header(data)
        if header is None:
            raise ImageError(_unknown(data, name))
        # Pillow decodes the rare kinds that this decoder refuses, or gives the reason why nobody can.
        with suppress(RuntimeError, ValueError):
            return decode_jpeg(data, header, rows)
    return _decode_with_pillow(data, name, max_pixels)


def _decode_with_pillow(data: bytes, name: str, max_pixels: int) -> Pixels:
    try:
        with _quiet(), Image.open(io.BytesIO(data), formats=FORMATS) as file:
            check_pixels(file.height, file.width, name, max_pixels)
            return upright_pixels(file, name)
    except UnidentifiedImageError as error:
        raise ImageError(_unknown(data, name)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large to be decoded safely: {error}") from error
    except ImageError:
        raise
    except _DECODER_FAILURES as error:
        raise ImageError(_damaged(name, error)) from error


def upright_pixels(image: Image.Image, name: str) -> Pixels:
    """The pixels of a Pillow image as those of its file are decoded: see `decode`.

    Raises:
        ImageError: the image, which Pillow may read only now, is truncated or damaged.
    """
    try:
        return turned(np.array(_rgb(image)), stated_orientation(image.info))
    except _DECODER_FAILURES as error:
        raise ImageError(_damaged(name, error)) from error


def _damaged(name: str, error: Exception) -> str:
    return f"{name} is truncated or damaged ({error}): fetch it again, or leave it out"


def _unknown(data: bytes, name: str) -> str:
    kind = image_kind(data)
    what = (
        "no image of a known format"
        if kind is None
        else f"a file of the format {kind} whose header is damaged or cut off"
    )
    return f"{name} is {what} (it starts with {data[:8]!r}): fetch it again, or leave it out"


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of Pillow's, whatever the filters are by now; all threads share them, so only the main one may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        grey = np.asarray(image).clip(0, 0xFFFF) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
    return image.convert("RGB")
