"""Changing a gallery in Milvus in steps after each of which a reader sees all of a change or nothing of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from proxygml.arrays import Rows, Vectors
from proxygml.errors import OverwriteError
from proxygml.gallery.items.coercion import conformed
from proxygml.gallery.items.column_types import column_texts
from proxygml.gallery.milvus.address import Address
from proxygml.gallery.milvus.collections import insert_rows, translating_errors
from proxygml.gallery.milvus.manifest import MilvusManifest, read_manifest, write_manifest, write_removed
from proxygml.gallery.milvus.reading import ANSWER_ROWS, CollectionReader
from proxygml.gallery.milvus.schema import OTHERS, rows_of, stored_schema

_CHANGED_AT_A_TIME = 500  # items


def _with_path(row: Mapping[str, Any], path: str, manifest: MilvusManifest) -> dict[str, Any]:
    """A row of Milvus with another path."""
    if "path" in manifest.fields:
        return {**row, "path": path}
    return {**row, OTHERS: {**(row[OTHERS] or {}), "path": path}}


class GalleryWriter:
    """Writes the changes of one gallery object; of two writers at the same time one is refused."""

    def __init__(self, client: Any, address: Address) -> None:
        self._client = client
        self._address = address
        self._first_own: int | None = None  # the first id that was reserved here and is not saved

    def append(self, manifest: MilvusManifest, vectors: Vectors, items: pd.DataFrame) -> tuple[Rows, MilvusManifest]:
        """Insert items, which count for others once the returned manifest is published; their ids are returned too.

        Raises:
            OverwriteError: another writer has changed the gallery.
            GalleryError: a cell that its column cannot hold.
        """
        table, schema = conformed(items, manifest.schema)
        schema = stored_schema(schema)
        with translating_errors(self._address):
            stored = self.check_unchanged(manifest)
            if self._first_own is None:
                self._delete_pending(stored)
            first = stored.next_id if self._first_own is None else self._first_own
            end, generation = stored.next_id + len(items), stored.generation + 1
            ids = np.arange(stored.next_id, end)
            rows = rows_of(ids, vectors, table, schema, manifest.fields)
            others = [reserved for reserved in stored.pending if reserved[0] != first]
            # The ids are reserved first, so that nobody counts these items or gives the ids again, however this ends.
            reserving = replace(stored, next_id=end, pending=[*others, [first, end]], generation=generation)
            write_manifest(self._client, self._address, reserving)
            insert_rows(self._client, manifest.collection, rows)
            self._first_own = first
        count = manifest.rows + len(items)
        return ids, replace(
            manifest, rows=count, next_id=end, generation=generation, pending=others, columns=column_texts(schema)
        )

    def save(self, manifest: MilvusManifest, removed: Rows) -> MilvusManifest:
        """Publish additions and removals, then delete the removed items.

        Raises:
            OverwriteError: another writer has changed the gallery.
        """
        with translating_errors(self._address):
            self.check_unchanged(manifest)
            removing = write_removed(self._client, self._address, removed)
            manifest = self.publish(replace(manifest, removing=removing))
            self._first_own = None
            if removing:
                for start in range(0, len(removed), ANSWER_ROWS):
                    self._client.delete(manifest.collection, ids=removed[start : start + ANSWER_ROWS].tolist())
                manifest = self.publish(replace(manifest, removing=0))
        return manifest

    def change_paths(self, manifest: MilvusManifest, reader: CollectionReader, paths: pd.Series) -> MilvusManifest:
        """Write other paths, by id, into items that are there; return the next manifest.

        Raises:
            OverwriteError: another writer has changed the gallery.
        """
        ids = paths.index.to_numpy(dtype=np.int64)
        with translating_errors(self._address):
            self.check_unchanged(manifest)
            for start in range(0, len(ids), _CHANGED_AT_A_TIME):
                part = ids[start : start + _CHANGED_AT_A_TIME]
                rows = reader.rows(part, "id >= 0", [*manifest.fields, OTHERS, "embedding"])
                self._client.upsert(manifest.collection, [_with_path(row, paths[row["id"]], manifest) for row in rows])
            return self.publish(manifest)

    def publish(self, manifest: MilvusManifest) -> MilvusManifest:
        """Write the manifest with the next generation, and return it."""
        published = replace(manifest, generation=manifest.generation + 1)
        write_manifest(self._client, self._address, published)
        return published

    def check_unchanged(self, manifest: MilvusManifest) -> MilvusManifest:
        """The manifest as it is in Milvus; OverwriteError where it is of another generation."""
        stored = read_manifest(self._client, self._address)
        if stored is None or stored.generation != manifest.generation:
            raise OverwriteError(
                f"{self._address} was changed since it was loaded: load it again, and repeat the change"
            )
        return stored

    def _delete_pending(self, stored: MilvusManifest) -> None:
        """Delete the items of stopped writers; their ids stay reserved, because such a writer may still be alive."""
        for first, end in stored.pending:
            self._client.delete(stored.collection, filter=f"id >= {first} and id < {end}")
