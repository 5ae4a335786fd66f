"""The gallery: vectors with a table of what they are, to be searched, added to and removed from.

On disk it is a folder, which a reader sees as it was before a change or after it (gallery_folder.py); or its items are
in Milvus (milvus_gallery.py). No image is opened here and no network runs: vectors come in.
"""

import hashlib
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from proxygml.arrays import Block, Rows, Vectors
from proxygml.console import progress_bar
from proxygml.errors import GalleryError, OverwriteError
from proxygml.files import atomic_write, exclusive_lock
from proxygml.gallery.filters import Where, describe, matches
from proxygml.gallery.items import coerce_items
from proxygml.gallery.manifest import (
    MANIFEST,
    Facts,
    Threshold,
    check_gallery_folder,
    clear_up,
    facts_to_replace,
    mapped,
    read_facts,
    write_facts,
)
from proxygml.gallery.milvus_client import Address, is_milvus
from proxygml.gallery.neighbors import (
    ApproximateIndex,
    Kind,
    VectorRows,
    exact_candidates,
    ranked,
    recall_against_exact,
)
from proxygml.gallery.reranking import reranked

WRITTEN_AT_A_TIME = 16_384  # vectors
RESERVED = ("id", "removed", "query", "rank", "score", "embedding")
RERANKED = 100  # nearest items that k-reciprocal neighbours bring into another order
RECALL_SAMPLE, RECALL_AT = 500, 10

_TAIL = 1000  # items, or a tenth of all, that may be added before an approximate index takes them in
_DEAD = 4  # one removed item in so many lets the next save write all files anew, without them


@dataclass(frozen=True)
class SearchResult:
    """The nearest items of each query, best first.

    Attributes:
        scores: float32 (q, k), cosine similarities, -1..1; falling, unless re-ranked.
        ids: int64 (q, k).
        table: the items of the gallery, by id.
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

    def __len__(self) -> int:
        return len(self.ids)


class Gallery:
    """Vectors of length 1 and a row of the item table for each. Make one by `create`, `build` or `load`.

    Attributes:
        facts: kind, model, threshold and the like.
        folder: where it was loaded from or saved to, or None.
    """

    def __init__(
        self, vectors: Vectors, table: pd.DataFrame, facts: Facts, index: ApproximateIndex | None, folder: Path | None
    ) -> None:
        self.facts = facts
        self.folder = folder
        self._vectors = VectorRows(vectors)
        self._index = index
        self._set_table(table)

    def _set_table(self, table: pd.DataFrame) -> None:
        """Take a table, aligned with the vectors: index `id`, and a column `removed`. A search is to touch no table."""
        self._table = table
        self._shown = table.drop(columns="removed")
        self._ids: Rows = table.index.to_numpy(dtype=np.int64)
        removed: npt.NDArray[np.bool_] = table["removed"].to_numpy(dtype=bool)
        self._alive = ~removed
        self._all_alive = not removed.any()

    @classmethod
    def create(
        cls,
        embeddings: Tensor | npt.NDArray[np.floating],
        items: pd.DataFrame,
        kind: Kind = "exact",
        *,
        model: str = "",
        run: str = "",
    ) -> "Gallery":
        """A gallery in memory; `save` puts it on disk.

        Args:
            embeddings: (n, D) floats of any length; normalised here.
            items: n rows, what is known of each; `path` and `label` are what the commands show.
            kind: exact; hnsw (fast, as large as the vectors once more); ivfpq (fast, small).
            model: the fingerprint of the embedder (embedder.fingerprint).
            run: its run folder.

        Raises:
            GalleryError: shapes that do not fit, a reserved column, too few items for the kind.
        """
        if kind not in get_args(Kind):
            raise GalleryError(f"kind is {kind!r}, but must be one of {', '.join(get_args(Kind))}")
        vectors = unit_vectors(embeddings)
        gallery = cls(vectors[:0], _empty_table(items), Facts(kind, model, run, dimension=vectors.shape[1]), None, None)
        gallery.add(vectors, items)
        gallery._reindex()
        return gallery

    @classmethod
    def build(
        cls, folder: str | Path, blocks: Iterable[Block], facts: Facts, *, force: bool = False, total: int | None = None
    ) -> "Gallery":
        """A gallery on disk or in Milvus, from blocks of vectors (n, D) and items, with one block in memory at a time.

        A build that was stopped, and is called again with the same blocks, goes on.

        Args:
            folder: the gallery's, or its place in Milvus, see `load`; it appears, whole, when all is done.
            blocks: at least one row in all.
            facts: of which `kind`, `model`, `run` and `dimension` are taken.
            force: replace the gallery that is there.
            total: the number of rows in all, for the progress bar.

        Raises:
            OverwriteError: something is there already, or another process is building it.
            GalleryError: see `create`.
        """
        if is_milvus(folder):
            from proxygml.gallery.milvus import MilvusGallery  # noqa: PLC0415  (a kind of Gallery: it imports this)

            return MilvusGallery.build(folder, blocks, facts, force=force, total=total)
        folder = Path(folder)
        check_gallery_folder(folder, force)
        with exclusive_lock(folder / ".lock"):
            name = _begun_vectors(folder)
            try:
                tables, digest = _copied(blocks, folder / name, total)
                table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
                if table.empty:
                    raise GalleryError(f"no items are left to build {folder} from")
                facts = replace(
                    facts,
                    vectors=name,
                    rows=len(table),
                    next_id=len(table),
                    generation=facts_to_replace(folder).generation,
                )
                table.index = pd.RangeIndex(len(table), name="id")
                gallery = cls(mapped(folder, facts), table.assign(removed=False), facts, None, folder)
                checkpoint = folder / f".{facts.kind}-{digest[:16]}.faiss"
                gallery._reindex(checkpoint)
                gallery._publish(folder)
            except Exception:  # what is merely stopped, by Ctrl-C too, stays to go on from
                (folder / name).unlink(missing_ok=True)
                raise
        return gallery

    @classmethod
    def load(cls, folder: str | Path) -> "Gallery":
        """Open a gallery; its vectors stay on disk and are read where they are needed.

        Args:
            folder: the gallery's; or NAME.db (milvus-lite), or the URI of a Milvus server, each perhaps with #GALLERY.

        Raises:
            GalleryError: there is none, or it is damaged.
        """
        if is_milvus(folder):
            from proxygml.gallery.milvus import MilvusGallery  # noqa: PLC0415

            return MilvusGallery.load(folder)
        folder = Path(folder)
        for _ in range(10):  # a writer may take the files away between two of our steps, and name others
            facts = read_facts(folder)
            try:
                vectors = mapped(folder, facts)
                table = pd.read_parquet(folder / facts.items).set_index("id")
                index = ApproximateIndex.read(folder / facts.index) if facts.index else None
            except (FileNotFoundError, GalleryError):
                if read_facts(folder).generation != facts.generation:
                    continue
                raise GalleryError(f"{folder} lacks a file that its {MANIFEST} names: build it again") from None
            except (ValueError, OSError, KeyError) as error:
                raise GalleryError(f"{folder} is damaged ({error}): build it again") from error
            return cls(vectors, table, facts, index, folder)
        raise GalleryError(f"{folder} changes faster than it can be read: try again")

    def __len__(self) -> int:
        """How many items can be found."""
        return int(np.count_nonzero(self._alive))

    @property
    def items(self) -> pd.DataFrame:
        """The item table, by id, without what was removed; for a gallery in Milvus this fetches all of it."""
        return self._shown[self._alive]

    def rows(self, ids: Sequence[int] | Rows) -> pd.DataFrame:
        """The item table's rows of some items, by id and in their order.

        Raises:
            GalleryError: there is no such item.
        """
        return self._shown.iloc[self._rows_of(ids)]

    @property
    def columns(self) -> list[str]:
        """The names of the item table's columns."""
        return list(self._shown.columns)

    def ids_of(self, items: pd.DataFrame, columns: Sequence[str]) -> Rows:
        """For each of the n rows the id, int64, of the first item that is the same in these columns, -1 for none.

        Args:
            items: the rows; a column that they or the gallery lack is empty there, and empty equals empty.
            columns: `path` among them.
        """
        return first_equal(items, self.items, columns)

    @property
    def place(self) -> str:
        """Its folder, as `load` takes it; empty where it was never saved."""
        return str(self.folder or "")

    def vectors(self, ids: Sequence[int] | Rows) -> Vectors:
        """The vectors, float32 (n, D), of items.

        Raises:
            GalleryError: there is no such item.
        """
        return self._vectors.take(self._rows_of(ids))

    def search(
        self,
        embeddings: Tensor | npt.NDArray[np.floating],
        k: int = 10,
        where: Where | None = None,
        *,
        exclude: Sequence[int] | Rows | None = None,
        rerank: bool = False,
    ) -> SearchResult:
        """The k items nearest to each query by cosine similarity; equal ones in the order in which they were added.

        Args:
            embeddings: (q, D) floats of any length, of the gallery's model.
            k: how many, 1 or more; cut to what there is.
            where: only items whose column has that value, or one of those values; all columns must agree.
            exclude: for each query an id that it may not find, such as its own, or -1.
            rerank: order the nearest 100 by their k-reciprocal neighbours (see reranking.py).

        Raises:
            GalleryError: embeddings of another size, an unknown column, or no item that may be found.
        """
        queries = self._checked_queries(embeddings)
        if k < 1:
            raise GalleryError(f"k is {k}, but must be 1 or more")
        allowed = self._allowed(where)
        available = len(self._table) if allowed is None else int(np.count_nonzero(allowed))
        spare = 0 if exclude is None else 1
        k = min(k, available - spare)
        if k < 1:
            found = "no item" if not available else "no other item"
            raise GalleryError(f"{found} of the gallery's {len(self):,} may be found" + describe(where))
        wanted = min((max(k, RERANKED) if rerank else k) + spare, available)
        own = np.full(len(queries), -1) if exclude is None else self._rows_or_none(exclude, len(queries))
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for place, (candidates, query) in enumerate(
            zip(self._candidates(queries, wanted, allowed), queries, strict=True)
        ):
            values, best = ranked(self._vectors, query, candidates, wanted)
            values, best = values[best != own[place]], best[best != own[place]]
            if rerank:
                order = reranked(query, self._vectors.take(best))
                values, best = values[order], best[order]
            scores[place], rows[place] = values[:k], best[:k]
        return SearchResult(scores, self._ids[rows], self._shown)

    def add(self, embeddings: Tensor | npt.NDArray[np.floating], items: pd.DataFrame) -> Rows:
        """Add items, in memory until `save`; what is searched next finds them.

        Args:
            embeddings: (n, D) floats of any length.
            items: n rows; columns that are new to the gallery are empty in its older rows, and the other way round.

        Returns:
            int64 (n,): their ids, which no other item of the gallery has, had or will have.

        Raises:
            GalleryError: shapes that do not fit, a reserved column, or a cell that its column cannot hold.
        """
        vectors = self._checked_queries(embeddings)
        items = coerce_items(checked_items(items, len(vectors)), self._shown)
        ids = np.arange(self.facts.next_id, self.facts.next_id + len(items))
        self._vectors.append(vectors)
        added = items.set_axis(pd.Index(ids, name="id")).assign(removed=False)
        self._set_table(pd.concat([self._table, added]) if len(self._table) else added)
        self.facts = replace(self.facts, next_id=self.facts.next_id + len(items))
        return ids

    def remove(self, ids: Sequence[int] | Rows) -> None:
        """Remove items, in memory until `save`; no search finds them again.

        Their vectors leave the disk when a quarter of the rows are removed ones: `save` then writes the files, and
        builds an approximate index, without them.

        Raises:
            GalleryError: there is no such item.
        """
        removed = ~self._alive
        removed[self._rows_of(ids)] = True
        self._set_table(self._table.assign(removed=removed))

    def matching(self, where: Where) -> Rows:
        """The ids, int64, of the items that a filter lets through; see `search`."""
        allowed = self._allowed(where)
        return self._ids if allowed is None else self._ids[allowed]

    def save(self, folder: str | Path | None = None) -> None:
        """Write the gallery, whole or not at all: into its own folder what has changed, into a new one everything.

        Raises:
            OverwriteError: another process is writing, or has written since this one loaded the gallery; or something
                else is in the folder.
            GalleryError: there is nothing to save, or no folder is given for a new gallery.
        """
        if folder is not None and is_milvus(folder):
            raise GalleryError(f"save writes folders, and {folder} is in Milvus: Gallery.build puts a gallery there")
        target = Path(folder) if folder is not None else self.folder
        if target is None:
            raise GalleryError("the gallery has no folder yet: give one to save it in")
        if not len(self):
            raise GalleryError("all items are removed: a gallery holds at least one")
        new = self.folder is None or target.resolve() != self.folder.resolve()
        if new:
            check_gallery_folder(target, False)
        with exclusive_lock(target / ".lock"):
            if not new and read_facts(target).generation != self.facts.generation:
                raise OverwriteError(f"{target} was changed since it was loaded: load it again, and repeat the change")
            if new or _DEAD * (len(self._table) - len(self)) >= len(self._table):
                self._rewrite_vectors(target)
            else:
                self._append_vectors(target)
            if self.facts.kind != "exact" and self._tail >= max(_TAIL, len(self._table) // 10):
                self._take_in_tail()
            self._publish(target)

    def set_threshold(self, threshold: Threshold) -> None:
        """Keep a threshold (prediction.calibrate) with the gallery, in memory until `save`."""
        self.facts = replace(self.facts, threshold=threshold)

    @property
    def _tail(self) -> int:
        """Rows that the approximate index does not hold yet; they are searched exactly."""
        return len(self._table) - (0 if self._index is None else len(self._index))

    def _rows_of(self, ids: Sequence[int] | Rows) -> Rows:
        wanted = np.asarray(ids, dtype=np.int64)
        rows = self._table.index.get_indexer(wanted)
        gone = (rows < 0) | ~self._alive[rows]
        if gone.any():
            raise GalleryError(f"the gallery has no item {wanted[gone][0]}: it was removed, or never was")
        return np.asarray(rows, dtype=np.int64)

    def _rows_or_none(self, ids: Sequence[int] | Rows, count: int) -> Rows:
        wanted = np.asarray(ids, dtype=np.int64)
        if wanted.shape != (count,):
            raise GalleryError(f"exclude has the shape {wanted.shape}, but there are {count} queries: one id for each")
        return np.asarray(self._table.index.get_indexer(wanted), dtype=np.int64)

    def _checked_queries(self, embeddings: Tensor | npt.NDArray[np.floating]) -> Vectors:
        vectors = unit_vectors(embeddings)
        if vectors.shape[1] != self.facts.dimension:
            raise GalleryError(
                f"embeddings are of size {vectors.shape[1]}, but the gallery's of {self.facts.dimension}: "
                "embed with the gallery's model"
            )
        return vectors

    def _allowed(self, where: Where | None) -> npt.NDArray[np.bool_] | None:
        """Which rows may be found; None for all."""
        if not where:
            return None if self._all_alive else self._alive
        allowed = self._alive.copy()
        for column, values in where.items():
            allowed &= matches(self._shown, column, values)
        return allowed

    def _candidates(self, queries: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None) -> list[Rows]:
        count = len(self._table) if allowed is None else int(np.count_nonzero(allowed))
        # Where few may be found, an approximate index would walk in vain past those that may not.
        if self._index is None or 20 * count < len(self._table):
            return exact_candidates(self._vectors, queries, k, allowed)
        found = self._index.candidates(queries, k, allowed)
        first = len(self._index)
        tail_count = self._tail if allowed is None else int(np.count_nonzero(allowed[first:]))
        if tail_count:
            tail = exact_candidates(self._vectors, queries, min(k, tail_count), allowed, first)
            found = [np.concatenate([rows, more]) for rows, more in zip(found, tail, strict=True)]
        for place, rows in enumerate(found):
            if len(rows) < k:
                found[place] = exact_candidates(self._vectors, queries[place : place + 1], k, allowed)[0]
        return found

    def _reindex(self, checkpoint: Path | None = None) -> None:
        """Build the approximate index anew and measure what it loses."""
        if self.facts.kind == "exact":
            return
        self._index = ApproximateIndex.build(self.facts.kind, self._vectors, checkpoint=checkpoint)
        self.facts = replace(self.facts, index="", recall=self._measured_recall())

    def _measured_recall(self) -> float | None:
        """Recall@10 against exact search, for a sample of the items as queries that may not find themselves."""
        k = min(RECALL_AT, len(self) - 1)
        if k < 1:
            return None
        sample = np.random.default_rng(0).permutation(self.items.index.to_numpy())[:RECALL_SAMPLE]
        queries = self.vectors(sample)
        found = self.search(queries, k, exclude=sample).ids
        index, self._index = self._index, None  # without it, it searches exactly
        try:
            return recall_against_exact(found, self.search(queries, k, exclude=sample).ids)
        finally:
            self._index = index

    def _take_in_tail(self) -> None:
        if self._index is None:
            self._reindex()
            return
        self._index.add(self._vectors)
        self.facts = replace(self.facts, index="", recall=self._measured_recall())

    def _append_vectors(self, folder: Path) -> None:
        """Write the rows that are not on disk yet, beyond what readers look at."""
        with (folder / self.facts.vectors).open("r+b") as file:
            file.truncate(4 * self.facts.rows * self.facts.dimension)  # what a writer left that was stopped
            file.seek(0, os.SEEK_END)
            self._write_rows(file, np.arange(self.facts.rows, len(self._table)))
        self.facts = replace(self.facts, rows=len(self._table))
        self._vectors = VectorRows(mapped(folder, self.facts))

    def _rewrite_vectors(self, folder: Path) -> None:
        """Write the rows that can be found to a new file, and go on with those alone."""
        name = f"vectors-{uuid.uuid4().hex[:8]}.f32"
        kept = np.flatnonzero(self._alive)
        with (folder / name).open("wb") as file:
            self._write_rows(file, kept)
        changed = len(kept) < len(self._table)
        self.facts = replace(
            self.facts, vectors=name, rows=len(kept), index="", generation=facts_to_replace(folder).generation
        )
        self._vectors = VectorRows(mapped(folder, self.facts))
        if changed:
            self._set_table(self._table[self._alive])
            self._reindex()

    def _write_rows(self, file: BinaryIO, rows: Rows) -> None:
        for start in range(0, len(rows), WRITTEN_AT_A_TIME):
            file.write(self._vectors.take(rows[start : start + WRITTEN_AT_A_TIME]).astype("<f4").tobytes())
        file.flush()
        os.fsync(file.fileno())

    def _publish(self, folder: Path) -> None:
        """Write items and index under new names, then gallery.json, which makes them the gallery; clear up."""
        items = f"items-{uuid.uuid4().hex[:8]}.parquet"
        index = self.facts.index
        with atomic_write(folder / items) as path:
            self._table.reset_index().to_parquet(path, index=False)
        if self._index is not None and not index:
            index = f"index-{uuid.uuid4().hex[:8]}.faiss"
            with atomic_write(folder / index) as path:
                self._index.write(path)
        self.facts = replace(self.facts, items=items, index=index, generation=self.facts.generation + 1)
        write_facts(folder, self.facts)
        self.folder = folder
        clear_up(folder, self.facts)


def _begun_vectors(folder: Path) -> str:
    """The name of a new file of vectors; where a stopped build has left one, of that.

    Where gallery.json cannot be read, none is known to be left: a server may still read any of them.
    """
    named, left = "", sorted(path.name for path in folder.glob("vectors-*.f32"))
    if (folder / MANIFEST).exists():
        try:
            named = read_facts(folder).vectors
        except GalleryError:
            left = []
    left = [name for name in left if name != named]
    return left[0] if left else f"vectors-{uuid.uuid4().hex[:8]}.f32"


def _copied(blocks: Iterable[Block], path: Path, total: int | None) -> tuple[list[pd.DataFrame], str]:
    """Write the vectors of all blocks to a file, but those that it holds already; the item tables, and its digest."""
    tables, digest, size = [], hashlib.sha256(), 0
    path.touch()
    with path.open("r+b") as file, progress_bar(disable=total is not None and total < WRITTEN_AT_A_TIME) as bar:
        task = bar.add_task("copying", total=total, note="")
        for vectors, items in blocks:
            part = unit_vectors(vectors).astype("<f4").tobytes()
            tables.append(checked_items(items, len(vectors)))
            if file.read(len(part)) != part:
                file.seek(size)
                file.truncate()
                file.write(part)
            digest.update(part)
            size += len(part)
            bar.advance(task, len(items))
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
    return tables, digest.hexdigest()


def unit_vectors(embeddings: Tensor | npt.NDArray[np.floating]) -> Vectors:
    """Float32 (n, D) of length 1; those that are already stay bit for bit as they are."""
    given = embeddings.detach().cpu().float().numpy() if isinstance(embeddings, Tensor) else np.asarray(embeddings)
    if given.ndim != 2 or given.shape[1] == 0 or given.dtype.kind != "f":
        raise GalleryError(f"embeddings are {given.shape}, {given.dtype}: expected floats (n, D)")
    vectors = np.ascontiguousarray(given, np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(lengths).all():
        row = int(np.isfinite(lengths).argmin())
        raise GalleryError(f"embeddings[{row}] holds a NaN, an infinity or too large a number: look at its image")
    if (lengths == 0).any():
        raise GalleryError(f"embeddings[{int(lengths.argmin())}] is all zeros, which has no direction: leave it out")
    if (np.abs(lengths - 1) < 1e-5).all():
        return vectors
    unit: Vectors = np.where(np.abs(lengths - 1) < 1e-5, vectors.T, vectors.T / lengths).T.astype(np.float32, order="C")
    return unit


def _empty_table(items: pd.DataFrame) -> pd.DataFrame:
    return items.iloc[:0].assign(removed=False).set_axis(pd.Index([], dtype=np.int64, name="id"))


def checked_items(items: pd.DataFrame, count: int) -> pd.DataFrame:
    if len(items) != count:
        raise GalleryError(f"there are {len(items)} items, but {count} embeddings: give one row for each")
    taken = [name for name in items.columns if name in RESERVED]
    if taken:
        raise GalleryError(f"the items have a column {taken[0]!r}, a name that search results use: rename it")
    return items


def first_equal(wanted: pd.DataFrame, items: pd.DataFrame, columns: Sequence[str]) -> Rows:
    """See Gallery.ids_of; `items` are by id."""
    keys = list(columns)
    known = items.reindex(columns=keys).reset_index().drop_duplicates(keys)
    given = wanted.reindex(columns=keys)
    if empty := [key for key in keys if known[key].isna().all() or given[key].isna().all()]:
        known, given = (part.astype(dict.fromkeys(empty, object)) for part in (known, given))
    ids: Rows = given.merge(known, "left", on=keys)["id"].fillna(-1).to_numpy(dtype=np.int64)
    return ids


def work_place(place: str | Path, purpose: str) -> Path:
    """Where on this machine work in progress on a gallery is kept, until it is part of the gallery."""
    return Address.parse(place).work(purpose) if is_milvus(place) else Path(place) / f".{purpose}"


def check_place(place: str | Path, force: bool) -> None:
    """Raise OverwriteError when a gallery may not be put there."""
    if is_milvus(place):
        from proxygml.gallery.milvus import MilvusGallery  # noqa: PLC0415

        MilvusGallery.check_absent(Address.parse(place), force)
    else:
        check_gallery_folder(Path(place), force)
