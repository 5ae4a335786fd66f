"""Changing a gallery in Milvus in steps after each of which a reader sees all of a change or nothing of it.

Two ways lead there. A writer that saves reserves ids that do not count, inserts its items under them, and replaces the
manifest by one in which they do, and which lists what it removes. A writer that makes single changes reserves ids that
count as soon as there is an item: Milvus inserts a row whole or not at all. So any number of processes can do the
latter at the same time; of those that save, the first one wins.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from proxygml.arrays import Rows, Vectors
from proxygml.errors import OverwriteError
from proxygml.gallery.items.coercion import conformed
from proxygml.gallery.items.column_types import Schema, column_texts
from proxygml.gallery.milvus.connection import Connection
from proxygml.gallery.milvus.expressions import ids_between
from proxygml.gallery.milvus.manifest import MilvusManifest, change_manifest, stored_manifest
from proxygml.gallery.milvus.reading import CollectionReader
from proxygml.gallery.milvus.schema import DEFAULTS, FIELD_TYPES, MISSING, NAMES, OTHERS, rows_of, stored_schema

_CHANGED_AT_A_TIME = 500  # items
_IDS_IN_A_ROW = 3000  # removed ids in one JSON field
_IDS_AT_A_TIME = 256  # reserved for single additions: a process that ends leaves the others unused

Range = tuple[int, int]  # ids, first and last plus one


class GalleryWriter:
    """Writes the changes of one gallery object."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unsaved: list[Range] = []  # ids of items that were inserted here and are not saved
        self._free: Range = (0, 0)  # ids that were reserved here for single additions

    # Changes that count from `save` on --------------------------------------------------------------------------------

    def append(self, manifest: MilvusManifest, vectors: Vectors, items: pd.DataFrame) -> tuple[Rows, MilvusManifest]:
        """Insert items that do not count for others yet; their ids, and the manifest that counts them, are returned.

        Raises:
            OverwriteError: another writer has saved the gallery.
            GalleryError: a cell that its column cannot hold.
        """
        table, schema = conformed(items, manifest.schema)
        schema = stored_schema(schema)
        rows = rows_of(np.arange(len(items)), vectors, table, schema, manifest.fields)

        def reserve(stored: MilvusManifest) -> MilvusManifest:
            self._check_unchanged(manifest, stored)
            end = stored.next_id + len(items)
            ranges = [(first, last) for first, last in stored.pending]
            return replace(stored, next_id=end, pending=self._with_range(ranges, (stored.next_id, end)))

        stored = change_manifest(self._connection, reserve)
        first = stored.next_id - len(items)
        self._unsaved = self._with_range(self._unsaved, (first, stored.next_id))
        ids = np.arange(first, stored.next_id)
        self._connection.write(
            manifest.collection, [{**row, "id": number} for row, number in zip(rows, ids.tolist(), strict=True)]
        )
        return ids, replace(
            manifest,
            next_id=stored.next_id,
            generation=stored.generation,
            pending=self._pending_of_others(stored),
            columns=column_texts(schema),
        )

    def save(self, manifest: MilvusManifest, removed: Rows) -> MilvusManifest:
        """Make additions and removals count, all at once, then delete the removed items.

        Raises:
            OverwriteError: another writer has saved the gallery; what was inserted for this one is deleted.
        """
        connection, collection = self._connection, manifest.collection
        old_lists = _ids(connection.query(collection, "id < 0", ["id"]))
        try:
            self._check_complete(manifest)
            lists = self._list_removed(manifest, removed)

            def commit(stored: MilvusManifest) -> MilvusManifest:
                self._check_unchanged(manifest, stored)
                pending = self._pending_of_others(stored)
                counting = replace(manifest, next_id=stored.next_id, edition=stored.edition + 1)
                return replace(counting, pending=pending, removing=lists)

            saved = change_manifest(connection, commit)
        except OverwriteError:
            self._withdraw(collection)
            raise
        self._unsaved = []
        connection.delete(collection, removed)
        for first, end in saved.pending:  # of writers that have ended, or that will be refused
            connection.delete_where(collection, ids_between(first, end))
        connection.delete(collection, np.union1d(old_lists, np.arange(*lists) if lists else []).astype(np.int64))
        if lists:
            saved = change_manifest(connection, lambda stored: _without_lists(stored, lists))
        return saved

    def change_paths(self, manifest: MilvusManifest, reader: CollectionReader, paths: pd.Series) -> MilvusManifest:
        """Write other paths, by id, into items that are there; return the next manifest.

        Raises:
            OverwriteError: another writer has saved the gallery.
        """
        self._check_unchanged(manifest, stored_manifest(self._connection))
        ids = paths.index.to_numpy(dtype=np.int64)
        for start in range(0, len(ids), _CHANGED_AT_A_TIME):
            part = ids[start : start + _CHANGED_AT_A_TIME]
            rows = reader.rows(part, "id >= 0", [*manifest.fields, OTHERS, MISSING, "embedding"])
            self._connection.write(
                manifest.collection, [_with_path(row, paths[row["id"]], manifest.fields) for row in rows]
            )

        def commit(stored: MilvusManifest) -> MilvusManifest:
            self._check_unchanged(manifest, stored)
            return replace(stored, edition=stored.edition + 1)

        return change_manifest(self._connection, commit)

    def _check_unchanged(self, manifest: MilvusManifest, stored: MilvusManifest) -> None:
        """Raise OverwriteError where another writer has saved the gallery."""
        if (stored.collection, stored.edition) != (manifest.collection, manifest.edition):
            raise OverwriteError(
                f"{self._connection.address} was changed since it was loaded: load it again, and repeat the change"
            )

    def _check_complete(self, manifest: MilvusManifest) -> None:
        """Raise OverwriteError where another writer, which has saved since, has deleted what was inserted here."""
        connection = self._connection
        there = sum(connection.count(manifest.collection, ids_between(*unsaved)) for unsaved in self._unsaved)
        if there != sum(end - first for first, end in self._unsaved):
            raise OverwriteError(
                f"{connection.address} was changed since it was loaded: load it again, and repeat the change"
            )

    def _with_range(self, ranges: Sequence[Range], new: Range) -> list[Range]:
        """Ranges, our own among them, and a new one of ours: it continues our last one where that ends."""
        if self._unsaved and self._unsaved[-1][1] == new[0]:
            last = self._unsaved[-1]
            return [(one[0], new[1]) if one == last else one for one in ranges]
        return [*ranges, new]

    def _pending_of_others(self, stored: MilvusManifest) -> list[Range]:
        return [(first, end) for first, end in stored.pending if (first, end) not in self._unsaved]

    def _withdraw(self, collection: str) -> None:
        """Delete what was inserted and cannot be saved any more."""
        for first, end in self._unsaved:
            self._connection.delete_where(collection, ids_between(first, end))
        if self._unsaved:
            change_manifest(self._connection, lambda stored: replace(stored, pending=self._pending_of_others(stored)))
        self._unsaved = []

    def _list_removed(self, manifest: MilvusManifest, removed: Rows) -> tuple[int, ...]:
        """List removed ids in rows of their own, with negative ids: the first one and the last one plus one."""
        if not len(removed):
            return ()
        parts = np.array_split(removed, -(-len(removed) // _IDS_IN_A_ROW))
        first = -random.SystemRandom().randrange(2**48, 2**49)
        filler = {name: DEFAULTS[FIELD_TYPES[kind.name]] for name, kind in manifest.schema.items()
                  if name in manifest.fields}  # fmt: skip
        vector = np.zeros(manifest.dimension, np.float32)
        rows = [
            {
                **filler,
                "id": first + number,
                "embedding": vector,
                OTHERS: {"removed": part.tolist()},
                MISSING: {NAMES: []},
            }
            for number, part in enumerate(parts)
        ]
        self._connection.write(manifest.collection, rows)
        return first, first + len(parts)

    # Changes that count at once ---------------------------------------------------------------------------------------

    def insert(self, manifest: MilvusManifest, vectors: Vectors, items: pd.DataFrame) -> tuple[Rows, MilvusManifest]:
        """Insert items, each of which counts as soon as it is there; their ids, and the manifest, are returned.

        Raises:
            OverwriteError: the gallery was built anew.
            GalleryError: a cell that its column cannot hold.
        """
        table, schema = self._fitting(items, manifest)
        if column_texts(schema) != dict(manifest.columns):
            manifest = self._with_columns(manifest, items)
            table, schema = self._fitting(items, manifest)
        ids, manifest = self._take_ids(manifest, len(items))
        self._connection.write(manifest.collection, rows_of(ids, vectors, table, schema, manifest.fields))
        return ids, manifest

    def _fitting(self, items: pd.DataFrame, manifest: MilvusManifest) -> tuple[pd.DataFrame, Schema]:
        table, schema = conformed(items, manifest.schema)
        return table, stored_schema(schema)

    def _with_columns(self, manifest: MilvusManifest, items: pd.DataFrame) -> MilvusManifest:
        """The manifest with columns that only new items have."""

        def commit(stored: MilvusManifest) -> MilvusManifest:
            self._check_same(manifest, stored)
            _, schema = self._fitting(items, stored)
            return replace(stored, columns=column_texts(schema), edition=stored.edition + 1)

        return change_manifest(self._connection, commit)

    def _take_ids(self, manifest: MilvusManifest, count: int) -> tuple[Rows, MilvusManifest]:
        if self._free[1] - self._free[0] < count:
            reserved = max(count, _IDS_AT_A_TIME)

            def reserve(stored: MilvusManifest) -> MilvusManifest:
                self._check_same(manifest, stored)
                return replace(stored, next_id=stored.next_id + reserved)

            manifest = change_manifest(self._connection, reserve)
            self._free = manifest.next_id - reserved, manifest.next_id
        first, end = self._free
        self._free = first + count, end
        return np.arange(first, first + count), manifest

    def _check_same(self, manifest: MilvusManifest, stored: MilvusManifest) -> None:
        """Raise OverwriteError where the gallery was built anew."""
        if stored.collection != manifest.collection:
            raise OverwriteError(f"{self._connection.address} was replaced since it was loaded: load it again")


def listed_removals(reader: CollectionReader, manifest: MilvusManifest) -> Rows:
    """The ids, int64, of items that are removed but may still be in the collection."""
    if not manifest.removing:
        return np.empty(0, np.int64)
    rows = reader.query(ids_between(*manifest.removing), [OTHERS])
    return np.array(sorted(number for row in rows for number in row[OTHERS]["removed"]), np.int64)


def _without_lists(stored: MilvusManifest, lists: Sequence[int]) -> MilvusManifest:
    return replace(stored, removing=()) if tuple(stored.removing) == tuple(lists) else stored


def _ids(rows: Iterable[Mapping[str, Any]]) -> Rows:
    return np.array([row["id"] for row in rows], np.int64)


def _with_path(row: Mapping[str, Any], path: str, fields: Sequence[str]) -> dict[str, Any]:
    """A row of Milvus with another path."""
    if "path" in fields:
        return {**row, "path": path}
    return {**row, OTHERS: {**(row[OTHERS] or {}), "path": path}}
