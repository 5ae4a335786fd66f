"""The gallery: vectors with a table of what they are, to be searched, added to and removed from.

This module holds what is the same wherever a gallery is kept. folder/gallery.py keeps one in a folder,
milvus/gallery.py in Milvus; each implements backend.py. No image is opened here and no network runs.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from proxygml.arguments import check_arguments
from proxygml.arrays import Block, Rows, Vectors
from proxygml.errors import EmptyGalleryError, GalleryError, check_whole, counted
from proxygml.gallery.backend import Backend, Embeddings, Finish, GalleryContent
from proxygml.gallery.backends import backend_of, memory_backend
from proxygml.gallery.filters.grammar import Where, describe, parse_where
from proxygml.gallery.folder.manifest import Manifest, Threshold
from proxygml.gallery.items.ids import Ids, chosen_ids, whole_ids
from proxygml.gallery.kinds import Kind, check_kind, check_refine
from proxygml.gallery.neighbors import best_first, ranked
from proxygml.gallery.reranking import reranked
from proxygml.gallery.vectors import unit_vectors

RERANKED = 100
"""How many of the nearest items are re-ranked."""

LAST_ITEM = "all items are removed: a gallery holds at least one"

_FEW = 100  # cells are fetched faster one by one

RECALL_SAMPLE, RECALL_AT = 500, 10
"""Items that query their own gallery, and neighbours of each, to measure an approximate index."""


@dataclass(frozen=True)
class SearchResult:
    """The nearest items of each query, best first.

    Attributes:
        scores: float32 (q, k), cosine similarities, -1..1; falling, unless re-ranked.
        ids: int64 (q, k).
        table: rows of the item table by id, those that were found among them.
    """

    scores: Vectors
    ids: Rows
    table: pd.DataFrame

    def rows(self, query: int = 0) -> pd.DataFrame:
        """The items found for one query: `rank` (from 1), `score`, `id`, then the columns of the item table."""
        found = self.table.loc[self.ids[query]].reset_index()
        found.insert(0, "rank", np.arange(1, len(found) + 1))
        found.insert(1, "score", self.scores[query])
        return found

    def records(self, query: int = 0, *, without: Container[str] = ()) -> list[dict[str, Any]]:
        """The same as one dictionary an item, without these columns; much faster for a few items."""
        names = [str(name) for name in self.table.columns if name not in without]
        columns = [self._cells(name, self._places[query]) for name in names]
        ranked = enumerate(zip(self.scores[query].tolist(), self.ids[query].tolist(), *columns, strict=True), start=1)
        return [dict(zip(("rank", "score", "id", *names), (rank, *cells), strict=True)) for rank, cells in ranked]

    def cells(self, column: str) -> list[Any]:
        """The cells of a column for the q * k items, those of the first query first."""
        return self._cells(column, self._places.ravel())

    @cached_property
    def _places(self) -> Rows:
        """The row of the table, int64 (q, k), of each item."""
        index = self.table.index
        # A tenth of the time of get_indexer, for a few items after a pass over the vectors has emptied the caches.
        find = index.to_numpy().searchsorted if index.is_monotonic_increasing else index.get_indexer
        return np.asarray(find(self.ids.ravel()), np.int64).reshape(self.ids.shape)

    def _cells(self, column: str, places: Rows) -> list[Any]:
        cells = self.table[column].array
        return [cells[place] for place in places.tolist()] if len(places) <= _FEW else list(cells.take(places))

    def __len__(self) -> int:
        return len(self.ids)


class Gallery(Backend):
    """Vectors of length 1 and a row of the item table for each. Make one with `create`, `build` or `load`."""

    @staticmethod
    def create(
        embeddings: Embeddings,
        items: pd.DataFrame,
        kind: Kind = "exact",
        *,
        model: str = "",
        run: str = "",
        refine: int | None = None,
    ) -> "Gallery":
        """A gallery in memory; `save` writes it to a folder.

        Args:
            embeddings: (n, D) floats of any length; normalised here.
            items: n rows, what is known of each; `path` and `label` are what the commands show.
            kind: exact; hnsw (fast, as large as the vectors once more); or codes of the vectors: int8 (a byte for each
                number), binary (a bit for each, and 8 bytes), ivfbinary (the same in lists: fast), ivfpq (fast, small).
            model: the fingerprint of the embedder (model_files.fingerprint).
            run: its run folder.
            refine: for codes: how many candidates for each result are compared again, by their exact vectors; 10 if
                left out. 0 compares none: then scores are those of the codes.

        Raises:
            GalleryError: shapes that do not fit, a reserved column, too few items for the kind.
        """
        check_kind(kind)
        check_refine(kind, refine)
        return memory_backend().in_memory(unit_vectors(embeddings), items, Manifest(kind, model, run, refine))

    @staticmethod
    def build(
        place: str | Path,
        blocks: Iterable[Block],
        kind: Kind = "exact",
        *,
        model: str = "",
        run: str = "",
        refine: int | None = None,
        force: bool = False,
        total: int | None = None,
        finish: Finish | None = None,
    ) -> "Gallery":
        """A gallery in a folder or in Milvus, from blocks of vectors and items, with one block in memory at a time.

        A build that was stopped and is called again with the same blocks continues where it was.

        Args:
            place: a folder, or a place in Milvus, see `load`; the gallery appears there, whole, when all is done.
            blocks: vectors (m, D) and m items each; at least one row in all.
            kind: see `create`.
            model: see `create`.
            run: see `create`.
            refine: see `create`.
            force: replace the gallery that is there.
            total: the number of rows in all, for the progress bar.
            finish: is called with the gallery before it appears, to set its threshold, for example.

        Raises:
            OverwriteError: something is there already, or another process is building it.
            GalleryError: see `create`.
        """
        check_kind(kind)
        check_refine(kind, refine)
        manifest = Manifest(kind, model, run, refine)
        return backend_of(place)._build(place, GalleryContent(blocks, manifest, total, finish), force)

    @staticmethod
    @check_arguments
    def load(place: str | Path) -> "Gallery":
        """Open a gallery; its vectors stay where they are and are read when they are needed.

        Args:
            place: a folder; or NAME.db (milvus-lite), or the URI of a Milvus server, each optionally with #GALLERY.

        Raises:
            GalleryError: there is none, or it is damaged.
        """
        return backend_of(place)._load(place)

    def matching(self, where: Where) -> Rows:
        """The ids, int64, rising, of the items that pass a filter; see `search`.

        Raises:
            GalleryError: an unknown column, or a value that the column cannot hold.
        """
        return self._matching(parse_where(where, self.schema))

    def search(
        self,
        embeddings: Embeddings,
        k: int = 10,
        where: Where | None = None,
        *,
        exclude: Ids | None = None,
        rerank: bool = False,
    ) -> SearchResult:
        """The k items nearest to each query by cosine similarity; equal ones in the order in which they were added.

        Args:
            embeddings: (q, D) floats of any length, of the gallery's model.
            k: how many, 1 or more; fewer are returned where the gallery has fewer.
            where: only these items: {column: value, or several values of which one is enough}, all columns must agree;
                or conditions such as ["price>=10", ("taken", "<", "2021-02")], of which all must hold (filters/).
            exclude: for each query the id of an item that it may not find, such as its own; -1 for none.
            rerank: order the nearest 100 by their k-reciprocal neighbours (see reranking.py).

        Raises:
            GalleryError: embeddings of another size, an unknown column, no item that may be found, or a k beyond what
                Milvus returns in one answer (16,384 rows, 32 MiB).
        """
        queries = self._normalized(embeddings)
        k = check_whole("k", k, 1, 2**62, GalleryError)
        own = _excluded_ids(exclude, len(queries))
        spare = 0 if exclude is None else 1
        wanted = (max(k, RERANKED) if rerank else k) + spare
        conditions = [] if where is None else parse_where(where, self.schema)
        candidates = self._candidates(queries, wanted, conditions)
        others = [int(np.count_nonzero(found.ids != one)) for found, one in zip(candidates, own, strict=True)]
        k = min([k, *others])
        if k < 1:
            missing = "no other item" if any(len(found.ids) for found in candidates) else "no item"
            raise GalleryError(f"{missing} of the gallery's {len(self):,} may be found" + describe(conditions))
        scores, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for number, (query, found) in enumerate(zip(queries, candidates, strict=True)):
            if found.scores is None:
                values, order = ranked(found.vectors, query, found.rows, wanted)
            else:
                values, order = best_first(found.scores, wanted)
            kept = np.flatnonzero(found.ids[order] != own[number])[: wanted - spare]
            values, order = values[kept], order[kept]
            if rerank:
                again = reranked(query, found.vectors.take(found.rows[order]))
                values, order = values[again], order[again]
            scores[number], ids[number] = values[:k].clip(-1, 1), found.ids[order[:k]]
        return SearchResult(scores, ids, self._table_with(ids))

    def set_threshold(self, threshold: Threshold) -> None:
        """Take over a threshold (classify.calibrate), in memory until `save`."""
        self.manifest = replace(self.manifest, threshold=threshold)

    def _normalized(self, embeddings: Embeddings) -> Vectors:
        """Float32 (n, D) of length 1, checked to be of the gallery's size."""
        vectors = unit_vectors(embeddings)
        if vectors.shape[1] != self.manifest.dimension:
            raise GalleryError(
                f"embeddings are of size {vectors.shape[1]}, but the gallery's of {self.manifest.dimension}: "
                "embed with the gallery's model"
            )
        return vectors

    def _chosen(self, ids: Ids) -> Rows:
        """The ids, int64 (n,), that a caller names, by a mask too; see ids.chosen_ids."""
        return chosen_ids(ids, lambda: self._matching([]))

    def _check_not_empty(self) -> None:
        if not len(self):
            raise EmptyGalleryError(LAST_ITEM)

    def _neighbors_of(self, sample: Rows) -> Rows:
        """The 10 nearest other items, int64 (q, 10), of each item of a sample; to measure an approximate index."""
        k = min(RECALL_AT, len(self) - 1)
        return self.search(self.vectors(sample), k, exclude=sample).ids


def recall_sample(ids: Rows) -> Rows:
    """The items whose neighbours are compared to measure an approximate index; none where there are no neighbours."""
    return np.random.default_rng(0).permutation(ids)[: RECALL_SAMPLE if len(ids) > 1 else 0]


def _excluded_ids(exclude: Ids | None, count: int) -> Rows:
    if exclude is None:
        return np.full(count, -1)
    ids = whole_ids(exclude, "exclude")
    if ids.shape != (count,):
        raise GalleryError(f"exclude has the shape {ids.shape} for {counted(count, 'query')}: one id for each")
    return ids
