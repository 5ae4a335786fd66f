"""The gallery: vectors with a table of what they are, to be searched, added to and removed from.

On disk it is a folder. gallery.json names the files that belong together and is replaced in one step, so that a reader
sees the gallery as it was before a change or after it. No image is opened here and no network runs: vectors come in.
"""

import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from proxygml.errors import GalleryError, OverwriteError
from proxygml.files import only_writer, written_whole
from proxygml.indexes import ApproximateIndex, Kind, Rows, Vectors, exact_candidates, ranked, recall_against_exact
from proxygml.reranking import reranked

FORMAT = 1
MANIFEST = "gallery.json"
RESERVED = ("id", "removed", "query", "rank", "score", "embedding")
RERANKED = 100  # nearest items that k-reciprocal neighbours bring into another order
RECALL_SAMPLE, RECALL_AT = 500, 10

_TAIL = 1000  # items, or a tenth of all, that may be added before an approximate index takes them in
_DEAD = 4  # one removed item in so many lets the next save write all files anew, without them

Where = Mapping[str, str | float | bool | Sequence[str | float | bool]]
Block = tuple[Vectors, pd.DataFrame]


@dataclass(frozen=True)
class Threshold:
    """The score below which a query is taken for none of the gallery's classes, and how it was chosen."""

    score: float
    """Cosine of the nearest item; a query is accepted from here on."""

    false_accept_rate: float
    """Share of the calibration queries that were accepted although none of their class was there, at most as asked."""

    true_accept_rate: float | None
    """Share that was accepted when their class was there too; None where no class had two images."""

    queries: int
    classes: int


@dataclass(frozen=True)
class Facts:
    """What a gallery knows about itself beside its items: the content of gallery.json."""

    kind: Kind = "exact"
    model: str = ""
    """Fingerprint of the embedder; empty where it is not known."""

    run: str = ""
    """Absolute path of the run folder, where the embedder was when the gallery was made."""

    threshold: Threshold | None = None
    recall: float | None = None
    """Recall@10 of an approximate index against exact search, over a sample of its own items."""

    next_id: int = 0
    generation: int = 0
    """Grows by one with every save."""

    dimension: int = 0
    rows: int = 0
    vectors: str = ""
    items: str = ""
    index: str = ""


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
        self._buffer = vectors  # rows beyond the table's are room to grow into
        self._table = table  # aligned with the vectors; index: id; column removed
        self._index = index

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
        vectors = _unit(embeddings)
        gallery = cls(vectors[:0], _empty_table(items), Facts(kind, model, run, dimension=vectors.shape[1]), None, None)
        gallery.add(vectors, items)
        gallery._reindex()
        return gallery

    @classmethod
    def build(cls, folder: Path, blocks: Iterable[Block], facts: Facts, *, force: bool = False) -> "Gallery":
        """A gallery on disk, from blocks of vectors (n, D) and items, with one block in memory at a time.

        Args:
            folder: the gallery's; it appears, whole, when all is done.
            blocks: at least one row in all.
            facts: of which `kind`, `model`, `run` and `dimension` are taken.
            force: replace the gallery that is there.

        Raises:
            OverwriteError: something is there already, or another process is building it.
            GalleryError: see `create`.
        """
        refuse_gallery(folder, force)
        with only_writer(folder / ".lock"):
            name = f"vectors-{uuid.uuid4().hex[:8]}.f32"
            tables = []
            try:
                with (folder / name).open("wb") as file:
                    for vectors, items in blocks:
                        file.write(_unit(vectors).astype("<f4").tobytes())
                        tables.append(_checked_items(items, len(vectors)))
                    file.flush()
                    os.fsync(file.fileno())
                table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
                if table.empty:
                    raise GalleryError(f"no items are left to build {folder} from")
                facts = replace(
                    facts, vectors=name, rows=len(table), next_id=len(table), generation=_generation(folder)
                )
                table.index = pd.RangeIndex(len(table), name="id")
                gallery = cls(_mapped(folder, facts), table.assign(removed=False), facts, None, folder)
                gallery._reindex()
                gallery._publish(folder)
            except BaseException:
                (folder / name).unlink(missing_ok=True)
                raise
        return gallery

    @classmethod
    def load(cls, folder: str | Path) -> "Gallery":
        """Open a gallery; its vectors stay on disk and are read where they are needed.

        Raises:
            GalleryError: there is none, or it is damaged.
        """
        folder = Path(folder)
        for _ in range(10):  # a writer may take the files away between two of our steps, and name others
            facts = _read_facts(folder)
            try:
                vectors = _mapped(folder, facts)
                table = pd.read_parquet(folder / facts.items).set_index("id")
                index = ApproximateIndex.read(folder / facts.index) if facts.index else None
            except (FileNotFoundError, GalleryError):
                if _read_facts(folder).generation != facts.generation:
                    continue
                raise GalleryError(f"{folder} lacks a file that its {MANIFEST} names: build it again") from None
            except (ValueError, OSError, KeyError) as error:
                raise GalleryError(f"{folder} is damaged ({error}): build it again") from error
            return cls(vectors, table, facts, index, folder)
        raise GalleryError(f"{folder} changes faster than it can be read: try again")

    def __len__(self) -> int:
        """How many items can be found."""
        return int((~self._table["removed"]).sum())

    @property
    def items(self) -> pd.DataFrame:
        """The item table, by id, without what was removed."""
        return self._table[~self._table["removed"]].drop(columns="removed")

    def vectors(self, ids: Sequence[int] | Rows) -> Vectors:
        """The vectors, float32 (n, D), of items.

        Raises:
            GalleryError: there is no such item.
        """
        return self._vectors[self._rows_of(ids)]

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
            raise GalleryError(f"{found} of the gallery's {len(self):,} may be found" + _told(where))
        wanted = min((max(k, RERANKED) if rerank else k) + spare, available)
        own = np.full(len(queries), -1) if exclude is None else self._rows_or_none(exclude, len(queries))
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for place, (candidates, query) in enumerate(
            zip(self._candidates(queries, wanted, allowed), queries, strict=True)
        ):
            values, best = ranked(self._vectors, query, candidates, wanted)
            values, best = values[best != own[place]], best[best != own[place]]
            if rerank:
                order = reranked(query, self._vectors[best])
                values, best = values[order], best[order]
            scores[place], rows[place] = values[:k], best[:k]
        return SearchResult(scores, self._ids[rows], self._table.drop(columns="removed"))

    def add(self, embeddings: Tensor | npt.NDArray[np.floating], items: pd.DataFrame) -> Rows:
        """Add items, in memory until `save`; what is searched next finds them.

        Args:
            embeddings: (n, D) floats of any length.
            items: n rows; columns that are new to the gallery are empty in its older rows, and the other way round.

        Returns:
            int64 (n,): their ids, which no other item of the gallery has, had or will have.

        Raises:
            GalleryError: shapes that do not fit, or a reserved column.
        """
        vectors = self._checked_queries(embeddings)
        items = _checked_items(items, len(vectors))
        ids = np.arange(self.facts.next_id, self.facts.next_id + len(items))
        first, last = len(self._table), len(self._table) + len(items)
        if last > len(self._buffer):
            grown = np.empty((max(last, len(self._buffer) * 3 // 2), self.facts.dimension), np.float32)
            grown[:first] = self._vectors
            self._buffer = grown
        self._buffer[first:last] = vectors
        added = items.set_axis(pd.Index(ids, name="id")).assign(removed=False)
        self._table = pd.concat([self._table, added]) if first else added
        self.facts = replace(self.facts, next_id=self.facts.next_id + len(items))
        return ids

    def remove(self, ids: Sequence[int] | Rows) -> None:
        """Remove items, in memory until `save`; no search finds them again.

        Their vectors leave the disk when a quarter of the rows are removed ones: `save` then writes the files, and
        builds an approximate index, without them.

        Raises:
            GalleryError: there is no such item.
        """
        removed = self._table["removed"].to_numpy(copy=True)
        removed[self._rows_of(ids)] = True
        self._table = self._table.assign(removed=removed)

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
        target = Path(folder) if folder is not None else self.folder
        if target is None:
            raise GalleryError("the gallery has no folder yet: give one to save it in")
        if not len(self):
            raise GalleryError("all items are removed: a gallery holds at least one")
        new = self.folder is None or target.resolve() != self.folder.resolve()
        if new:
            refuse_gallery(target, False)
        with only_writer(target / ".lock"):
            if not new and _read_facts(target).generation != self.facts.generation:
                raise OverwriteError(f"{target} was changed since it was loaded: load it again, and repeat the change")
            if _DEAD * (len(self._table) - len(self)) >= len(self._table):
                self._compact()
                new = True
            if self.facts.kind != "exact" and self._tail >= max(_TAIL, len(self._table) // 10):
                self._take_in_tail()
            self._write_vectors(target, whole=new)
            self._publish(target)

    def calibrated(self, threshold: Threshold) -> None:
        """Keep a threshold (prediction.calibrate) with the gallery, in memory until `save`."""
        self.facts = replace(self.facts, threshold=threshold)

    @property
    def _vectors(self) -> Vectors:
        return self._buffer[: len(self._table)]

    @property
    def _ids(self) -> Rows:
        ids: Rows = self._table.index.to_numpy(dtype=np.int64)
        return ids

    @property
    def _tail(self) -> int:
        """Rows that the approximate index does not hold yet; they are searched exactly."""
        return len(self._table) - (0 if self._index is None else len(self._index))

    def _rows_of(self, ids: Sequence[int] | Rows) -> Rows:
        wanted = np.asarray(ids, dtype=np.int64)
        rows = self._table.index.get_indexer(wanted)
        gone = (rows < 0) | self._table["removed"].to_numpy()[rows]
        if gone.any():
            raise GalleryError(f"the gallery has no item {wanted[gone][0]}: it was removed, or never was")
        return np.asarray(rows, dtype=np.int64)

    def _rows_or_none(self, ids: Sequence[int] | Rows, count: int) -> Rows:
        wanted = np.asarray(ids, dtype=np.int64)
        if wanted.shape != (count,):
            raise GalleryError(f"exclude has the shape {wanted.shape}, but there are {count} queries: one id for each")
        return np.asarray(self._table.index.get_indexer(wanted), dtype=np.int64)

    def _checked_queries(self, embeddings: Tensor | npt.NDArray[np.floating]) -> Vectors:
        vectors = _unit(embeddings)
        if vectors.shape[1] != self.facts.dimension:
            raise GalleryError(
                f"embeddings are of size {vectors.shape[1]}, but the gallery's of {self.facts.dimension}: "
                "embed with the gallery's model"
            )
        return vectors

    def _allowed(self, where: Where | None) -> npt.NDArray[np.bool_] | None:
        """Which rows may be found; None for all."""
        removed: npt.NDArray[np.bool_] = self._table["removed"].to_numpy(dtype=bool)
        if not where:
            return ~removed if removed.any() else None
        allowed = ~removed
        for column, values in where.items():
            allowed &= _matches(self._table.drop(columns="removed"), column, values)
        return allowed

    def _candidates(self, queries: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None) -> list[Rows]:
        count = len(self._table) if allowed is None else int(np.count_nonzero(allowed))
        # Where few may be found, an approximate index would walk in vain past those that may not.
        if self._index is None or 20 * count < len(self._table):
            return exact_candidates(self._vectors, queries, k, allowed)
        found = self._index.candidates(queries, k, allowed)
        first = len(self._index)
        tail_allowed = None if allowed is None else allowed[first:]
        tail_count = self._tail if tail_allowed is None else int(np.count_nonzero(tail_allowed))
        if tail_count:
            tail = exact_candidates(self._vectors[first:], queries, min(k, tail_count), tail_allowed)
            found = [np.concatenate([rows, first + more]) for rows, more in zip(found, tail, strict=True)]
        for place, rows in enumerate(found):
            if len(rows) < k:
                found[place] = exact_candidates(self._vectors, queries[place : place + 1], k, allowed)[0]
        return found

    def _reindex(self) -> None:
        """Build the approximate index anew and measure what it loses."""
        if self.facts.kind == "exact":
            return
        self._index = ApproximateIndex.build(self.facts.kind, self._vectors)
        self.facts = replace(self.facts, index="", recall=self._measured_recall())

    def _measured_recall(self) -> float | None:
        """Recall@10 against exact search, for a sample of the items as queries that may not find themselves."""
        k = min(RECALL_AT, len(self) - 1)
        if k < 1:
            return None
        sample = np.random.default_rng(0).permutation(self.items.index.to_numpy())[:RECALL_SAMPLE]
        queries = self.vectors(sample)
        exact = Gallery(self._buffer, self._table, replace(self.facts, kind="exact"), None, None)
        found, truth = (gallery.search(queries, k, exclude=sample).ids for gallery in (self, exact))
        return recall_against_exact(found, truth)

    def _take_in_tail(self) -> None:
        if self._index is None:
            self._reindex()
            return
        self._index.add(self._vectors[len(self._index) :])
        self.facts = replace(self.facts, index="", recall=self._measured_recall())

    def _compact(self) -> None:
        kept = ~self._table["removed"].to_numpy(dtype=bool)
        self._buffer, self._table = self._vectors[kept], self._table[kept]
        self._reindex()

    def _write_vectors(self, folder: Path, whole: bool) -> None:
        """Append the rows that are not on disk yet, beyond what readers look at; or write all to a new file."""
        name = f"vectors-{uuid.uuid4().hex[:8]}.f32" if whole else self.facts.vectors
        start = 0 if whole else self.facts.rows
        with (folder / name).open("wb" if whole else "r+b") as file:
            file.truncate(4 * start * self.facts.dimension)  # what a writer left that was stopped
            file.seek(0, os.SEEK_END)
            for row in range(start, len(self._table), 65_536):
                file.write(self._vectors[row : row + 65_536].astype("<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        generation = _generation(folder)
        index = "" if whole else self.facts.index
        self.facts = replace(self.facts, vectors=name, rows=len(self._table), index=index, generation=generation)

    def _publish(self, folder: Path) -> None:
        """Write items and index under new names, then gallery.json, which makes them the gallery; clear up."""
        items = f"items-{uuid.uuid4().hex[:8]}.parquet"
        index = self.facts.index
        with written_whole(folder / items) as path:
            self._table.reset_index().to_parquet(path, index=False)
        if self._index is not None and not index:
            index = f"index-{uuid.uuid4().hex[:8]}.faiss"
            with written_whole(folder / index) as path:
                self._index.write(path)
        self.facts = replace(self.facts, items=items, index=index, generation=self.facts.generation + 1)
        with written_whole(folder / MANIFEST) as path:
            path.write_text(json.dumps({"format": FORMAT} | asdict(self.facts), indent=2) + "\n", encoding="utf-8")
        self.folder = folder
        for pattern in ("vectors-*.f32", "items-*.parquet", "index-*.faiss"):
            for file in folder.glob(pattern):
                if file.name not in (self.facts.vectors, items, index):
                    file.unlink(missing_ok=True)


def refuse_gallery(folder: Path, force: bool) -> None:
    """Raise OverwriteError when a gallery may not be put there."""
    if (folder / MANIFEST).exists():
        if not force:
            raise OverwriteError(f"{folder} is a gallery already: add to it with --add, or give --force to replace it")
    elif folder.exists() and any(
        not path.name.startswith((".", "vectors-", "items-", "index-")) for path in folder.iterdir()
    ):
        raise OverwriteError(f"{folder} holds something that is no gallery: choose another name")


def _generation(folder: Path) -> int:
    return _read_facts(folder).generation if (folder / MANIFEST).exists() else 0


def _read_facts(folder: Path) -> Facts:
    path = folder / MANIFEST
    if not path.is_file():
        raise GalleryError(f"{folder} is no gallery: it holds no {MANIFEST}; `proxygml index` makes one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.pop("format")
        if found != FORMAT:
            raise GalleryError(f"{path} has format {found!r}, but this version of proxygml reads format {FORMAT}")
        threshold = content.pop("threshold")
        facts = Facts(**content, threshold=None if threshold is None else Threshold(**threshold))
        names = [Path(name).name == name for name in (facts.vectors, facts.items, facts.index)]
        if not all(names):
            raise GalleryError(f"{path} names files outside of its folder: build the gallery again")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, GalleryError):
            raise
        raise GalleryError(f"{path} cannot be read ({error}): build the gallery again") from error
    return facts


def _mapped(folder: Path, facts: Facts) -> Vectors:
    """The file of vectors as an array, read where it is touched; the file cannot be changed through it."""
    shape = (facts.rows, facts.dimension)
    size = (folder / facts.vectors).stat().st_size
    if size < 4 * facts.rows * facts.dimension:
        raise GalleryError(f"{folder / facts.vectors} has {size} bytes, too few for {shape} vectors: build it again")
    return np.memmap(folder / facts.vectors, "<f4", "c", shape=shape).view(np.ndarray)


def _unit(embeddings: Tensor | npt.NDArray[np.floating]) -> Vectors:
    """Float32 (n, D) of length 1; those that are already stay bit for bit as they are."""
    given = embeddings.detach().cpu() if isinstance(embeddings, Tensor) else torch.from_numpy(np.array(embeddings))
    if given.dim() != 2 or given.shape[1] == 0 or not given.is_floating_point():
        raise GalleryError(f"embeddings are {tuple(given.shape)}, {given.dtype}: expected floats (n, D)")
    vectors = given.float()
    if not torch.isfinite(vectors).all():
        row = int(torch.isfinite(vectors).all(dim=1).int().argmin())
        raise GalleryError(f"embeddings[{row}] holds a NaN or an infinity: look at the image it comes from")
    lengths = vectors.norm(dim=1, keepdim=True)
    if len(lengths) and not lengths.min() > 0:
        raise GalleryError(f"embeddings[{int(lengths.argmin())}] is all zeros, which has no direction: leave it out")
    lengths = torch.where((lengths - 1).abs() < 1e-5, torch.ones_like(lengths), lengths)
    return np.ascontiguousarray((vectors / lengths).numpy())


def _empty_table(items: pd.DataFrame) -> pd.DataFrame:
    return items.iloc[:0].assign(removed=False).set_axis(pd.Index([], dtype=np.int64, name="id"))


def _checked_items(items: pd.DataFrame, count: int) -> pd.DataFrame:
    if len(items) != count:
        raise GalleryError(f"there are {len(items)} items, but {count} embeddings: give one row for each")
    taken = [name for name in items.columns if name in RESERVED]
    if taken:
        raise GalleryError(f"the items have a column {taken[0]!r}, a name that search results use: rename it")
    return items


def _matches(table: pd.DataFrame, column: str, values: object) -> npt.NDArray[np.bool_]:
    """Which rows have one of the values in the column, numbers compared as numbers and all else as text."""
    if column not in table:
        close = get_close_matches(column, list(table.columns), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"its columns are {', '.join(table.columns) or 'none'}"
        raise GalleryError(f"the item table has no column {column!r}: {hint}")
    wanted = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    cells = table[column]
    if pd.api.types.is_numeric_dtype(cells) and not pd.api.types.is_bool_dtype(cells):
        try:
            wanted = [float(str(value)) for value in wanted]
        except ValueError:
            raise GalleryError(f"the column {column!r} holds numbers, but {wanted[0]!r} is none") from None
        return np.asarray(cells.astype("float64").isin(wanted), dtype=bool)
    return np.asarray(cells.astype("string").isin([str(value) for value in wanted]), dtype=bool)


def _told(where: Where | None) -> str:
    return "" if not where else f": none has {', '.join(f'{column}={value}' for column, value in where.items())}"
