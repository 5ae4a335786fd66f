"""From an image file to a tensor: decoding, parts of images, thumbnails, and the torch Dataset of a catalog's images.

preparing/ checks whole data sets.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import default_collate

from proxygml.data.images.decode import decode, read_file
from proxygml.data.images.jpeg import JPEG, read_header
from proxygml.data.images.orientation import UPRIGHT
from proxygml.data.images.settings import ImageSettings
from proxygml.data.images.transforms import (
    Region,
    box_region,
    cut_box,
    finish_crop,
    random_crop,
    scaled,
    test_transform,
    train_transform,
)
from proxygml.data.lazy_list import LazyList
from proxygml.errors import ImageError, RecipeError, counted
from proxygml.files import PathLike


def decode_image(source: str | Path | bytes, name: str | None = None, kept: bool = False) -> Tensor:
    """Decode an image file, or the bytes of one, to upright RGB; see `decode.decode`.

    Args:
        source: a path or a URL, or the bytes of the file.
        name: what messages call bytes.
        kept: see `read_file`.

    Returns:
        uint8 (3, H, W), 0..255. Its memory may be laid out channels last.

    Raises:
        ImageError: the file is missing, empty, truncated, damaged, no image, or exceeds a bound (see bounds.py).
    """
    if isinstance(source, bytes):
        return _decoded(source, name or f"the image in memory ({counted(len(source), 'byte')})")
    return _decoded(read_file(source, kept), str(source))


def _decoded(data: bytes, name: str, rows: int = 0) -> Tensor:
    return torch.from_numpy(decode(data, name, rows)).permute(2, 0, 1)


def decode_part(path: str | Path, choose: Callable[[int, int], Region], kept: bool = False) -> Tensor:
    """Decode a part of an image file; of a JPEG the rows below that part are not decoded at all.

    Args:
        path: the image file.
        choose: a function from the height and width of the upright image to a part that lies inside; called once.
        kept: see `read_file`.

    Returns:
        uint8 (3, height, width) of the part, with the same pixels as if it were cut out of decode_image's.

    Raises:
        ImageError: as decode_image; or raised by `choose`.
    """
    data = read_file(path, kept)
    header = read_header(data) if data.startswith(JPEG) else None
    if header is not None and header.orientation == UPRIGHT:
        part = choose(header.height, header.width)
        image = _decoded(data, str(path), rows=part.top + part.height)
    else:
        image = _decoded(data, str(path))
        part = choose(image.shape[-2], image.shape[-1])
    return image[:, part.top : part.top + part.height, part.left : part.left + part.width]


def thumbnail(path: str | Path, box: Sequence[int] | None, side: int) -> npt.NDArray[np.uint8]:
    """The image, or the part of it in the box (see cut_box), uint8 (H, W, 3), its longer side that many pixels long.

    An image that cannot be opened becomes a grey square, so that one image does not spoil a picture of results.
    """
    try:
        return small_picture(decode_image(path), box, side, str(path))
    except ImageError:
        return grey_square(side)


def small_picture(image: Tensor, box: Sequence[int] | None, side: int, name: str) -> npt.NDArray[np.uint8]:
    """An image (3, H, W), or the part of it in the box, as uint8 (h, w, 3) whose longer side has `side` pixels.

    Raises:
        ImageError: nothing of the box lies inside the image.
    """
    if box is not None:
        image = cut_box(image, box, name)
    height, width = image.shape[-2:]
    scale = side / max(height, width)
    image = scaled(image, max(1, round(height * scale)), max(1, round(width * scale)), "bilinear")
    picture: npt.NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().numpy()
    return picture


def grey_square(side: int) -> npt.NDArray[np.uint8]:
    """The grey square that replaces an image that cannot be shown, uint8 (side, side, 3)."""
    return np.full((side, side, 3), 225, dtype=np.uint8)


class ImageDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The images of a catalog, cut and scaled for the network: item i is (uint8 (3, size, size), i); see `collate`.

    A training image's crop depends on (seed, epoch, index) alone, never on a worker, a process or the order of the
    items, so that runs resume and distribute exactly. An image that cannot be decoded raises ImageError.

    Args:
        paths: the image files, or URLs of some.
        boxes: integer (n, 4), see cut_box; or None for whole images.
        settings: the sizes and the kinds of distortion.
        training: random training crops, or the centre crops of the test.
        seed: 0 or more.
        kept: whether images from URLs are kept on the disk, since they are read again; see `read_file`.
    """

    def __init__(
        self,
        paths: Sequence[PathLike],
        boxes: npt.NDArray[np.int64] | None,
        settings: ImageSettings,
        training: bool,
        seed: int = 0,
        kept: bool = False,
    ) -> None:
        if boxes is not None and boxes.shape != (len(paths), 4):
            raise ImageError(
                f"boxes have shape {boxes.shape}, but must have ({len(paths)}, 4): four edges for each image"
            )
        if seed < 0:
            raise RecipeError(f"seed is {seed}, but must be 0 or more")
        self.paths = paths if isinstance(paths, LazyList) else list(map(str, paths))
        self.boxes = boxes
        self.settings = settings
        self.training = training
        self.seed = seed
        self.kept = kept
        # In shared memory, because loader workers that outlive an epoch would not see a plain attribute change.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose random crops the next items show. Call it before iterating over a loader."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = str(self.paths[index])
        box = (0, 0, 0, 0) if self.boxes is None else self.boxes[index].tolist()
        if not self.training:
            return test_transform(self.settings)(cut_box(decode_image(path, kept=self.kept), box, path)), index
        generator = np.random.default_rng((self.seed, int(self._epoch), index))
        if self.settings.rotation:  # turns the whole image into the crop
            transform = train_transform(self.settings, generator)
            return transform(cut_box(decode_image(path, kept=self.kept), box, path)), index

        def crop(height: int, width: int) -> Region:
            whole = box_region(box, height, width, path)
            part = random_crop(whole.height, whole.width, self.settings, generator)
            return part._replace(top=whole.top + part.top, left=whole.left + part.left)

        return finish_crop(decode_part(path, crop, self.kept), self.settings, generator), index


def collate(items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Items of an ImageDataset as a batch.

    Returns:
        uint8 (M, 3, size, size) with its memory laid out channels last, as the embedder computes; int64 (M,) indices.
    """
    squares: Tensor = default_collate([square.permute(1, 2, 0) for square, _ in items])
    return squares.permute(0, 3, 1, 2), torch.tensor([index for _, index in items])
