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
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import default_collate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from proxygml.errors import ImageError, RecipeError

Transform = Callable[[Tensor], Tensor]

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused before they are decoded: half a gigabyte as RGB, Pillow's own bound."""

_JPEG, _START_OF_SCAN, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_APPLICATION_1, _EXIF, _ORIENTATION, _TURNED = 0xE1, b"Exif\x00\x00", 0x0112, range(2, 9)
# Below the last row that is wanted: colours of halved or quartered height are interpolated from rows that far away.
_CONTEXT_ROWS = 8
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
    bits; of an animation the first frame is taken. JPEG is decoded by simplejpeg (one that has
    to be turned by torchvision, which turns it), all else by Pillow.

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
    return _decode(_read(source), str(source))


class Region(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def decode_part(path: str | Path, choose: Callable[[int, int], Region]) -> Tensor:
    """Decode a part of an image file; of a JPEG the rows below that part are not decoded at all.

    Args:
        path: the image file.
        choose: takes the height and width of the upright image and returns a part that lies inside; called once.

    Returns:
        uint8 (3, height, width) of the part, with the same pixels as if it were cut out of decode_image's.

    Raises:
        ImageError: as decode_image; or raised by `choose`.
    """
    data = _read(path)
    frame = _jpeg_frame(data) if data.startswith(_JPEG) else None
    if frame is not None and frame.upright:
        part = choose(frame.height, frame.width)
        image = _decode(data, str(path), rows=part.top + part.height)
    else:
        image = _decode(data, str(path))
        part = choose(image.shape[-2], image.shape[-1])
    return image[:, part.top : part.top + part.height, part.left : part.left + part.width]


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error


def _decode(data: bytes, name: str, rows: int = 0) -> Tensor:
    """Decode all rows, or at least the first `rows`."""
    if not data:
        raise ImageError(f"{name} is empty: fetch it again, or leave it out")
    if data.startswith(_JPEG):
        frame = _jpeg_frame(data)
        if frame is not None:
            _check_pixels(frame.height * frame.width, name)
        # The end is looked for first, because it is found at once; the search goes on from there.
        if data.find(_START_OF_SCAN, max(0, data.rfind(_END_OF_IMAGE))) >= 0:
            raise ImageError(f"{name} is a JPEG that is truncated: fetch it again, or leave it out")
        # The rare kinds that these decoders refuse are Pillow's, and so is the reason if it refuses as well.
        with suppress(RuntimeError, AttributeError, ValueError):
            return _decode_jpeg(data, frame, rows)
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


class _JpegFrame(NamedTuple):
    """What the header of a JPEG announces."""

    height: int
    width: int
    height_at: int
    """Where the height stands, two bytes."""
    upright: bool
    """Whether no orientation tag asks for a turn."""


def _decode_jpeg(data: bytes, frame: _JpegFrame | None, rows: int) -> Tensor:
    buffer = bytearray(data)
    if frame is None or not frame.upright:
        # The operator itself: the function in front of it, torchvision.io.decode_jpeg, warns since 0.29 that TorchCodec
        # will take its place. A torchvision without the operator raises AttributeError.
        red_green_blue, upright = 3, True
        image: Tensor = torch.ops.image.decode_jpeg(
            torch.frombuffer(buffer, dtype=torch.uint8), red_green_blue, upright
        )
        return image
    if rows and rows + _CONTEXT_ROWS < frame.height:
        # The rows are coded from top to bottom: a decoder that is told of fewer stops there, and warns of the rest.
        struct.pack_into(">H", buffer, frame.height_at, rows + _CONTEXT_ROWS)
    return torch.from_numpy(simplejpeg.decode_jpeg(buffer, "RGB", strict=False)).permute(2, 0, 1)


def _check_pixels(pixels: int, name: str) -> None:
    if pixels > MAX_PIXELS:
        raise ImageError(
            f"{name} has {pixels:,} pixels, but at most {MAX_PIXELS:,} are decoded: scale it down, or leave it out"
        )


def _jpeg_frame(data: bytes) -> _JpegFrame | None:
    """The frame header of a JPEG; None where there is none (the decoder will object)."""
    at, upright = 2, True
    while 0 <= (at := data.find(b"\xff", at)) <= len(data) - 9:
        marker = data[at + 1]
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return _JpegFrame(height, width, at + 5, upright)
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if marker == _APPLICATION_1 and data.startswith(_EXIF, at + 4):
                upright = upright and _is_upright(data[at + 4 : end])
            at = end
    return None


def _is_upright(exif: bytes) -> bool:
    """Whether the tags ask for no turn; False where they cannot be read, for the decoder to judge."""
    tags = Image.Exif()
    with _quiet(), suppress(*_DECODER_FAILURES):
        tags.load(exif)
        return tags.get(_ORIENTATION) not in _TURNED
    return False


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
        _check(self.size >= 1, "size", self.size, "1 or more")
        _check(self.resize >= self.size, "resize", self.resize, f"images.size ({self.size}) or more")
        _check(
            0 < least_scale <= greatest_scale <= 1,
            "crop_scale",
            self.crop_scale,
            "a least and a greatest fraction, above 0 and up to 1",
        )
        _check(
            0 < least_ratio <= greatest_ratio < math.inf,
            "crop_ratio",
            self.crop_ratio,
            "a least and a greatest ratio, above 0",
        )
        _check(0 <= self.rotation <= 180, "rotation", self.rotation, "between 0 and 180 degrees")
        _check(0 <= self.fill <= 255, "fill", self.fill, "between 0 and 255")
        _check(
            self.interpolation in ("bilinear", "bicubic"), "interpolation", self.interpolation, "bilinear or bicubic"
        )


def _check(holds: bool, key: str, found: object, expected: str) -> None:
    if not holds:
        raise RecipeError(f"images.{key} is {found!r}, but must be {expected}")


def _pair(key: str, values: Sequence[float]) -> tuple[float, float]:
    _check(len(values) == 2, key, values, "two numbers, the least and the greatest")
    return values[0], values[1]


def test_transform(settings: ImageSettings) -> Transform:
    """The transform of images that are judged, indexed or searched: scale the shorter side, cut out the centre.

    Returns:
        A function from uint8 (3, H, W), of any H and W from 1, to uint8 (3, size, size).
    """

    def transform(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        # No more than this can reach the centre crop; scaling a strip of 1 x 60,000 pixels as it is would fill memory.
        longest = 3 * min(height, width)
        image = F.center_crop(image, [min(height, longest), min(width, longest)])
        height, width = image.shape[-2:]
        least = min(height, width)
        image = _scaled(
            image, settings.resize * height // least, settings.resize * width // least, settings.interpolation
        )
        square: Tensor = F.center_crop(image, [settings.size, settings.size])
        return square

    return transform


def train_transform(settings: ImageSettings, generator: np.random.Generator) -> Transform:
    """The transform of training images: turn, cut out a random part, scale it, perhaps mirror it.

    The crop has the distribution of torchvision's RandomResizedCrop: area uniform, ratio log-uniform. Every call draws
    from `generator`, and from nothing else.

    Returns:
        A function from uint8 (3, H, W), of any H and W from 1, to uint8 (3, size, size).
    """

    def transform(image: Tensor) -> Tensor:
        if settings.rotation:
            angle = generator.uniform(-settings.rotation, settings.rotation)
            image = F.rotate(image, angle, InterpolationMode.BILINEAR, fill=[float(settings.fill)] * 3)
        top, left, height, width = random_crop(image.shape[-2], image.shape[-1], settings, generator)
        return _finish(image[:, top : top + height, left : left + width], settings, generator)

    return transform


def _finish(crop: Tensor, settings: ImageSettings, generator: np.random.Generator) -> Tensor:
    """Scale a training crop, perhaps mirror it."""
    square = _scaled(crop, settings.size, settings.size, settings.interpolation)
    return square.flip(-1) if settings.horizontal_flip and generator.random() < 0.5 else square


def scale_down(image: Tensor, shorter_side: int) -> Tensor:
    """Scale uint8 (3, H, W) until its shorter side has so many pixels; one that has no more is returned as it is."""
    return _scaled(image, *scaled_size(image.shape[-2], image.shape[-1], shorter_side), "bicubic")


def scaled_size(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """The height and width that scale_down leaves."""
    least = min(height, width)
    if least <= shorter_side:
        return height, width
    return height * shorter_side // least, width * shorter_side // least


def _scaled(image: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """Scale uint8 (3, H, W) to that height and width, with antialiasing."""
    # As a batch of one whose strides say that the channels come last: PyTorch then neither unpacks nor packs them.
    # Its own function, because torchvision's in front of it packs the result another way, which `collate` would undo.
    batch = image.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)
    return interpolate(batch, (height, width), mode=interpolation, antialias=True, align_corners=False)[0]


def random_crop(height: int, width: int, settings: ImageSettings, generator: np.random.Generator) -> Region:
    """Draw a training crop inside an image of that height and width.

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
            return Region(top, left, crop_height, crop_width)
    crop_height = max(1, min(height, round(width / least_ratio)))
    crop_width = max(1, min(width, round(height * greatest_ratio)))
    return Region((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


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
    top, left, height, width = _box_region(box, image.shape[-2], image.shape[-1], name)
    return image[:, top : top + height, left : left + width]


def _box_region(box: Sequence[int], height: int, width: int, name: str) -> Region:
    """The part of an image that a box cuts out; see cut_box."""
    if not any(box):
        return Region(0, 0, height, width)
    left, top, right, bottom = max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])
    if left >= right or top >= bottom:
        found = ", ".join(map(str, box))
        raise ImageError(
            f"{name} is {width} x {height} pixels, and its box x_1, y_1, x_2, y_2 = {found} cuts out nothing"
        )
    return Region(top, left, bottom - top, right - left)


def thumbnail(path: str | Path, box: Sequence[int] | None, side: int) -> npt.NDArray[np.uint8]:
    """The image, or the part of it in the box (see cut_box), uint8 (H, W, 3), its longer side of that many pixels.

    A grey square where it cannot be opened: pictures of results do not fail for one image.
    """
    try:
        image = decode_image(path)
        if box is not None:
            image = cut_box(image, box, str(path))
    except ImageError:
        return np.full((side, side, 3), 225, dtype=np.uint8)
    height, width = image.shape[-2:]
    scale = side / max(height, width)
    image = _scaled(image, max(1, round(height * scale)), max(1, round(width * scale)), "bilinear")
    picture: npt.NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().numpy()
    return picture


class ImageDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The images of a catalog, cut and scaled for the network: item i is (uint8 (3, size, size), i); see `collate`.

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
        box = (0, 0, 0, 0) if self.boxes is None else self.boxes[index].tolist()
        if not self.training:
            return test_transform(self.settings)(cut_box(decode_image(path), box, path)), index
        generator = np.random.default_rng((self.seed, int(self._epoch), index))
        if self.settings.rotation:  # turns the whole image into the crop
            transform = train_transform(self.settings, generator)
            return transform(cut_box(decode_image(path), box, path)), index

        def crop(height: int, width: int) -> Region:
            whole = _box_region(box, height, width, path)
            part = random_crop(whole.height, whole.width, self.settings, generator)
            return part._replace(top=whole.top + part.top, left=whole.left + part.left)

        return _finish(decode_part(path, crop), self.settings, generator), index


def collate(items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Items of an ImageDataset as a batch.

    Returns:
        uint8 (M, 3, size, size) with its memory laid out channels last, as the embedder computes; int64 (M,) indices.
    """
    squares: Tensor = default_collate([square.permute(1, 2, 0) for square, _ in items])
    return squares.permute(0, 3, 1, 2), torch.tensor([index for _, index in items])
