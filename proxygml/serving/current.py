"""The gallery that requests look at, which follows what other processes save."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Sequence

from proxygml.errors import GalleryError, GalleryServerError, UserError
from proxygml.gallery.backend import Addition
from proxygml.gallery.base import Gallery
from proxygml.serving.columns import hidden_columns
from proxygml.serving.limits import RequestError

log = logging.getLogger("proxygml")

UNAVAILABLE = "the gallery cannot be read now: try again later"
"""All that clients are told of a gallery's server; the log says more."""

LOOK_EVERY = 1.0
"""Seconds between two looks at whether others have changed the gallery."""


class CurrentGallery:
    """Holds the gallery. Searches under way keep the one that they began with.

    Args:
        gallery: as it was loaded.

    Attributes:
        items: how many there are, as of the last look or change.
        hidden: the columns that clients do not see; see `hidden_columns`.
        failure: why the gallery could not be looked at the last time; empty where it could.
    """

    def __init__(self, gallery: Gallery) -> None:
        gallery.prepare_searches()
        self._gallery = gallery
        self._lock = threading.Lock()
        self._counting = threading.Lock()  # a look amid a change would count what the change then counts once more
        self.items = len(gallery)
        self.hidden = hidden_columns(gallery)
        self.failure = ""

    @property
    def gallery(self) -> Gallery:
        """The gallery as of the last look or change."""
        return self._gallery

    def latest(self) -> Gallery:
        """The gallery with all that others have changed, where that is quick to find out; else as of the last look.

        Raises:
            GalleryError: its server does not answer.
            RequestError: see `take`.
        """
        gallery = self._gallery
        if gallery.refreshes_quickly and (newer := gallery.refreshed()) is not gallery:
            self.take(newer)
        return self._gallery

    def take(self, newer: Gallery) -> None:
        """Take over a gallery, unless a newer one was taken already.

        Raises:
            RequestError: 503, it is of another model than this server's.
        """
        old = self._gallery.manifest
        if (newer.manifest.model, newer.manifest.dimension) != (old.model, old.dimension):
            raise RequestError(503, "the gallery was built anew with another model: start the server again")
        if newer is not self._gallery:
            newer.prepare_searches(self._gallery)
        hidden = self.hidden if newer.columns == self._gallery.columns else hidden_columns(newer)
        with self._lock:
            if newer.manifest.generation >= self._gallery.manifest.generation:
                self._gallery, self.hidden = newer, hidden

    def change_at_once(self, changes: Sequence[Addition | int]) -> tuple[Gallery, list[int | GalleryError]]:
        """Change the gallery, take over the changed one, and count its items; see `Gallery.change_at_once`.

        Raises:
            OverwriteError, GalleryServerError: see there; then the gallery is as it was, and as many are counted.
        """
        with self._counting:
            gallery, results = self._gallery.change_at_once(changes)
            self.take(gallery)
            made = [change for change, result in zip(changes, results, strict=True) if isinstance(result, int)]
            self.items += sum(1 if isinstance(change, Addition) else -1 for change in made)
        return gallery, results

    @contextlib.asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """While the server runs."""
        looking = asyncio.create_task(self._look_regularly())
        try:
            yield
        finally:
            looking.cancel()

    async def _look_regularly(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Take over what others have saved, and count the items."""
        try:
            with self._counting:
                newer = self._gallery.refreshed()
                if newer is not self._gallery:
                    self.take(newer)
                self.items, self.failure = len(self._gallery), ""
            return
        except RequestError as error:
            failure, reason = error.message, error.message
        except (UserError, OSError) as error:
            failure, reason = UNAVAILABLE, str(error)
        if failure != self.failure:
            log.warning("the gallery cannot be read now: %s", reason)
        self.failure = failure


def refusal_of(error: GalleryError, status: int, message: str = "") -> RequestError:
    """The refusal of a request that the gallery has refused; 503 where the gallery itself cannot be read now."""
    if isinstance(error, GalleryServerError):
        log.warning("%s", error)
        return RequestError(503, UNAVAILABLE)
    return RequestError(status, message or str(error))
