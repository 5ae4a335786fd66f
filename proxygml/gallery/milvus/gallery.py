"""A gallery in Milvus, for more items than one machine holds, with the answers that a folder would give.

Milvus proposes items; their similarities are computed again here. What is stored there, and when it counts, is
manifest.py's.
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from proxygml.arrays import Block, Rows, Vectors
from proxygml.data.image_list import FILE_STAMP
from proxygml.data.paths import rebased_paths
from proxygml.errors import GalleryError
from proxygml.files import exclusive_lock
from proxygml.gallery.backend import Candidates, Embeddings, Finish
from proxygml.gallery.base import Gallery, recall_sample
from proxygml.gallery.filters.grammar import Condition, one_of
from proxygml.gallery.folder.manifest import Manifest
from proxygml.gallery.items.coercion import check_items, first_equal_ids
from proxygml.gallery.items.column_types import column_texts
from proxygml.gallery.items.ids import Ids
from proxygml.gallery.milvus.address import Address
from proxygml.gallery.milvus.build import UnfinishedCollection
from proxygml.gallery.milvus.collections import (
    check_kind,
    connect,
    drop_other_collections,
    set_approximate_index,
    translating_errors,
)
from proxygml.gallery.milvus.expressions import visible
from proxygml.gallery.milvus.manifest import (
    MilvusManifest,
    check_no_gallery,
    read_manifest,
    read_removed,
)
from proxygml.gallery.milvus.reading import CollectionReader, MilvusRows, check_present
from proxygml.gallery.milvus.schema import OTHERS, table_of
from proxygml.gallery.milvus.writing import GalleryWriter
from proxygml.gallery.neighbors import recall_against_exact
from proxygml.gallery.vectors import VectorRows

_PATHS_AT_A_TIME = 200  # each possibly with many boxes, and an answer holds 16,384 rows


class MilvusGallery(Gallery):
    """See Gallery. `add` writes at once what counts from `save` on; removals are written by `save`.

    Others see all additions of a `save` together, and all removals together; of two writers at the same time one is
    refused.
    """

    def __init__(self, client: Any, address: Address, manifest: MilvusManifest, removed: Rows) -> None:
        self.manifest: MilvusManifest = manifest
        super().__init__(manifest)
        self._client = client
        self._writer = GalleryWriter(client, address)
        self._address = address
        self._reader = CollectionReader(client, address, manifest.collection, manifest.dimension)
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
            cls.check_place(place, force)
            client = connect(address)
            with translating_errors(address):
                before = read_manifest(client, address)
                check_kind(client, address, manifest.kind)
                made = UnfinishedCollection(client, address)
                made.fill(blocks, total)
                if not made.rows:
                    made.discard()
                    raise GalleryError(f"no items are left to build {address} from")
                client.flush(made.collection)
                client.load_collection(made.collection)
                whole = MilvusManifest(
                    manifest.kind, manifest.model, manifest.run, dimension=made.dimension, rows=made.rows,
                    next_id=made.rows, collection=made.collection, columns=column_texts(made.schema),
                    fields=made.fields, generation=before.generation if before else 0,
                )  # fmt: skip
                gallery = cls(client, address, whole, np.empty(0, np.int64))
                gallery._build_index()
                if finish is not None:
                    finish(gallery)
                if before is not None:
                    gallery._writer.check_unchanged(whole)
                gallery.manifest = gallery._writer.publish(gallery.manifest)
                drop_other_collections(client, address, made.collection, before.collection if before else None)
        shutil.rmtree(address.work("building"), ignore_errors=True)
        return gallery

    @classmethod
    def _load(cls, place: str | Path) -> Self:
        address = Address.parse(place)
        if address.local is not None and not address.local.exists():
            raise GalleryError(f"there is no {address}; `proxygml index` makes it")
        client = connect(address)
        with translating_errors(address):
            manifest = read_manifest(client, address)
            if manifest is None:
                raise GalleryError(f"{address} holds no gallery {address.name!r}; `proxygml index` makes one")
            removed = read_removed(client, address, manifest)
            client.load_collection(manifest.collection)
        return cls(client, address, manifest, removed)

    @staticmethod
    def check_place(place: str | Path, force: bool) -> None:
        """See backends.check_place."""
        if not force:
            check_no_gallery(Address.parse(place))

    @staticmethod
    def work_place(place: str | Path, purpose: str) -> Path:
        """See backends.work_place."""
        return Address.parse(place).work(purpose)

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def place(self) -> str:
        """See Backend.place."""
        return str(self._address)

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
        ids, self.manifest = self._writer.append(self.manifest, vectors, items)
        return ids

    def remove(self, ids: Ids) -> None:
        """See Backend.remove."""
        wanted = np.unique(self._chosen(ids))
        check_present(wanted, {row["id"] for row in self._reader.rows(wanted, self._visible(), [])})
        self._removed = np.union1d(self._removed, wanted)
        self.manifest = replace(self.manifest, rows=self.manifest.rows - len(wanted))

    def rebase(self, old: str, new: str) -> int:
        """See Backend.rebase; each item is changed at once, and a call that was stopped can be repeated."""
        paths = self.items["path"] if "path" in self.columns else pd.Series(dtype=object)
        moved = rebased_paths(paths, old, new)
        changed = moved[moved.notna() & (moved != paths)]
        self.manifest = self._writer.change_paths(self.manifest, self._reader, changed)
        return len(changed)

    def save(self, place: str | Path | None = None) -> None:
        """See Backend.save; a gallery in Milvus is saved where it is."""
        if place is not None and str(Address.parse(place)) != str(self._address):
            raise GalleryError(f"the gallery is in {self._address} and is saved there: call save without a place")
        self._check_not_empty()
        self.manifest = self._writer.save(self.manifest, self._removed)
        self._removed = np.empty(0, np.int64)

    def verify(self) -> None:
        """See Backend.verify: that Milvus holds as many items as the gallery counts."""
        found = len(self._matching([]))
        if found != len(self):
            raise GalleryError(f"{self._address} holds {found:,} items, but counts {len(self):,}: build it again")

    def _visible(self, conditions: Sequence[Condition] = ()) -> str:
        return visible(self.manifest, self._removed, conditions)

    @property
    def _stored_fields(self) -> list[str]:
        return [*self.manifest.fields, OTHERS]

    def _table(self, rows: MilvusRows) -> pd.DataFrame:
        return table_of(rows, self.schema)

    def _matching(self, conditions: Sequence[Condition]) -> Rows:
        rows = self._reader.scan(self._visible(conditions), self.manifest.next_id, [])
        return np.array([row["id"] for row in rows], np.int64)

    def _candidates(self, queries: Vectors, wanted: int, conditions: Sequence[Condition]) -> list[Candidates]:
        found = self._reader.nearest(queries, wanted, self._visible(conditions), self.manifest.kind, len(self))
        return [Candidates(ids, VectorRows(vectors), np.arange(len(ids))) for ids, vectors in found]

    def _table_with(self, ids: Rows) -> pd.DataFrame:
        return self.rows(np.unique(ids))

    def _build_index(self) -> None:
        """Build the index; measure what an approximate one loses while the collection can still be searched exactly."""
        kind, count = self.manifest.kind, self.manifest.rows
        if kind == "exact":
            return
        sample = recall_sample(np.arange(count))
        self.manifest = replace(self.manifest, kind="exact")
        exact = self._neighbors_of(sample) if len(sample) else None
        self.manifest = replace(self.manifest, kind=kind)
        set_approximate_index(self._client, self.manifest.collection, kind, count, self.manifest.dimension)
        if exact is not None:
            recall = recall_against_exact(self._neighbors_of(sample), exact)
            self.manifest = replace(self.manifest, recall=recall)
