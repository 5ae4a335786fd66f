"""Small pictures of a gallery's items, as the page shows them."""

import asyncio
import io
from collections.abc import Sequence

import pandas as pd
import torch
from PIL import Image

from proxygml.data.columns import BOX_COLUMNS
from proxygml.data.images.decode import read_file
from proxygml.data.images.orientation import Pixels
from proxygml.data.images.tensors import grey_square, small_picture
from proxygml.errors import GalleryError, ImageError
from proxygml.serving.current import CurrentGallery, refusal_of
from proxygml.serving.decoder import Decoder
from proxygml.serving.image_store import ImageStore
from proxygml.serving.limits import RequestError

THUMBNAIL = 320  # pixels


class Pictures:
    """Makes pictures of items.

    Args:
        current: the gallery.
        decoder: decodes their images.
        images: where the images of added items are; None where there are none.
    """

    def __init__(self, current: CurrentGallery, decoder: Decoder, images: ImageStore | None) -> None:
        self._current = current
        self._decoder = decoder
        self._images = images

    async def of(self, item: int) -> bytes:
        """A small JPEG of an item's image, or of its part in the box; a grey square where the image is gone.

        Raises:
            RequestError: 404 for one that is not there.
        """
        row = await asyncio.to_thread(self._item, item)
        box, path = _box(row), str(row.get("path"))
        try:
            data = await asyncio.to_thread(self._image_file, path)
            return await self._decoder.use_item(data, path, lambda pixels: _picture(pixels, box, path))
        except ImageError:
            return await asyncio.to_thread(_as_jpeg, grey_square(THUMBNAIL))
        except RequestError as error:
            if error.status != 422:
                raise
            return await asyncio.to_thread(_as_jpeg, grey_square(THUMBNAIL))

    def _item(self, item: int) -> pd.Series:
        """The columns of an item.

        Raises:
            RequestError: 404 for one that is not there.
        """
        try:
            return self._current.latest().rows([item]).iloc[0]
        except GalleryError as error:
            raise refusal_of(error, 404, f"there is no item {item}") from None
        except OverflowError:
            raise RequestError(404, f"there is no item {item}") from None

    def _image_file(self, path: str) -> bytes:
        """The bytes of an item's image. Its path was given by the operator or by a server, never by a client."""
        if self._images is not None and self._images.holds(path):
            return self._images.read(path)
        return read_file(path)


def _box(row: pd.Series) -> list[int] | None:
    """The part of an item's image that shows it; None for all of it, or where the cells are no whole numbers."""
    try:
        return [int(row[name]) for name in BOX_COLUMNS]
    except (KeyError, TypeError, ValueError, OverflowError):  # missing, a list, NaN, infinite
        return None


def _picture(pixels: Pixels, box: Sequence[int] | None, name: str) -> bytes:
    return _as_jpeg(small_picture(torch.from_numpy(pixels).permute(2, 0, 1), box, THUMBNAIL, name))


def _as_jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
