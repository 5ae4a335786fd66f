"""Building a gallery in Milvus: its collection is filled block by block, and a stopped build is continued."""

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from proxygml.arrays import Block, Vectors
from proxygml.console import progress_bar
from proxygml.files import atomic_write
from proxygml.gallery.items.coercion import check_items, conformed
from proxygml.gallery.items.column_types import Schema, column_texts
from proxygml.gallery.milvus.address import Address
from proxygml.gallery.milvus.collections import create_collection, insert_rows
from proxygml.gallery.milvus.schema import fields_of, rows_of, stored_schema
from proxygml.gallery.vectors import check_same_size, unit_vectors

_SHOWN_FROM = 16_384  # rows, below which there is no progress bar


class UnfinishedCollection:
    """The collection of a build until it is a gallery; which blocks are in it is noted on this machine.

    Attributes:
        collection: its name.
        schema: the types of the item table's columns.
        fields: the columns that have a field of their own.
        dimension: the size of the vectors.
        rows: how many have been inserted, in this build or the stopped one.
    """

    def __init__(self, client: Any, address: Address) -> None:
        self._client = client
        self._address = address
        self._notes = address.work("building") / "blocks.json"
        noted = json.loads(self._notes.read_text()) if self._notes.is_file() else {}
        self.collection: str = noted.get("collection", "")
        there = bool(self.collection) and client.has_collection(self.collection)
        # After each block, a digest of all rows so far.
        self._inserted: list[str] = noted["blocks"] if there else []
        self._continuing = True  # until the first block that is inserted
        self.schema: Schema = {}
        self.fields: list[str] = []
        self.dimension = 0
        self.rows = 0

    def fill(self, blocks: Iterable[Block], total: int | None) -> None:
        """Insert the blocks, except those that a stopped build has inserted.

        Raises:
            GalleryError: the blocks do not fit together.
        """
        digest = hashlib.sha256()
        done: list[str] = []
        with progress_bar(disable=total is not None and total < _SHOWN_FROM) as bar:
            task = bar.add_task("inserting", total=total, note="")
            for given, items in blocks:
                vectors = unit_vectors(given)
                check_items(items, len(vectors))
                table, schema = conformed(items, self.schema)
                self.schema = stored_schema(schema)
                if not done:
                    self.fields, self.dimension = fields_of(self.schema), vectors.shape[1]
                    digest.update(json.dumps([self.dimension, column_texts(self.schema)]).encode())
                check_same_size(vectors, self.dimension)
                digest.update(vectors.tobytes() + items.to_csv().encode(errors="surrogatepass"))
                done.append(digest.hexdigest())
                if self._inserted[: len(done)] != done:
                    self._insert(vectors, table, done)
                self.rows += len(items)
                bar.advance(task, len(items))

    def _insert(self, vectors: Vectors, items: pd.DataFrame, done: Sequence[str]) -> None:
        if len(done) == 1:
            self.discard()
            self.collection = f"{self._address.name}_{uuid.uuid4().hex[:8]}"
            self._note([])
            create_collection(self._client, self.collection, self.dimension, self.schema)
        elif self._continuing:  # a block may be there in part, or have changed
            self._client.delete(self.collection, filter=f"id >= {self.rows}")
        self._continuing = False
        ids = np.arange(self.rows, self.rows + len(items))
        insert_rows(self._client, self.collection, rows_of(ids, vectors, items, self.schema, self.fields))
        self._note(done)

    def _note(self, done: Sequence[str]) -> None:
        self._inserted = list(done)
        with atomic_write(self._notes) as path:
            path.write_text(json.dumps({"collection": self.collection, "blocks": self._inserted}))

    def discard(self) -> None:
        """Drop the collection."""
        if self.collection:
            self._client.drop_collection(self.collection)
