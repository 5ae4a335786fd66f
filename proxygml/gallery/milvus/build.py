"""Building a gallery in Milvus: its collection is filled block by block, and a stopped build is continued."""

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from proxygml.arrays import Block, Vectors
from proxygml.console import progress_bar
from proxygml.errors import GalleryError, OverwriteError, counted
from proxygml.files import atomic_write
from proxygml.gallery.folder.manifest import Manifest
from proxygml.gallery.index_kinds import HNSW_BUILD, HNSW_LINKS, inverted_lists, product_codes
from proxygml.gallery.items.coercion import check_items, conformed
from proxygml.gallery.items.column_types import Schema, column_texts
from proxygml.gallery.kinds import CODED, Kind
from proxygml.gallery.milvus.connection import Connection
from proxygml.gallery.milvus.manifest import MilvusManifest, publish, read_manifest
from proxygml.gallery.milvus.schema import fields_of, rows_of, stored_schema
from proxygml.gallery.vectors import check_same_size, unit_vectors

_OLDEST_WITH_BITS = 2, 6
"""The Milvus that has IVF_RABITQ first."""

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

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._notes = connection.address.work("building") / "blocks.json"
        noted = json.loads(self._notes.read_text()) if self._notes.is_file() else {}
        self.collection: str = noted.get("collection", "")
        there = bool(self.collection) and self.collection in connection.collections()
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
            task = bar.add_task("Inserting", total=total, note="")
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
            self.collection = f"{self._connection.address.name}_{uuid.uuid4().hex[:8]}"
            self._note([])
            self._connection.create_collection(self.collection, self.dimension, self.schema)
        elif self._continuing:  # a block may be there in part, or have changed
            self._connection.delete_where(self.collection, f"id >= {self.rows}")
        self._continuing = False
        ids = np.arange(self.rows, self.rows + len(items))
        self._connection.write(self.collection, rows_of(ids, vectors, items, self.schema, self.fields))
        self._note(done)

    def _note(self, done: Sequence[str]) -> None:
        self._inserted = list(done)
        with atomic_write(self._notes) as path:
            path.write_text(json.dumps({"collection": self.collection, "blocks": self._inserted}))

    def finish(self, before: MilvusManifest | None, manifest: Manifest) -> MilvusManifest:
        """Make the collection ready to be searched exactly; the manifest of a gallery that takes the place of another.

        Raises:
            GalleryError: there are no items, or Milvus has not kept all.
        """
        if not self.rows:
            self.discard()
            raise GalleryError(f"no items are left to build {self._connection.address} from")
        self._connection.flush(self.collection)
        self._connection.load(self.collection)
        if (found := self._connection.count(self.collection, "id >= 0")) != self.rows:
            raise GalleryError(
                f"{self._connection.address} has kept {found:,} of {counted(self.rows, 'item')}: repeat the command"
            )
        return MilvusManifest(
            manifest.kind, manifest.model, manifest.run, manifest.refine, dimension=self.dimension, next_id=self.rows,
            generation=before.generation if before else 0, columns=column_texts(self.schema),
            collection=self.collection, fields=self.fields, edition=before.edition if before else 0,
        )  # fmt: skip

    def discard(self) -> None:
        """Drop the collection."""
        if self.collection:
            self._connection.drop(self.collection)


def check_kind(connection: Connection, kind: Kind) -> None:
    """Raise GalleryError where this Milvus has no such index."""
    if kind == "binary":
        raise GalleryError(f"{connection.address}: Milvus keeps binary codes in lists alone: choose ivfbinary")
    # milvus-lite 3.2.2 has codes of 8 bits too, but searching 3,000 items by 500 queries took it more than 30 s.
    if kind in CODED and connection.is_lite:
        raise GalleryError(
            f"{connection.address} is of milvus-lite, which has no {kind}: choose exact or hnsw, or a Milvus server"
        )
    if kind == "ivfbinary" and connection.version < _OLDEST_WITH_BITS:
        found, needed = (".".join(map(str, one)) for one in (connection.version, _OLDEST_WITH_BITS))
        raise GalleryError(
            f"{connection.address} is Milvus {found}, but ivfbinary needs {needed}: choose exact, hnsw, int8 or ivfpq"
        )


def set_approximate_index(connection: Connection, manifest: MilvusManifest, count: int) -> None:
    """Replace the index of a gallery of so many items by the approximate one of its kind."""
    lists = {"nlist": min(inverted_lists(count), 65_536)}
    name, parameters = {
        "hnsw": ("HNSW", {"M": HNSW_LINKS, "efConstruction": HNSW_BUILD}),
        "ivfpq": ("IVF_PQ", lists | {"m": product_codes(manifest.dimension), "nbits": 8}),
        "int8": ("IVF_SQ8", lists),
        "ivfbinary": ("IVF_RABITQ", lists),
    }[manifest.kind]
    connection.set_index(manifest.collection, name, parameters)


def publish_built(connection: Connection, before: MilvusManifest | None, manifest: MilvusManifest) -> MilvusManifest:
    """Put a gallery that is built in the place of the one that was there before, which is dropped.

    Raises:
        OverwriteError: another writer has saved that one meanwhile, or has built one too.
    """
    while True:
        stored = read_manifest(connection)
        if _edition(stored) != _edition(before):
            raise OverwriteError(f"{connection.address} was changed while it was built: repeat the command")
        generation = stored.generation if stored is not None else 0
        published = replace(manifest, generation=generation + 1, edition=manifest.edition + 1)
        if publish(connection, published):
            break
    own = re.compile(rf"{connection.address.name}_[0-9a-f]{{8}}")
    for name in connection.collections():
        lost = connection.address.local is not None and own.fullmatch(name)  # only we use milvus-lite
        if name != published.collection and (lost or (before is not None and name == before.collection)):
            connection.drop(name)
    return published


def _edition(manifest: MilvusManifest | None) -> tuple[str, int]:
    return ("", 0) if manifest is None else (manifest.collection, manifest.edition)
