"""A gallery in Milvus, for more items than one machine holds, with the answers that a folder would give.

What is stored there, and when it counts, is manifest.py's and writing.py's; how it is read, read_gallery.py's.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from proxygml.arrays import Rows
from proxygml.data.paths import rebased_paths
from proxygml.errors import EmptyGalleryError, GalleryError, GalleryServerError, OverwriteError
from proxygml.files import exclusive_lock
from proxygml.gallery.backend import Addition, Change, Embeddings, GalleryContent
from proxygml.gallery.base import LAST_ITEM, recall_sample
from proxygml.gallery.items.coercion import check_items
from proxygml.gallery.items.ids import Ids
from proxygml.gallery.kinds import CODED, Kind
from proxygml.gallery.milvus.address import Address
from proxygml.gallery.milvus.build import UnfinishedCollection, check_kind, publish_built, set_approximate_index
from proxygml.gallery.milvus.connection import CollectionGoneError, Connection, connect
from proxygml.gallery.milvus.manifest import (
    MilvusManifest,
    check_no_gallery,
    newer_manifest,
    read_manifest,
    stored_manifest,
)
from proxygml.gallery.milvus.read_gallery import ReadMilvusGallery
from proxygml.gallery.milvus.reading import CollectionReader, check_present
from proxygml.gallery.milvus.writing import GalleryWriter, listed_removals
from proxygml.gallery.neighbors import recall_against_exact

_ATTEMPTS = 5
"""At a change, while the gallery is built anew."""


class MilvusGallery(ReadMilvusGallery):
    """See Gallery. `add` writes at once what counts from `save` on; removals are written by `save`.

    Others see all additions and removals of a `save` together; of two that save, the second one is refused.
    """

    refreshes_quickly = True

    def __init__(
        self, connection: Connection, manifest: MilvusManifest, removed: Rows, writer: GalleryWriter | None = None
    ) -> None:
        super().__init__(connection, manifest, removed)
        self._writer = writer or GalleryWriter(connection)

    @classmethod
    def _build(cls, place: str | Path, content: GalleryContent, force: bool) -> Self:
        """See Gallery.build. What a stopped build has inserted stays, and the next call continues after it."""
        address = Address.parse(place)
        with exclusive_lock(address.work("building") / ".lock"):
            cls.check_place(place, content.manifest.kind, force)
            connection = connect(address)
            before = read_manifest(connection)
            made = UnfinishedCollection(connection)
            made.fill(content.blocks, content.total)
            gallery = cls(connection, made.finish(before, content.manifest), np.empty(0, np.int64))
            gallery._build_index(made.rows)
            if content.finish is not None:
                content.finish(gallery)
            gallery.manifest = publish_built(connection, before, gallery.manifest)
        shutil.rmtree(address.work("building"), ignore_errors=True)
        return gallery

    @classmethod
    def _load(cls, place: str | Path) -> Self:
        address = Address.parse(place)
        if address.local is not None and not address.local.exists():
            raise GalleryError(f"there is no {address}; `proxygml index` makes it")
        connection = connect(address)
        return cls._of(connection, stored_manifest(connection))

    @classmethod
    def _of(cls, connection: Connection, manifest: MilvusManifest, writer: GalleryWriter | None = None) -> Self:
        connection.load(manifest.collection)
        reader = CollectionReader(connection, manifest.collection, manifest.dimension)
        return cls(connection, manifest, listed_removals(reader, manifest), writer)

    def refreshed(self) -> Self:
        """See Backend.refreshed."""
        try:
            newer = newer_manifest(self._connection, self.manifest)
            if newer is None:
                return self
            same = newer.collection == self.manifest.collection
            return self._of(self._connection, newer, self._writer if same else None)
        except CollectionGoneError:  # built anew just now
            return self.refreshed()

    @staticmethod
    def check_place(place: str | Path, kind: Kind, force: bool) -> None:
        """See backends.check_place."""
        address = Address.parse(place)
        if not force:
            check_no_gallery(address)
        if address.local is None or address.local.exists() or kind in CODED:
            connection = connect(address)
            check_kind(connection, kind)
            connection.check_rights()

    def check_writable(self) -> None:
        """See Backend.check_writable."""
        self._connection.check_rights()

    @staticmethod
    def work_place(place: str | Path, purpose: str) -> Path:
        """See backends.work_place."""
        return Address.parse(place).work(purpose)

    @property
    def keeps_images(self) -> None:
        """None: Milvus stores no files."""
        return

    def add(self, embeddings: Embeddings, items: pd.DataFrame) -> Rows:
        """See Backend.add; new columns are kept in the JSON field that they share."""
        vectors = self._normalized(embeddings)
        check_items(items, len(vectors))
        if not len(items):
            return np.empty(0, np.int64)
        ids, self.manifest = self._writer.append(self.manifest, vectors, items)
        return ids

    def remove(self, ids: Ids) -> None:
        """See Backend.remove."""
        wanted = np.unique(self._chosen(ids))
        check_present(wanted, {row["id"] for row in self._reader.rows(wanted, self._visible(), [])})
        self._removed = np.union1d(self._removed, wanted)

    def change_at_once(self, changes: Sequence[Change]) -> tuple[Self, list[int | GalleryError]]:
        """See Backend.change_at_once: any number of processes may do so at the same time."""
        for _ in range(_ATTEMPTS):
            gallery = self.refreshed()
            removals = [change for change in changes if not isinstance(change, Addition)]
            try:
                added = iter(gallery._insert([change for change in changes if isinstance(change, Addition)]))
                removed = iter(gallery._delete(removals))
            except (CollectionGoneError, OverwriteError):
                continue  # it was built anew: make the changes to that
            return gallery, [next(added if isinstance(change, Addition) else removed) for change in changes]
        raise OverwriteError(f"{self._connection.address} is being built anew again and again: try again later")

    def _insert(self, additions: Sequence[Addition]) -> list[int | GalleryError]:
        """The ids of items that are added, each by itself, or why one is not."""
        if not additions:
            return []
        try:
            vectors = self._normalized(np.stack([one.vector for one in additions]))
            items = pd.DataFrame([dict(one.row) for one in additions])
            check_items(items, len(additions))
            ids, self.manifest = self._writer.insert(self.manifest, vectors, items)
            return [int(number) for number in ids]
        except GalleryServerError:
            raise
        except GalleryError as error:
            if len(additions) == 1:
                return [error]
            return [result for one in additions for result in self._insert([one])]

    def _delete(self, ids: Sequence[int]) -> list[int | GalleryError]:
        """The ids, of items that are removed now, or why one is not."""
        if not ids:
            return []
        wanted = np.unique(np.array(ids, np.int64))
        there = {row["id"] for row in self._reader.rows(wanted, self._visible(), [])}
        if len(there) == len(self._reader.query(self._visible(), [], limit=len(there) + 1)):
            last = there.pop() if there else None  # one item has to stay
        else:
            last = None
        self._connection.delete(self.manifest.collection, np.array(sorted(there), np.int64))
        missing, stays = GalleryError("the gallery has no such item"), EmptyGalleryError(LAST_ITEM)
        return [number if number in there else stays if number == last else missing for number in ids]

    def rebase(self, old: str, new: str) -> int:
        """See Backend.rebase; each item is changed at once, and a call that was stopped can be repeated."""
        paths = self.items["path"] if "path" in self.columns else pd.Series(dtype=object)
        moved = rebased_paths(paths, old, new)
        changed = moved[moved.notna() & (moved != paths)]
        self.manifest = self._writer.change_paths(self.manifest, self._reader, changed)
        return len(changed)

    def save(self, place: str | Path | None = None) -> None:
        """See Backend.save; a gallery in Milvus is saved where it is."""
        if place is not None and str(Address.parse(place)) != self.place:
            raise GalleryError(f"the gallery is in {self.place} and is saved there: call save without a place")
        if len(self._removed):
            self._check_not_empty()
        self.manifest = self._writer.save(self.manifest, self._removed)
        self._removed = np.empty(0, np.int64)

    def _build_index(self, count: int) -> None:
        """Build the index; measure what an approximate one loses while the collection can still be searched exactly."""
        kind = self.manifest.kind
        if kind == "exact":
            return
        sample = recall_sample(np.arange(count))
        self.manifest = replace(self.manifest, kind="exact")
        exact = self._neighbors_of(sample) if len(sample) else None
        self.manifest = replace(self.manifest, kind=kind)
        set_approximate_index(self._connection, self.manifest, count)
        if exact is not None:
            manifest = replace(self.manifest, recall=recall_against_exact(self._neighbors_of(sample), exact))
            if kind in CODED:
                self.manifest = replace(manifest, refine=0)
                manifest = replace(manifest, code_recall=recall_against_exact(self._neighbors_of(sample), exact))
            self.manifest = manifest
