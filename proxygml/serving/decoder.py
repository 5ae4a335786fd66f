"""Decoding the images that clients send, and those of items, in processes that are stopped at their limits."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from proxygml.data.images.decoder_pool import DecoderPool, DecoderStoppedError
from proxygml.data.images.formats import image_kind, image_size, readable_formats
from proxygml.data.images.orientation import Pixels
from proxygml.errors import ImageError
from proxygml.serving.limits import RequestError

DECODERS = max(2, min(4, os.cpu_count() or 1))
"""Images that are decoded at a time, which bounds the memory that pixels take; more would not be done sooner."""

PROCESSOR_SECONDS, SECONDS = 4, 10
"""For one image: 25 megapixels take a second or less on an idle core."""

LARGE_PIXELS, LARGE_BYTES = 4_000_000, 2_000_000
"""An image beyond one of these is large: one process is never given to large images, so that small ones go on."""

Result = TypeVar("Result")


class Decoder:
    """Processes that decode, the threads that wait for them, and the limits of both.

    Args:
        max_pixels: width times height of an image that a client may send.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._pool: DecoderPool | None = None
        self._threads = ThreadPoolExecutor(DECODERS)
        self._large = asyncio.Semaphore(DECODERS - 1)

    def start(self) -> None:
        """Start the processes, without waiting until they are ready."""
        self._pool = DecoderPool(DECODERS, PROCESSOR_SECONDS, SECONDS, self._max_pixels)

    def stop(self) -> None:
        """End the processes; what they were doing is given up."""
        if self._pool is not None:
            self._pool.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def use(self, data: bytes, then: Callable[[Pixels], Result]) -> Result:
        """Decode what a client sent, and give the pixels, uint8 (H, W, 3), to a function in the same thread.

        Raises:
            RequestError: 413 too many pixels, 415 another kind of file, 422 no image that can be decoded, 503 no
                process had time for it.
        """
        kind_of_upload(data)
        size = image_size(data)
        pixels = LARGE_PIXELS if size is None else size[0] * size[1]
        if size is not None and pixels > self._max_pixels:
            raise RequestError(
                413,
                f"the image has {size[1]:,} x {size[0]:,} pixels, but may have at most {self._max_pixels:,}",
            )
        return await self._decoded(data, "the image", self._max_pixels, pixels, then)

    async def use_item(self, data: bytes, name: str, then: Callable[[Pixels], Result]) -> Result:
        """The same for a file of the gallery's, of any kind and up to twice as many pixels.

        Raises:
            RequestError: as `use`.
        """
        size = image_size(data)
        pixels = LARGE_PIXELS if size is None else size[0] * size[1]
        return await self._decoded(data, name, 2 * self._max_pixels, pixels, then)

    async def _decoded(
        self, data: bytes, name: str, max_pixels: int, pixels: int, then: Callable[[Pixels], Result]
    ) -> Result:
        def work() -> Result:
            if self._pool is None:
                raise RequestError(503, "the server is not running yet: come again later")
            try:
                return then(self._pool.decode(data, name, max_pixels))
            except ImageError as error:
                raise RequestError(422, str(error)) from None
            except DecoderStoppedError as error:
                raise RequestError(503, f"{error}: come again later") from None

        def submit() -> asyncio.Future[Result]:
            return asyncio.get_running_loop().run_in_executor(self._threads, work)

        if pixels < LARGE_PIXELS and len(data) < LARGE_BYTES:
            return await submit()
        await self._large.acquire()
        # The place is free when the work has ended, which may be later than the request does.
        done = submit()
        done.add_done_callback(self._release)
        return await asyncio.shield(done)

    def _release(self, done: asyncio.Future[Result]) -> None:
        self._large.release()
        if not done.cancelled():
            done.exception()  # seen, even if the request has ended since


def kind_of_upload(data: bytes) -> str:
    """The format of an image file's bytes, by its first bytes and not by what its sender calls it.

    Raises:
        RequestError: 415 for any that is not read here.
    """
    kind, known = image_kind(data), readable_formats()
    if kind not in known:
        raise RequestError(415, f"this is no image of a kind that is taken: {', '.join(known)}")
    return kind
