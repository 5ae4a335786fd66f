"""Additions to a gallery and removals from it, one process among several that may change it.

Searches look at a gallery that nobody changes. A change is made to another copy and saved; then searches look at what
was saved. So an answer to an addition means that the item is on disk, and a reader never waits for a writer.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import Tensor

from proxygml.errors import GalleryError, OverwriteError
from proxygml.files import atomic_write
from proxygml.gallery.base import Gallery
from proxygml.serving.batcher import Batcher
from proxygml.serving.limits import RequestError

log = logging.getLogger("proxygml")

SWEEP_EVERY, SWEEP_AFTER = 600.0, 3600.0
"""Seconds between two looks for images that no item shows, and their age then: an addition takes much less."""

_BATCH = 256  # changes that are saved together
_ATTEMPTS = 3  # where another process is faster


@dataclass(frozen=True)
class Addition:
    """An item to be added: its vector, the file that holds its image, its columns."""

    vector: Tensor
    path: Path
    columns: Mapping[str, str]


Change = Addition | int  # an item to add, or the id of one to remove


class Changes:
    """Changes of a gallery, saved in batches.

    Args:
        gallery: as it was loaded; must keep images.
        images: the folder of the images of added items.

    Attributes:
        gallery: as it was last saved here.
    """

    def __init__(self, gallery: Gallery, images: Path) -> None:
        self.gallery = gallery
        self._images = images
        self._writer: Batcher[Change, int] = Batcher(self._change, _BATCH)

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
        """Add an item; when this returns its id, the item is on disk.

        Args:
            vector: of the item, float32 (D,).
            data: its image file.
            ending: of the file's name, such as jpg.
            columns: its cells, as text.

        Raises:
            RequestError: 422 for a cell that its column cannot hold; 409 where another process changes the gallery.
        """
        path = self._images / f"{uuid.uuid4().hex}.{ending}"
        await asyncio.to_thread(_write, path, data)
        # Not given up with the request: it would be unknown whether the item had been added.
        adding = asyncio.ensure_future(self._writer.do(Addition(vector, path, columns)))
        adding.add_done_callback(
            lambda done: path.unlink(missing_ok=True) if done.cancelled() or done.exception() else None
        )
        return await asyncio.shield(adding)

    async def remove(self, item: int) -> None:
        """Remove an item; when this returns, no search finds it again, and its image is deleted if it was added here.

        Raises:
            RequestError: 404 for one that is not there; 409 for the last one, or where another process writes.
        """
        await asyncio.shield(asyncio.ensure_future(self._writer.do(item)))

    def _change(self, changes: Sequence[Change]) -> list[int | Exception]:
        """Make changes together: each is done or refused by itself, and all are saved at once."""
        for _ in range(_ATTEMPTS):
            writer = Gallery.load(self.gallery.place)
            removed = self._images_of(writer, [change for change in changes if isinstance(change, int)])
            results = [_changed(writer, change) for change in changes]
            try:
                if any(not isinstance(result, Exception) for result in results):
                    writer.save()
            except OverwriteError:
                continue  # another process was faster: make the changes to what it left
            except GalleryError as error:
                if len(changes) > 1:  # each by itself, so that only the one at fault is refused
                    return [self._change([change])[0] for change in changes]
                return [RequestError(409 if isinstance(changes[0], int) else 422, str(error))]
            self.gallery = _reloaded(writer)
            self._delete_unshown(removed)
            return results
        return [RequestError(409, "another process is changing the gallery: try again later")] * len(changes)

    def _images_of(self, gallery: Gallery, items: Sequence[int]) -> list[Path]:
        """The files of items' images that this or another server has written."""
        found = []
        for item in items:
            with contextlib.suppress(GalleryError):
                path = self._images / Path(str(gallery.rows([item])["path"].iloc[0])).name
                found.append(path)
        return found

    def _delete_unshown(self, paths: Sequence[Path]) -> None:
        shown = _names(self.gallery) if paths else set()
        for path in paths:
            if path.name not in shown:
                _delete(path)

    async def _sweep_regularly(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.sweep)
            except (OSError, GalleryError) as error:
                log.warning("the images that no item shows could not be deleted: %s", error)
            await asyncio.sleep(SWEEP_EVERY)

    def sweep(self) -> None:
        """Delete images that no item shows: those of additions that were cut short, or of removals.

        Not those of the last hour: another server of the same gallery may be adding them.
        """
        if not self._images.is_dir():
            return
        end = time.time() - SWEEP_AFTER
        old = [path for path in self._images.iterdir() if _modified(path) < end]
        shown = _names(self.gallery)
        if any(path.name not in shown for path in old):
            shown = _names(Gallery.load(self.gallery.place))  # another server may have added items since
        for path in old:
            if path.name not in shown:
                _delete(path)


def _reloaded(saved: Gallery) -> Gallery:
    """The gallery as its files say; as it was saved where they cannot be read now: the changes count already."""
    try:
        return Gallery.load(saved.place)
    except (GalleryError, OSError):
        return saved


def _delete(path: Path) -> None:
    """Delete an image that no item shows; one that cannot be deleted only takes room."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("an image that no item shows could not be deleted: %s: %s", path.name, error.strerror)


def _names(gallery: Gallery) -> set[str]:
    """The names of all items' files, without their folders."""
    return {str(path).replace("\\", "/").rpartition("/")[2] for path in gallery.items["path"]}


def _modified(path: Path) -> float:
    """When a file was last changed, seconds since the epoch; never, if it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _changed(gallery: Gallery, change: Change) -> int | Exception:
    """Make a change in memory; the id of the item, or why not."""
    try:
        if isinstance(change, int):
            gallery.remove([change])
            return change
        row = {**change.columns, "path": str(change.path)}
        return int(gallery.add(change.vector[None], pd.DataFrame([row]))[0])
    except GalleryError as error:
        return RequestError(404 if isinstance(change, int) else 422, str(error))


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
