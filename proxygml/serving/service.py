"""What the server answers: images in, neighbors, vectors and pictures out. api.py speaks HTTP for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxygml.data.columns import BOX_COLUMNS
from proxygml.data.images.formats import FORMATS
from proxygml.errors import GalleryError, did_you_mean
from proxygml.gallery.base import Gallery, SearchResult
from proxygml.gallery.classify import Prediction, predict
from proxygml.gallery.filters.grammar import Where, split
from proxygml.gallery.folder.manifest import Threshold
from proxygml.models.embedder import Embedder
from proxygml.models.prefix import prefix
from proxygml.serving.batched_embedder import BatchedEmbedder
from proxygml.serving.changes import Changes
from proxygml.serving.columns import json_cell
from proxygml.serving.current import CurrentGallery, refusal_of
from proxygml.serving.decoder import Decoder, kind_of_upload
from proxygml.serving.image_store import ImageStore
from proxygml.serving.limits import Limits, RequestError, too_many
from proxygml.serving.pictures import Pictures

_PLAIN = (str, int, bool)  # cells that JSON has as they are


@dataclass(frozen=True)
class Answer:
    """What a search found: rows of rank, score, id and columns, and the class that they vote for."""

    items: list[dict[str, Any]]
    prediction: Prediction | None


class Service:
    """A gallery and its model, for many requests at a time.

    Args:
        gallery: as it was loaded.
        embedder: its model.
        limits: see there.
        added_images: where the images of added items are kept; by default where the gallery keeps them. A gallery in
            Milvus keeps none, and takes no changes without such a place.
    """

    def __init__(
        self, gallery: Gallery, embedder: Embedder, limits: Limits, added_images: str | Path | None = None
    ) -> None:
        self.current = CurrentGallery(gallery)
        place = added_images or gallery.keeps_images
        self.changes = None if place is None else Changes(self.current, ImageStore(place))
        self.limits = limits
        self.embedder = embedder
        self.active = 0
        self._decoder = Decoder(limits.max_pixels)
        self.model = BatchedEmbedder(embedder, self._decoder)
        images = None if self.changes is None else self.changes.images
        self.pictures = Pictures(self.current, self._decoder, images)

    @property
    def gallery(self) -> Gallery:
        """The gallery as of the last look or change."""
        return self.current.gallery

    @property
    def hidden(self) -> set[str]:
        """The columns that clients do not see."""
        return self.current.hidden

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the server runs."""
        self._decoder.start()
        try:
            changing = contextlib.nullcontext() if self.changes is None else self.changes.running()
            async with self.model.running(), self.current.followed(), changing:
                yield
        finally:
            self._decoder.stop()

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """A request's turn: refused where too many are under way, ended where it takes too long."""
        if self.active >= self.limits.queue:
            raise too_many(self.limits)
        self.active += 1
        try:
            async with asyncio.timeout(self.limits.timeout):
                yield
        except TimeoutError:
            message = f"no answer within {self.limits.timeout:g} s: a change that was sent may still be made"
            raise RequestError(503, message) from None
        finally:
            self.active -= 1

    # Questions --------------------------------------------------------------------------------------------------------

    async def search(
        self,
        vector: Tensor,
        k: int,
        where: Sequence[str] | None = None,
        leave_out: int | None = None,
    ) -> Answer:
        """The k nearest items of those that a filter lets through.

        Args:
            vector: of the query, float32 (D,).
            k: how many, 1 to `limits.max_k`.
            where: see proxygml.gallery.filters.grammar.
            leave_out: the id of an item that is not to be found, nor to vote.

        Raises:
            RequestError: 422 for a k or a filter that cannot be.
        """
        if not 1 <= k <= self.limits.max_k:
            raise RequestError(422, f"k is {k}, but must be 1 to {self.limits.max_k}")
        try:
            conditions = _conditions(where or (), ["id", *(n for n in self.gallery.columns if n not in self.hidden)])
            found, threshold = await asyncio.to_thread(self._search, vector, k, conditions, leave_out)
        except GalleryError as error:
            raise refusal_of(error, 422) from None
        # Not in the thread: the pass over the vectors has emptied its core's cache, and this would take twice as long.
        return Answer([], None) if found is None else self._answer(found, threshold)

    async def neighbors(self, item: int, k: int, where: Sequence[str] | None = None) -> Answer:
        """The k nearest items to one of the gallery's own, which is not among them and has no vote.

        Raises:
            RequestError: 404 for one that is not there; see `search`.
        """
        return await self.search(await asyncio.to_thread(self._vector, item), k, where, leave_out=item)

    @property
    def columns(self) -> list[str]:
        """The columns that a new item may be given; filters take them too."""
        return [name for name in self.gallery.columns if name not in {*self.hidden, *BOX_COLUMNS}]

    @property
    def keeps_images(self) -> bool:
        """Whether items can be added: there is a place for their images."""
        return self.changes is not None

    # Changes ----------------------------------------------------------------------------------------------------------

    async def add(self, data: bytes, columns: Mapping[str, str]) -> int:
        """Add an item; when this returns its id, the item is stored.

        Raises:
            RequestError: 413, 415 or 422 for the image or a column; 409 where another process changes the gallery.
        """
        changes = self._check_changes()
        self._check_columns(columns)
        vector = await self.model.embed_file(data)
        return await changes.add(self._cut(vector), data, FORMATS[kind_of_upload(data)].ending, columns)

    async def add_vector(self, vector: Tensor, columns: Mapping[str, str]) -> int:
        """Add an item without an image; when this returns its id, the item is on disk.

        Raises:
            RequestError: 422 for a column; 409 where another process changes the gallery.
        """
        changes = self._check_changes()
        self._check_columns(columns)
        return await changes.add_vector(self._cut(vector), columns)

    async def remove(self, item: int) -> None:
        """Remove an item; when this returns, no search finds it again.

        Raises:
            RequestError: 404 for one that is not there; 409 for the last one, or where another process writes.
        """
        await self._check_changes().remove(item)

    # In the threads ---------------------------------------------------------------------------------------------------

    def _vector(self, item: int) -> Tensor:
        try:
            return torch.from_numpy(np.array(self.current.latest().vectors([item])[0]))
        except GalleryError as error:
            raise refusal_of(error, 404, f"there is no item {item}") from None

    def _search(
        self, vector: Tensor, k: int, where: Where, leave_out: int | None
    ) -> tuple[SearchResult | None, Threshold | None]:
        """What is found, None where the item to leave out is the only one that may be; and the gallery's threshold."""
        gallery = self.current.latest()
        try:
            found = gallery.search(
                self._cut(vector)[None], k, where, exclude=None if leave_out is None else [leave_out]
            )
        except GalleryError:
            if leave_out is None or gallery.matching(where).tolist() != [leave_out]:
                raise
            return None, None
        return found, gallery.manifest.threshold

    def _answer(self, found: SearchResult, threshold: Threshold | None) -> Answer:
        """What is shown of the items that were found, and what they vote for, where any has a label."""
        prediction = None
        if "label" in found.table:
            prediction = predict(found, None if threshold is None else threshold.score)[0]
        voted = prediction is not None and prediction.share > 0
        return Answer(_shown(found, self.hidden), prediction if voted else None)

    def _cut(self, vector: Tensor) -> Tensor:
        """The first numbers of a vector (D,), where the gallery holds such alone."""
        size = self.gallery.manifest.dimension
        return prefix(vector[None], size)[0] if size < len(vector) else vector

    def _check_columns(self, columns: Iterable[str]) -> None:
        known = self.columns
        for name in columns:
            if name not in known:
                raise RequestError(422, f"there is no column {name!r}: {did_you_mean(name, known)}")

    def _check_changes(self) -> Changes:
        """The changes of the gallery, or RequestError, 403, where it takes none."""
        if self.changes is None:
            raise RequestError(
                403,
                "this server has no place for the images of added items: its operator may give one with "
                "--added_images, or change the gallery with `proxygml index`",
            )
        return self.changes


def _conditions(where: Iterable[str], known: Sequence[str]) -> list[tuple[str, str, str]]:
    """A filter's conditions. Paths are the server's own: nobody is to find out by filters which there are."""
    conditions = [split(text, known) for text in where]
    for name, _, _ in conditions:
        if name not in known:
            raise RequestError(422, f"there is no column {name!r} to filter by: {did_you_mean(name, known)}")
    return conditions


def _shown(found: SearchResult, hidden: Container[str]) -> list[dict[str, Any]]:
    """A search's rows as JSON has them, without where the server keeps its images."""
    rows = found.records(without=hidden)
    return [{name: value if type(value) in _PLAIN else json_cell(value) for name, value in row.items()} for row in rows]
