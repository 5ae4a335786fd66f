"""Additions to a gallery and removals from it, one process among several that may change it.

Searches look at a gallery that nobody changes. Changes are saved together, then searches look at what was saved. So an
answer to an addition means that the item is stored, and a reader never waits for a writer. The image of an item is
stored before the item: a process that is killed between the two leaves an image that no item shows, which is deleted
later.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence

import pandas as pd
from torch import Tensor

from proxygml.errors import EmptyGalleryError, GalleryError, GalleryServerError, OverwriteError
from proxygml.gallery.backend import Addition
from proxygml.gallery.base import Gallery
from proxygml.serving.batcher import Batcher
from proxygml.serving.current import UNAVAILABLE, CurrentGallery
from proxygml.serving.image_store import ImageStore
from proxygml.serving.limits import RequestError

log = logging.getLogger("proxygml")

SWEEP_EVERY, SWEEP_AFTER = 600.0, 3600.0
"""Seconds between two looks for images that no item shows, and their age then: an addition takes much less."""

_BATCH = 256  # changes that are saved together
_LOOKED_UP = 5000  # images whose items are looked up together


class Changes:
    """Changes of a gallery, saved in batches.

    Args:
        current: the gallery that is served.
        images: where the images of added items are kept.
    """

    def __init__(self, current: CurrentGallery, images: ImageStore) -> None:
        self._current = current
        self.images = images
        self._shown: set[str] = set()  # images that an item was seen to show
        self._writer: Batcher[Addition | int, int] = Batcher(self._change, _BATCH)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While changes are made; those that wait at the end are made before it."""
        await self._writer.start()
        sweeping = asyncio.create_task(self._sweep_regularly())
        try:
            yield
        finally:
            sweeping.cancel()
            await self._writer.stop()

    async def add(self, vector: Tensor, data: bytes, ending: str, columns: Mapping[str, str]) -> int:
        """Add an item; when this returns its id, the item is stored.

        Args:
            vector: of the item, float32 (D,).
            data: its image file.
            ending: of the file's name, such as jpg.
            columns: its cells, as text.

        Raises:
            RequestError: 422 for a cell that its column cannot hold; 409 where another process changes the gallery; 503
                where its server does not answer, and the item may have been added or not.
        """
        path = await asyncio.to_thread(self.images.write, data, ending)
        # Not given up with the request: it would be unknown whether the item had been added.
        adding = asyncio.ensure_future(self._writer.do(Addition(vector.numpy(), {**columns, "path": path})))
        adding.add_done_callback(lambda done: self._delete(path) if _is_refused(done) else None)
        return await asyncio.shield(adding)

    async def add_vector(self, vector: Tensor, columns: Mapping[str, str]) -> int:
        """Add an item without an image; when this returns its id, the item is stored. Errors: see `add`."""
        return await asyncio.shield(asyncio.ensure_future(self._writer.do(Addition(vector.numpy(), dict(columns)))))

    async def remove(self, item: int) -> None:
        """Remove an item; when this returns, no search finds it again, and its image is deleted if it was added here.

        Raises:
            RequestError: 404 for one that is not there; 409 for the last one, or where another process writes; 503
                where the gallery's server does not answer.
        """
        await asyncio.shield(asyncio.ensure_future(self._writer.do(item)))

    def _change(self, changes: Sequence[Addition | int]) -> list[int | Exception]:
        """Make changes together: each is done or refused by itself."""
        removals = [change for change in changes if not isinstance(change, Addition)]
        try:
            images = self._images_of(removals)
            gallery, results = self._current.change_at_once(changes)
        except OverwriteError:
            return [RequestError(409, "another process is changing the gallery: try again later")] * len(changes)
        except GalleryServerError as error:
            log.warning("%s", error)
            message = f"{UNAVAILABLE}; the change may have been made or not"
            return [RequestError(503, message)] * len(changes)
        made = [change for change, result in zip(changes, results, strict=True) if isinstance(result, int)]
        self._delete_unshown(gallery, [images[one] for one in made if isinstance(one, int) and one in images])
        return [_answer(change, result) for change, result in zip(changes, results, strict=True)]

    def _images_of(self, ids: Sequence[int]) -> dict[int, str]:
        """The files of items' images that this or another server has written."""
        gallery, found = self._current.latest(), {}
        for item in ids if "path" in gallery.columns else ():
            with contextlib.suppress(GalleryError):
                path = str(gallery.rows([item])["path"].iloc[0])
                if self.images.holds(path):
                    found[item] = path
        return found

    def _delete_unshown(self, gallery: Gallery, paths: Sequence[str]) -> None:
        for path in set(paths) - _shown(gallery, paths):
            self._delete(path)

    def _delete(self, path: str) -> None:
        """Delete an image that no item shows; one that cannot be deleted only takes room."""
        try:
            self.images.delete(path)
        except Exception as error:  # each file system raises its own
            log.warning("an image that no item shows could not be deleted: %s: %s", path, error)

    async def _sweep_regularly(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.sweep)
            except Exception as error:  # of the gallery, or of the file system of the images
                log.warning("the images that no item shows could not be deleted: %s", error)
            await asyncio.sleep(SWEEP_EVERY)

    def sweep(self) -> None:
        """Delete images that no item shows: those of additions that were cut short, or of removals.

        Not those of the last hour: another server of the same gallery may be adding them.
        """
        old = self.images.older_than(SWEEP_AFTER)
        self._shown &= set(old)
        todo = [path for path in old if path not in self._shown]
        gallery = self._current.gallery.refreshed() if todo else self._current.gallery
        for start in range(0, len(todo), _LOOKED_UP):
            part = todo[start : start + _LOOKED_UP]
            shown = _shown(gallery, part)
            self._shown |= shown
            for path in set(part) - shown:
                self._delete(path)


def _is_refused(done: "asyncio.Future[int]") -> bool:
    """Whether an addition was not made, for certain."""
    if done.cancelled():
        return True
    error = done.exception()
    return isinstance(error, RequestError) and error.status != 503


def _shown(gallery: Gallery, paths: Sequence[str]) -> set[str]:
    """Those of the images that an item shows."""
    if not paths or "path" not in gallery.columns:
        return set()
    ids = gallery.ids_of(pd.DataFrame({"path": list(paths)}), ["path"])
    return {path for path, item in zip(paths, ids, strict=True) if item >= 0}


def _answer(change: Addition | int, result: int | GalleryError) -> int | Exception:
    if isinstance(result, int):
        return result
    if isinstance(result, EmptyGalleryError):
        return RequestError(409, str(result))
    return RequestError(422 if isinstance(change, Addition) else 404, str(result))
