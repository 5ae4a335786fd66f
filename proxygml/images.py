"""From the bytes of an image to the square that the network sees: decoding, crops, transforms, the torch Dataset.

Everything here stays 8-bit RGB on the CPU; the embedder turns it into the network's own input space. It does not check
a whole data set: that is prepare.py.
"""

import io
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from proxygml.errors import ImageError, RecipeError

Transform = Callable[[Tensor], Tensor]

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused before they are decoded: half a gigabyte as RGB, Pillow's own bound."""

_JPEG, _START_OF_SCAN, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
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
# Pillow hands these to other programs, which are not to see a stranger's files.
_FORMATS = sorted(set(Image.registered_extensions().values()) & set(Image.OPEN) - {"EPS", "WMF"})
# What Pillow warns of, a user is told by ImageError or need not know.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(source: str | Path | bytes, name: str | None = None) -> Tensor:
    """Decode an image file, or the bytes of one, to upright RGB.

    Orientation tags (EXIF) are applied; transparent parts become white; 16-bit grey levels and colours are scaled to 8
    bits; of an animation the first frame is taken. JPEG is decoded by torchvision, all else by Pillow.

    Args:
        source: a path, or the bytes of the file.
        name: what messages call bytes.

    Returns:
        uint8 (3, H, W), 0..255. Its memory may be laid out channels last.

    Raises:
        ImageError: the file is missing, empty, truncated, damaged, no image, or has more than MAX_PIXELS pixels.
    """
    if isinstance(source, bytes):
        return _decode(source, name or f"the image in memory ({len(source)} bytes)")
    try:
        return _decode(Path(source).read_bytes(), str(source))
    except OSError as error:
        raise ImageError(f"{source} cannot be read: {error.strerror or error}") from error


def _decode(data: bytes, name: str) -> Tensor:
    if not data:
        raise ImageError(f"{name} is empty: fetch it again, or leave it out")
    if data.startswith(_JPEG):
        _check_pixels(_jpeg_pixels(data), name)
        if data.rfind(_END_OF_IMAGE) < data.rfind(_START_OF_SCAN):
            raise ImageError(f"{name} is a JPEG that is truncated: fetch it again, or leave it out")
        # The rare kinds that torchvision refuses are Pillow's, and so is the reason if it refuses as well.
        with suppress(RuntimeError, AttributeError):
            return _decode_jpeg(data)
    try:
        with _quiet(), Image.open(io.BytesIO(data), formats=_FORMATS) as file:
            _check_pixels(file.width * file.height, name)
            pixels = np.array(_upright_rgb(file))
    except UnidentifiedImageError as error:
        what = "a JPEG whose header is damaged or truncated" if data.startswith(_JPEG) else "no image of a known format"
        raise ImageError(f"{name} is {what} (it starts with {data[:8]!r}): fetch it again, or leave it out") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large to be decoded safely: {error}") from error
    except ImageError:
        raise
    except _DECODER_FAILURES as error:
        raise ImageError(f"{name} is truncated or damaged ({error}): fetch it again, or leave it out") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of Pillow's, whatever the filters are by now; all threads share them, so only the main one may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decode_jpeg(data: bytes) -> Tensor:
    # The operator itself: the function in front of it, torchvision.io.decode_jpeg, warns since 0.29 that TorchCodec
    # will take its place. A torchvision without the operator raises AttributeError.
    red_green_blue, upright = 3, True
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    image: Tensor = torch.ops.image.decode_jpeg(buffer, red_green_blue, upright)
    return image


def _check_pixels(pixels: int, name: str) -> None:
    if pixels > MAX_PIXELS:
        raise ImageError(
            f"{name} has {pixels:,} pixels, but at most {MAX_PIXELS:,} are decoded: scale it down, or leave it out"
        )


def _jpeg_pixels(data: bytes) -> int:
    """The number of pixels that a JPEG's frame header announces; 0 where there is none (the decoder will object)."""
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) <= len(data) - 9:
        marker = data[at + 1]
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return int(height * width)
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def _upright_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range")
    if upright.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        grey = np.asarray(upright).clip(0, 0xFFFF) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        coloured = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
    return upright.convert("RGB")


@dataclass(frozen=True)
class ImageSettings:
    """How images are cut and scaled for the network: the `images` section of a recipe.

    Raises:
        RecipeError: a value is impossible; the message names the key.
    """

    size: int = 224
    """Side of the square that the network sees, in pixels."""

    resize: int = 256
    """Shorter side, in pixels, that a test image is scaled to before its centre is cut out; at least `size`."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest area of a random training crop, as fractions of the image's area."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width of a random training crop divided by its height."""

    horizontal_flip: bool = True
    """Whether every second training image, at random, is mirrored left to right. Turn it off for characters."""

    rotation: float = 0.0
    """Training images are turned by a random angle of at most so many degrees to either side, before the crop."""

    fill: int = 255
    """Grey level, 0 (black) to 255 (white), of the corners that a turned image leaves empty."""

    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How pixels are interpolated when an image is scaled; always with antialiasing."""

    def __post_init__(self) -> None:
        least_scale, greatest_scale = _pair("crop_scale", self.crop_scale)
        least_ratio, greatest_ratio = _pair("crop_ratio", self.crop_ratio)
        _require(self.size >= 1, "size", self.size, "1 or more")
        _require(self.resize >= self.size, "resize", self.resize, f"images.size ({self.size}) or more")
        _require(
            0 < least_scale <= greatest_scale <= 1,
            "crop_scale",
            self.crop_scale,
            "a least and a greatest fraction, above 0 and up to 1",
        )
        _require(
            0 < least_ratio <= greatest_ratio < math.inf,
            "crop_ratio",
            self.crop_ratio,
            "a least and a greatest ratio, above 0",
        )
        _require(0 <= self.rotation <= 180, "rotation", self.rotation, "between 0 and 180 degrees")
        _require(0 <= self.fill <= 255, "fill", self.fill, "between 0 and 255")
        _require(
            self.interpolation in ("bilinear", "bicubic"), "interpolation", self.interpolation, "bilinear or bicubic"
        )


def _require(holds: bool, key: str, found: object, expected: str) -> None:
    if not holds:
        raise RecipeError(f"images.{key} is {found!r}, but must be {expected}")


def _pair(key: str, values: Sequence[float]) -> tuple[float, float]:
    _require(len(values) == 2, key, values, "two numbers, the least and the greatest")
    return values[0], values[1]


def test_transform(settings: ImageSettings) -> Transform:
    """The transform of images that are judged, indexed or searched: scale the shorter side, cut out the centre.

    Returns:
        A function from uint8 (3, H, W), of any H and W from 1, to uint8 (3, size, size).
    """
    interpolation = InterpolationMode(settings.interpolation)

    def transform(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        # No more than this can reach the centre crop; scaling a strip of 1 x 60,000 pixels as it is would fill memory.
        longest = 3 * min(height, width)
        image = F.center_crop(image, [min(height, longest), min(width, longest)])
        image = F.resize(image, [settings.resize], interpolation=interpolation, antialias=True)
        image = F.center_crop(image, [settings.size, settings.size])
        return image.contiguous()

    return transform


def train_transform(settings: ImageSettings, generator: np.random.Generator) -> Transform:
    """The transform of training images: turn, cut out a random part, scale it, perhaps mirror it.

    The crop has the distribution of torchvision's RandomResizedCrop: area uniform, ratio log-uniform. Every call draws
    from `generator`, and from nothing else.

    Returns:
        A function from uint8 (3, H, W), of any H and W from 1, to uint8 (3, size, size).
    """
    size, interpolation = [settings.size, settings.size], InterpolationMode(settings.interpolation)

    def transform(image: Tensor) -> Tensor:
        if settings.rotation:
            angle = generator.uniform(-settings.rotation, settings.rotation)
            image = F.rotate(image, angle, InterpolationMode.BILINEAR, fill=[float(settings.fill)] * 3)
        top, left, height, width = random_crop(image.shape[-2], image.shape[-1], settings, generator)
        image = F.resized_crop(image, top, left, height, width, size, interpolation, antialias=True)
        if settings.horizontal_flip and generator.random() < 0.5:
            image = F.horizontal_flip(image)
        return image.contiguous()

    return transform


def random_crop(
    height: int, width: int, settings: ImageSettings, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw the top, left, height and width of a training crop, in pixels, inside an image of that height and width.

    The rules of torchvision's RandomResizedCrop: of ten draws the first that fits, or else the largest centred part
    whose ratio is allowed.
    """
    least_ratio, greatest_ratio = settings.crop_ratio
    for _ in range(10):
        area = height * width * generator.uniform(*settings.crop_scale)
        ratio = math.exp(generator.uniform(math.log(least_ratio), math.log(greatest_ratio)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(generator.integers(height - crop_height, endpoint=True))
            left = int(generator.integers(width - crop_width, endpoint=True))
            return top, left, crop_height, crop_width
    crop_height = max(1, min(height, round(width / least_ratio)))
    crop_width = max(1, min(width, round(height * greatest_ratio)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def cut_box(image: Tensor, box: Sequence[int], name: str) -> Tensor:
    """Cut a box out of an upright image.

    Args:
        image: (3, H, W), as decode_image returns it: the box is in pixels of the image after its orientation tag was
            applied.
        box: x_1, y_1, x_2, y_2 with x_1 <= x < x_2 and y_1 <= y < y_2 inside; what lies outside the image is clipped.
            (0, 0, 0, 0) is the whole image.
        name: what the message calls the image.

    Raises:
        ImageError: nothing of the box lies inside the image.
    """
    if not any(box):
        return image
    height, width = image.shape[-2:]
    left, top, right, bottom = max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])
    if left >= right or top >= bottom:
        found = ", ".join(map(str, box))
        raise ImageError(
            f"{name} is {width} x {height} pixels, and its box x_1, y_1, x_2, y_2 = {found} cuts out nothing"
        )
    return image[:, top:bottom, left:right]


class ImageDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The images of a catalog, cut and scaled for the network: item i is (uint8 (3, size, size), i).

    A training image's crop depends on (seed, epoch, index) alone, never on a worker, a process or the order of the
    items, so that runs resume and distribute exactly. An image that cannot be decoded raises ImageError.

    Args:
        paths: the image files.
        boxes: integer (n, 4), see cut_box; or None for whole images.
        settings: the sizes and the kinds of distortion.
        training: random training crops, or the centre crops of the test.
        seed: 0 or more.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        boxes: npt.NDArray[np.int64] | None,
        settings: ImageSettings,
        training: bool,
        seed: int = 0,
    ) -> None:
        if boxes is not None and boxes.shape != (len(paths), 4):
            raise ImageError(f"boxes have shape {boxes.shape}, but there are {len(paths)} images: expected (n, 4)")
        if seed < 0:
            raise RecipeError(f"seed is {seed}, but must be 0 or more")
        self.paths = list(map(str, paths))
        self.boxes = boxes
        self.settings = settings
        self.training = training
        self.seed = seed
        # In shared memory, because loader workers that outlive an epoch would not see a plain attribute change.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose random crops the next items show. Call it before iterating over a loader."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.paths[index]
        image = decode_image(path)
        if self.boxes is not None:
            image = cut_box(image, self.boxes[index].tolist(), path)
        return self._transform(index)(image), index

    def _transform(self, index: int) -> Transform:
        if not self.training:
            return test_transform(self.settings)
        return train_transform(self.settings, np.random.default_rng((self.seed, int(self._epoch), index)))
