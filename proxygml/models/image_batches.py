"""Images of any kind (paths, arrays, tensors, Pillow images) as the batches of squares that an embedder takes."""

from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from proxygml.data.images.decode import upright_pixels
from proxygml.data.images.settings import ImageSettings
from proxygml.data.images.tensors import ImageDataset, collate
from proxygml.data.images.transforms import test_transform
from proxygml.errors import ImageError

ImageLike = str | Path | Tensor | npt.NDArray[np.uint8] | Image.Image


def checked_images(images: object) -> Any:
    """What may be a list of images; ImageError for a single one, or what has no length."""
    if isinstance(images, np.ndarray):
        raise ImageError("embed takes a list of images, but got one array: put arrays (H, W, 3) in a list")
    if isinstance(images, (str, Path)):
        raise ImageError(f"embed takes a list of images, but got the single path {str(images)!r}: put it in a list")
    if not isinstance(images, Sized):
        raise ImageError(f"images is {images!r}, but embed takes a list of them")
    return images


def image_batches(
    images: Tensor | Sequence[ImageLike],
    boxes: npt.NDArray[np.int64] | None,
    settings: ImageSettings,
    batch_size: int,
    workers: int,
) -> Iterator[Tensor]:
    """Cut and scale images as for embedding: uint8 (up to batch_size, 3, S, S), in the order of the images.

    Args:
        images: see Embedder.embed; at least one.
        boxes: integer (n, 4), the part of each file; paths only.
        settings: how images are cut and scaled.
        batch_size: images at a time.
        workers: processes that decode files; 0 decodes in this one.

    Raises:
        ImageError: an image that cannot be decoded, something that is no image, or boxes that do not belong to files.
    """
    if not isinstance(images, Tensor) and isinstance(images[0], (str, Path)):
        paths = [path for path in images if isinstance(path, (str, Path))]
        if len(paths) != len(images):
            raise ImageError("embed takes paths or decoded images, but got both in one list: embed them apart")
        dataset = ImageDataset(paths, boxes, settings, training=False)
        for batch, _ in DataLoader(dataset, batch_size, num_workers=workers, collate_fn=collate):
            yield batch
        return
    if boxes is not None:
        raise ImageError("boxes are parts of image files, but the images are decoded already: cut them before")
    transform = test_transform(settings)
    for start in range(0, len(images), batch_size):
        yield torch.stack([transform(_as_tensor(image)) for image in images[start : start + batch_size]])


def _as_tensor(image: ImageLike) -> Tensor:
    """An RGB image in memory as uint8 (3, H, W)."""
    if isinstance(image, Image.Image):
        image = upright_pixels(image, getattr(image, "filename", "") or "a Pillow image")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(f"an array has shape {image.shape}, {image.dtype}: expected (H, W, 3) uint8, RGB")
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    if not isinstance(image, Tensor):
        raise ImageError(f"an image is a {type(image).__name__}: expected a path, tensor, array or Pillow image")
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise ImageError(f"a tensor has shape {tuple(image.shape)}, {image.dtype}: expected (3, H, W) uint8, RGB")
    return image
