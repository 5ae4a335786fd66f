"""A gallery in Milvus, the half of it that reads: with the answers that a folder would give.

Milvus proposes items; their similarities are computed again here.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from proxygml.arrays import Rows, Vectors
from proxygml.data.images.image_list import FILE_STAMP
from proxygml.errors import GalleryError, GalleryUnavailableError, counted
from proxygml.gallery.backend import Candidates, Embeddings
from proxygml.gallery.base import Gallery, SearchResult
from proxygml.gallery.filters.grammar import Condition, Where, one_of
from proxygml.gallery.index_kinds import REFINED
from proxygml.gallery.items.coercion import first_equal_ids
from proxygml.gallery.items.ids import Ids
from proxygml.gallery.kinds import CODED
from proxygml.gallery.milvus.connection import Connection
from proxygml.gallery.milvus.expressions import visible
from proxygml.gallery.milvus.manifest import (
    MilvusManifest,
)
from proxygml.gallery.milvus.reading import CollectionReader, MilvusRows, check_present
from proxygml.gallery.milvus.schema import MISSING, OTHERS, table_of
from proxygml.gallery.vectors import VectorRows

_PATHS_AT_A_TIME = 200  # each possibly with many boxes, and an answer holds 16,384 rows


_SEARCHES = 20
"""At a search, while others remove what it finds."""


class ReadMilvusGallery(Gallery):
    """See MilvusGallery."""

    def __init__(self, connection: Connection, manifest: MilvusManifest, removed: Rows) -> None:
        self.manifest: MilvusManifest = manifest
        super().__init__(manifest)
        self._connection = connection
        self._reader = CollectionReader(connection, manifest.collection, manifest.dimension)
        self._removed = removed  # in memory, or by a writer that was stopped before it had deleted them

    def __len__(self) -> int:
        return self._connection.count(self.manifest.collection, self._visible())

    @property
    def place(self) -> str:
        """See Backend.place."""
        return str(self._connection.address)

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

    def verify(self) -> str:
        """See Backend.verify: that every item is there once, can be read, and has a vector of length 1."""
        ids = self._matching([])
        if (found := len(self)) != len(np.unique(ids)):
            raise GalleryError(
                f"{self.place} holds {counted(found, 'item')} under {counted(len(ids), 'id')}: build it again"
            )
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
        for attempt in range(_SEARCHES):
            try:
                return super().search(embeddings, k, where, exclude=exclude, rerank=rerank)
            except _RemovedMeanwhileError:
                if attempt + 1 == _SEARCHES:
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
        kind, refine = self.manifest.kind, REFINED if self.manifest.refine is None else self.manifest.refine
        found = self._reader.nearest(queries, wanted, self._visible(conditions), kind, refine)
        by_codes = kind in CODED and not refine
        return [
            Candidates(ids, VectorRows(vectors), np.arange(len(ids)), scores if by_codes else None)
            for ids, vectors, scores in found
        ]

    def _table_with(self, ids: Rows) -> pd.DataFrame:
        wanted = np.unique(ids)
        # They have just been found: what Milvus knows already will do, unless it lacks one of them.
        for level in ("Eventually", "Strong"):
            table = self._table(self._reader.rows(wanted, "id >= 0", self._stored_fields, consistency_level=level))
            if len(table) == len(wanted):
                return table
        raise _RemovedMeanwhileError(f"items of {self.place} were removed while they were searched: search again")


class _RemovedMeanwhileError(GalleryUnavailableError):
    """What a search has found was removed before it could be read."""
