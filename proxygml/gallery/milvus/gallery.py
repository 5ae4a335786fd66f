"""A gallery in Milvus, for more items than one machine holds, with the answers that a folder would give.

Milvus proposes items; their similarities are computed again here. What is stored there, and when it counts, is
manifest.py's and writing.py's.
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from proxygml.arrays import Block, Rows, Vectors
from proxygml.data.image_list import FILE_STAMP
from proxygml.data.paths import rebased_paths
from proxygml.errors import EmptyGalleryError, GalleryError, GalleryServerError, OverwriteError
from proxygml.files import exclusive_lock
from proxygml.gallery.backend import Addition, Candidates, Change, Embeddings, Finish
from proxygml.gallery.base import LAST_ITEM, Gallery, SearchResult, recall_sample
from proxygml.gallery.filters.grammar import Condition, Where, one_of
from proxygml.gallery.folder.manifest import Manifest
from proxygml.gallery.items.coercion import check_items, first_equal_ids
from proxygml.gallery.items.ids import Ids
from proxygml.gallery.milvus.address import Address
from proxygml.gallery.milvus.build import UnfinishedCollection, check_kind, publish_built, set_approximate_index
from proxygml.gallery.milvus.connection import CollectionGoneError, Connection, connect
from proxygml.gallery.milvus.expressions import visible
from proxygml.gallery.milvus.manifest import (
    MilvusManifest,
    check_no_gallery,
    newer_manifest,
    read_manifest,
    stored_manifest,
)
from proxygml.gallery.milvus.reading import CollectionReader, MilvusRows, check_present
from proxygml.gallery.milvus.schema import MISSING, OTHERS, table_of
from proxygml.gallery.milvus.writing import GalleryWriter, listed_removals
from proxygml.gallery.neighbors import Kind, recall_against_exact
from proxygml.gallery.vectors import VectorRows

_PATHS_AT_A_TIME = 200  # each possibly with many boxes, and an answer holds 16,384 rows


_ATTEMPTS = 5
"""At a search while others remove what it finds, and at a change while the gallery is built anew."""


class MilvusGallery(Gallery):
    """See Gallery. `add` writes at once what counts from `save` on; removals are written by `save`.

    Others see all additions and removals of a `save` together; of two that save, the second one is refused.
    """

    refreshes_quickly = True

    def __init__(
        self, connection: Connection, manifest: MilvusManifest, removed: Rows, writer: GalleryWriter | None = None
    ) -> None:
        self.manifest: MilvusManifest = manifest
        super().__init__(manifest)
        self._connection = connection
        self._writer = writer or GalleryWriter(connection)
        self._reader = CollectionReader(connection, manifest.collection, manifest.dimension)
        self._removed = removed  # in memory, or by a writer that was stopped before it had deleted them

    @classmethod
    def _build(
        cls,
        place: str | Path,
        blocks: Iterable[Block],
        manifest: Manifest,
        force: bool,
        total: int | None,
        finish: Finish | None,
    ) -> Self:
        """See Gallery.build. What a stopped build has inserted stays, and the next call continues after it."""
        address = Address.parse(place)
        with exclusive_lock(address.work("building") / ".lock"):
            cls.check_place(place, manifest.kind, force)
            connection = connect(address)
            before = read_manifest(connection)
            made = UnfinishedCollection(connection)
            made.fill(blocks, total)
            gallery = cls(connection, made.finish(before, manifest), np.empty(0, np.int64))
            gallery._build_index(made.rows)
            if finish is not None:
                finish(gallery)
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
        if address.local is None or address.local.exists() or kind == "ivfpq":
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

    def __len__(self) -> int:
        return self._connection.count(self.manifest.collection, self._visible())

    @property
    def place(self) -> str:
        """See Backend.place."""
        return str(self._connection.address)

    @property
    def keeps_images(self) -> None:
        """None: Milvus stores no files."""
        return

    @property
    def items(self) -> pd.DataFrame:
        """See Backend.items."""
        return self._table(self._reader.scan(self._visible(), self.manifest.next_id, self._stored_fields))

    def rows(self, ids: Ids) -> pd.DataFrame:
        """See Backend.rows."""
        wanted = self._chosen(ids)
        table = self._table(self._reader.rows(wanted, self._visible(), self._stored_fields))
        check_present(wanted, set(table.index))
        return table.loc[wanted]

    def vectors(self, ids: Ids) -> Vectors:
        """See Backend.vectors."""
        return self._reader.vectors(self._chosen(ids), self._visible())

    def file_stamps(self, ids: Ids) -> Rows:
        """See Backend.file_stamps."""
        wanted = self._chosen(ids)
        schema = {name: kind for name, kind in self.manifest.schema.items() if name == FILE_STAMP}
        found = self._reader.rows(wanted, self._visible(), self._stored_fields)
        table = table_of(found, schema).reindex(columns=[FILE_STAMP])
        check_present(wanted, set(table.index))
        return np.array([0 if pd.isna(stamp) else stamp for stamp in table.loc[wanted, FILE_STAMP]], np.int64)

    def ids_of(self, items: pd.DataFrame, columns: Sequence[str]) -> Rows:
        """See Backend.ids_of."""
        paths = list(dict.fromkeys(str(path) for path in items["path"]))
        found: MilvusRows = []
        for start in range(0, len(paths), _PATHS_AT_A_TIME):
            same_path = one_of("path", self.manifest.schema["path"], paths[start : start + _PATHS_AT_A_TIME])
            found += self._reader.query(self._visible([same_path]), self._stored_fields)
        return first_equal_ids(items, self._table(found).sort_index(), columns)

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

    def verify(self) -> str:
        """See Backend.verify: that every item is there once, can be read, and has a vector of length 1."""
        ids = self._matching([])
        if (found := len(self)) != len(np.unique(ids)):
            raise GalleryError(f"{self.place} holds {found:,} items under {len(ids):,} ids: build it again")
        for start in range(0, len(ids), self._reader.largest_answer):
            part = ids[start : start + self._reader.largest_answer]
            self.rows(part)
            wrong = np.abs(np.linalg.norm(self.vectors(part), axis=1) - 1) > 1e-3
            if wrong.any():
                raise GalleryError(f"{self.place} has a damaged vector, of item {part[wrong][0]}: build it again")
        return "each is there once and can be read"

    def search(
        self,
        embeddings: Embeddings,
        k: int = 10,
        where: Where | None = None,
        *,
        exclude: Ids | None = None,
        rerank: bool = False,
    ) -> SearchResult:
        """See Gallery.search."""
        for attempt in range(_ATTEMPTS):
            try:
                return super().search(embeddings, k, where, exclude=exclude, rerank=rerank)
            except _RemovedMeanwhileError:
                if attempt + 1 == _ATTEMPTS:
                    raise
        raise AssertionError  # not reached

    def _visible(self, conditions: Sequence[Condition] = ()) -> str:
        return visible(self.manifest, self._removed, conditions)

    @property
    def _stored_fields(self) -> list[str]:
        return [*self.manifest.fields, OTHERS, MISSING]

    def _table(self, rows: MilvusRows) -> pd.DataFrame:
        return table_of(rows, self.schema)

    def _matching(self, conditions: Sequence[Condition]) -> Rows:
        rows = self._reader.scan(self._visible(conditions), self.manifest.next_id, [])
        return np.array([row["id"] for row in rows], np.int64)

    def _candidates(self, queries: Vectors, wanted: int, conditions: Sequence[Condition]) -> list[Candidates]:
        found = self._reader.nearest(queries, wanted, self._visible(conditions), self.manifest.kind)
        return [Candidates(ids, VectorRows(vectors), np.arange(len(ids))) for ids, vectors in found]

    def _table_with(self, ids: Rows) -> pd.DataFrame:
        wanted = np.unique(ids)
        # They have just been found: what Milvus knows already will do, unless it lacks one of them.
        for level in ("Eventually", "Strong"):
            table = self._table(self._reader.rows(wanted, "id >= 0", self._stored_fields, consistency_level=level))
            if len(table) == len(wanted):
                return table
        raise _RemovedMeanwhileError(f"items of {self.place} were removed while they were searched: search again")

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
            recall = recall_against_exact(self._neighbors_of(sample), exact)
            self.manifest = replace(self.manifest, recall=recall)


class _RemovedMeanwhileError(GalleryError):
    """What a search has found was removed before it could be read."""
