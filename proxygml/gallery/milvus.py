"""A gallery in Milvus: the same questions and answers as from a folder, for more items than one machine holds.

A gallery `photos` is a collection of its items, `photos_1a2b3c4d`, and one row of the collection `photos_facts`, which
says which collection that is and from which id on its items do not count yet. To write that row is to save: what a
stopped writer left is looked at by nobody.
"""

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from proxygml.arrays import Block, Rows, Vectors
from proxygml.console import progress_bar
from proxygml.errors import GalleryError, OverwriteError
from proxygml.files import atomic_write, exclusive_lock
from proxygml.gallery.filters import Where, describe
from proxygml.gallery.folder import (
    RECALL_AT,
    RECALL_SAMPLE,
    RERANKED,
    Gallery,
    SearchResult,
    checked_items,
    first_equal,
    unit_vectors,
)
from proxygml.gallery.manifest import Facts, facts_text, parsed_facts
from proxygml.gallery.milvus_client import (
    ANSWER_ROWS,
    MESSAGE_BYTES,
    OTHERS,
    Address,
    ColumnKind,
    Columns,
    columns_of,
    connect,
    create_collection,
    expression,
    fields_of,
    ids_in,
    rows_of,
    set_index,
    table_of,
    translating_errors,
)
from proxygml.gallery.neighbors import (
    HNSW_BUILD,
    HNSW_LINKS,
    HNSW_SEARCH,
    PROBED,
    REFINED,
    Kind,
    VectorRows,
    inverted_lists,
    product_codes,
    ranked,
    recall_against_exact,
)
from proxygml.gallery.reranking import reranked

_SPARE = 10  # candidates beyond those asked for, among which ties are told
_REMOVED_IN_A_ROW = 4000  # ids in one text field


@dataclass(frozen=True)
class MilvusFacts(Facts):
    """What the row of `photos_facts` says. `items` is the name of the collection, `rows` counts what can be found."""

    columns: Columns = field(default_factory=dict)
    fields: Sequence[str] = ()
    """The columns that have a field of their own."""

    pending: Sequence[Sequence[int]] = ()
    """Ranges of ids, first and last plus one, that a writer took and has not saved: they do not count."""

    removing: int = 0
    """Rows of `photos_facts` after the first that list ids which are removed, though they may still be there."""


class MilvusGallery(Gallery):
    """See Gallery. `add` writes at once what counts from `save` on; `remove` and `save` write together.

    Additions are seen together and removals together; of two writers at the same time one is refused.
    """

    def __init__(self, client: Any, address: Address, facts: MilvusFacts, removed: Rows) -> None:
        self.facts: MilvusFacts = facts
        self.folder = None
        self._client = client
        self._address = address
        self._removed = removed  # in memory, or by a writer that was stopped before it had deleted them
        self._first_own: int | None = None  # the first id that this object took and has not saved

    @classmethod
    def check_absent(cls, address: Address, force: bool) -> None:
        """Raise OverwriteError when a gallery may not be put there."""
        if force or (address.local is not None and not address.local.exists()):
            return
        client = connect(address)
        with translating_errors(address):
            if _read_facts(client, address) is not None:
                raise OverwriteError(
                    f"{address} is a gallery already: add to it with --add, or give --force to replace it"
                )

    @classmethod
    def build(
        cls, folder: str | Path, blocks: Iterable[Block], facts: Facts, *, force: bool = False, total: int | None = None
    ) -> "MilvusGallery":
        """See Gallery.build. What a stopped build had inserted stays, and the next call begins behind it."""
        address = Address.parse(folder)
        with exclusive_lock(address.work("building") / ".lock"):
            cls.check_absent(address, force)
            client = connect(address)
            with translating_errors(address):
                before = _read_facts(client, address)
                _check_kind(client, address, facts.kind)
                staging = _Staging(client, address, facts.dimension)
                staging.fill(blocks, total)
                collection, rows = staging.collection, staging.rows
                if not rows:
                    staging.discard()
                    raise GalleryError(f"no items are left to build {address} from")
                client.flush(collection)
                client.load_collection(collection)
                made = MilvusFacts(
                    facts.kind, facts.model, facts.run, dimension=facts.dimension, rows=rows, next_id=rows,
                    items=collection, columns=staging.columns, fields=fields_of(staging.columns),
                    generation=before.generation if before else 0,
                )  # fmt: skip
                gallery = cls(client, address, made, np.empty(0, np.int64))
                gallery._build_index()
                if before is not None:
                    gallery._stored()
                gallery._publish_facts()
                _drop_others(client, address, before, collection)
        shutil.rmtree(address.work("building"), ignore_errors=True)
        return gallery

    @classmethod
    def load(cls, folder: str | Path) -> "MilvusGallery":
        """See Gallery.load."""
        address = Address.parse(folder)
        if address.local is not None and not address.local.exists():
            raise GalleryError(f"there is no {address}; `proxygml index` makes it")
        client = connect(address)
        with translating_errors(address):
            facts = _read_facts(client, address)
            if facts is None:
                raise GalleryError(f"{address} holds no gallery {address.name!r}; `proxygml index` makes one")
            lists = [_read_text(client, address, 1 + number) for number in range(facts.removing)]
            client.load_collection(facts.items)
        removed = [number for text in lists for number in json.loads(text or "[]")]
        return cls(client, address, facts, np.array(removed, np.int64))

    def __len__(self) -> int:
        return self.facts.rows

    @property
    def place(self) -> str:
        """The path or URI, as `load` takes it, without a password."""
        return str(self._address)

    @property
    def items(self) -> pd.DataFrame:
        """The item table, by id. This fetches all of it."""
        rows = self._scanned("", self._column_fields())
        return table_of(rows, self.facts.columns)

    def rows(self, ids: Sequence[int] | Rows) -> pd.DataFrame:
        """See Gallery.rows."""
        wanted = np.asarray(ids, dtype=np.int64)
        table = table_of(self._rows(wanted, self._column_fields()), self.facts.columns)
        _check_present(wanted, table.index)
        return table.loc[wanted]

    @property
    def columns(self) -> list[str]:
        """The names of the item table's columns."""
        return list(self.facts.columns)

    def ids_of(self, items: pd.DataFrame, columns: Sequence[str]) -> Rows:
        """See Gallery.ids_of."""
        paths = list(dict.fromkeys(str(path) for path in items["path"]))
        found: list[Mapping[str, Any]] = []
        with translating_errors(self._address):
            for start in range(0, len(paths), 200):  # each perhaps with many boxes, and an answer holds so much
                condition = self._visible({"path": paths[start : start + 200]})
                fields = ["id", *self._column_fields()]
                found += self._client.query(self.facts.items, filter=condition, output_fields=fields)
        return first_equal(items, table_of(found, self.facts.columns).sort_index(), columns)

    def vectors(self, ids: Sequence[int] | Rows) -> Vectors:
        """See Gallery.vectors."""
        wanted = np.asarray(ids, dtype=np.int64)
        found = {row["id"]: row["embedding"] for row in self._rows(wanted, ["embedding"])}
        _check_present(wanted, found)
        return np.array([found[number] for number in wanted.tolist()], np.float32).reshape(-1, self.facts.dimension)

    def search(
        self,
        embeddings: Tensor | npt.NDArray[np.floating],
        k: int = 10,
        where: Where | None = None,
        *,
        exclude: Sequence[int] | Rows | None = None,
        rerank: bool = False,
    ) -> SearchResult:
        """See Gallery.search; Milvus proposes, and the similarities are computed anew, here, as for a folder.

        Raises:
            GalleryError: see Gallery.search; or k is beyond what Milvus gives in one answer (16,384 rows, 32 MiB).
        """
        queries = self._checked_queries(embeddings)
        spare = 0 if exclude is None else 1
        wanted = (max(k, RERANKED) if rerank else k) + spare
        if k < 1:
            raise GalleryError(f"k is {k}, but must be 1 or more")
        if wanted + _SPARE > self._most:
            raise GalleryError(f"k is {k}, but Milvus gives no more than about {self._most:,} vectors in an answer")
        own = np.full(len(queries), -1) if exclude is None else np.asarray(exclude, dtype=np.int64)
        if own.shape != (len(queries),):
            raise GalleryError(
                f"exclude has the shape {own.shape}, but there are {len(queries)} queries: one id for each"
            )
        with translating_errors(self._address):
            candidates = self._proposed(queries, wanted, self._visible(where))
        available = min((len(ids) for ids, _ in candidates), default=0)
        k = min(k, available - spare)
        if k < 1:
            found = "no item" if not available else "no other item"
            raise GalleryError(f"{found} of the gallery's {len(self):,} may be found" + describe(where))
        scores, best = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for place, ((ids, vectors), query) in enumerate(zip(candidates, queries, strict=True)):
            values, order = ranked(VectorRows(vectors), query, np.arange(len(ids)), wanted)
            kept = ids[order] != own[place]
            values, order = values[kept], order[kept]
            if rerank:
                again = reranked(query, vectors[order])
                values, order = values[again], order[again]
            scores[place], best[place] = values[:k], ids[order][:k]
        table = table_of(self._rows(np.unique(best), self._column_fields()), self.facts.columns)
        return SearchResult(scores, best, table)

    def add(self, embeddings: Tensor | npt.NDArray[np.floating], items: pd.DataFrame) -> Rows:
        """See Gallery.add; columns that are new are kept in the JSON field that they share."""
        vectors = self._checked_queries(embeddings)
        items = checked_items(items, len(vectors))
        columns = {**columns_of(items), **self.facts.columns}
        with translating_errors(self._address):
            stored = self._stored()
            if self._first_own is None:
                self._clear_pending(stored)
            ids = np.arange(stored.next_id, stored.next_id + len(items))
            rows = rows_of(ids, vectors, items, columns, self.facts.fields)
            first = stored.next_id if self._first_own is None else self._first_own
            others = [taken for taken in stored.pending if taken[0] != first]
            end, generation = stored.next_id + len(items), stored.generation + 1
            # Taken first, so that nobody counts them or gives their ids again, however this ends.
            taken = replace(stored, next_id=end, pending=[*others, [first, end]], generation=generation)
            _write_facts(self._client, self._address, taken)
            _insert(self._client, self.facts.items, rows)
            self.facts = replace(self.facts, rows=self.facts.rows + len(items), next_id=end, generation=generation)
            self.facts = replace(self.facts, pending=others, columns=columns)
            self._first_own = first
        return ids

    def remove(self, ids: Sequence[int] | Rows) -> None:
        """See Gallery.remove."""
        wanted = np.unique(np.asarray(ids, dtype=np.int64))
        there = {row["id"] for row in self._rows(wanted, ["id"])}
        _check_present(wanted, there)
        self._removed = np.union1d(self._removed, wanted)
        self.facts = replace(self.facts, rows=self.facts.rows - len(wanted))

    def matching(self, where: Where) -> Rows:
        """See Gallery.matching."""
        return np.array([row["id"] for row in self._scanned(self._visible(where), ["id"])], np.int64)

    def save(self, folder: str | Path | None = None) -> None:
        """See Gallery.save; a gallery in Milvus is saved where it is."""
        if folder is not None and str(Address.parse(folder)) != str(self._address):
            raise GalleryError(f"the gallery is in {self._address} and is saved there: call save without a place")
        if not len(self):
            raise GalleryError("all items are removed: a gallery holds at least one")
        with translating_errors(self._address):
            self._stored()
            lists = (
                np.array_split(self._removed, -(-len(self._removed) // _REMOVED_IN_A_ROW)) if len(self._removed) else []
            )
            for number, removed in enumerate(lists):
                _write_text(self._client, self._address, 1 + number, json.dumps(removed.tolist()))
            self.facts = replace(self.facts, removing=len(lists))
            self._publish_facts()
            self._first_own = None
            if lists:
                for start in range(0, len(self._removed), ANSWER_ROWS):
                    self._client.delete(self.facts.items, ids=self._removed[start : start + ANSWER_ROWS].tolist())
                self._removed = np.empty(0, np.int64)
                self.facts = replace(self.facts, removing=0)
                self._publish_facts()

    def _publish_facts(self) -> None:
        self.facts = replace(self.facts, generation=self.facts.generation + 1)
        _write_facts(self._client, self._address, self.facts)

    def _stored(self) -> MilvusFacts:
        """The facts as they are in Milvus, if nobody has changed them since."""
        stored = _read_facts(self._client, self._address)
        if stored is None or stored.generation != self.facts.generation:
            raise OverwriteError(
                f"{self._address} was changed since it was loaded: load it again, and repeat the change"
            )
        return stored

    def _clear_pending(self, stored: MilvusFacts) -> None:
        """Delete what stopped writers have left; their ids stay taken, for one may turn out to be alive."""
        for first, end in stored.pending:
            self._client.delete(self.facts.items, filter=f"id >= {first} and id < {end}")

    def _visible(self, where: Where | None = None) -> str:
        """The expression for the items that count, and pass the filter."""
        parts = [f"id < {self.facts.next_id}"]
        parts += [f"not (id >= {first} and id < {end})" for first, end in self.facts.pending]
        if len(self._removed):
            parts.append(f"not ({ids_in(self._removed)})")
        if where:
            parts.append(expression(where, self.facts.columns, self.facts.fields))
        return " and ".join(parts)

    @property
    def _most(self) -> int:
        """Rows with their vectors that an answer may hold."""
        return min(ANSWER_ROWS, 2 * MESSAGE_BYTES // (4 * self.facts.dimension))

    def _column_fields(self) -> list[str]:
        return [*self.facts.fields, OTHERS]

    def _scanned(self, condition: str, output: Sequence[str]) -> list[Mapping[str, Any]]:
        """All rows under a condition, by id; asked for in ranges of ids that fit into an answer."""
        rows: list[Mapping[str, Any]] = []
        with translating_errors(self._address):
            for start in range(0, self.facts.next_id, ANSWER_ROWS):
                part = f"id >= {start} and id < {start + ANSWER_ROWS} and {condition or self._visible()}"
                found = self._client.query(self.facts.items, filter=part, output_fields=["id", *output])
                rows += sorted(found, key=lambda row: int(row["id"]))
        return rows

    def _rows(self, ids: Rows, output: Sequence[str]) -> list[Mapping[str, Any]]:
        """The rows of those of the ids that count, in any order."""
        height = min(ANSWER_ROWS, max(1, MESSAGE_BYTES // (4 * self.facts.dimension)))
        rows: list[Mapping[str, Any]] = []
        with translating_errors(self._address):
            for start in range(0, len(ids), height):
                condition = f"{ids_in(ids[start : start + height])} and {self._visible()}"
                rows += self._client.query(self.facts.items, filter=condition, output_fields=["id", *output])
        return rows

    def _proposed(self, queries: Vectors, wanted: int, condition: str) -> list[tuple[Rows, Vectors]]:
        """For each query (q, D) the ids, rising, and vectors of more than the `wanted` nearest, or of all there are."""
        limits = {"exact": wanted + _SPARE, "hnsw": 2 * wanted, "ivfpq": max(100, REFINED * wanted)}
        found = [_by_id([], self.facts.dimension)] * len(queries)
        todo, limit = np.arange(len(queries)), min(limits[self.facts.kind], self._most)
        while len(todo):
            again = []
            for place, hits in zip(todo.tolist(), self._hits(queries[todo], limit, condition), strict=True):
                found[place] = _by_id(hits, self.facts.dimension)
                if self._cut_off(hits, wanted, limit):
                    again.append(place)
            # Of equal items the first ones are to be found, so all of them have to be seen.
            todo, limit = np.array(again, np.int64), min(2 * limit, self._most)
        if self.facts.kind != "exact" and min(len(ids) for ids, _ in found) < min(wanted, len(self)):
            self._complete(found, wanted, condition)
        return found

    def _cut_off(self, hits: Sequence[Any], wanted: int, limit: int) -> bool:
        """Whether items may be missing that are as near as the last that is wanted, up to rounding."""
        if self.facts.kind != "exact" or len(hits) < limit or limit >= self._most:
            return False
        return bool(hits[-1]["distance"] > hits[wanted - 1]["distance"] - 2.0**-22 * self.facts.dimension)

    def _hits(self, queries: Vectors, limit: int, condition: str) -> Iterator[Sequence[Any]]:
        kind = self.facts.kind
        parameters = {"exact": {}, "hnsw": {"ef": max(HNSW_SEARCH, limit)}, "ivfpq": {"nprobe": PROBED}}[kind]
        height = max(1, MESSAGE_BYTES // (4 * self.facts.dimension * limit))
        for start in range(0, len(queries), height):
            yield from self._client.search(
                self.facts.items,
                queries[start : start + height],
                anns_field="embedding",
                limit=limit,
                filter=condition,
                output_fields=["embedding"],
                search_params={"metric_type": "IP", "params": parameters},
            )

    def _complete(self, found: list[tuple[Rows, Vectors]], wanted: int, condition: str) -> None:
        """Where an index found too few behind a filter: all that passes it, if an answer can hold that."""
        rows = self._client.query(self.facts.items, filter=condition, output_fields=["id"], limit=ANSWER_ROWS)
        if len(rows) == ANSWER_ROWS:
            return
        ids = np.sort(np.array([row["id"] for row in rows], np.int64))
        everything = ids, self.vectors(ids)
        for place, (some, _) in enumerate(found):
            if len(some) < min(wanted, len(ids)):
                found[place] = everything

    def _build_index(self) -> None:
        """Build the index; measure what an approximate one loses while the collection can still be searched exactly."""
        kind, count = self.facts.kind, self.facts.rows
        if kind == "exact":
            return
        k = min(RECALL_AT, count - 1)
        sample = np.random.default_rng(0).permutation(count)[:RECALL_SAMPLE]
        queries = self.vectors(sample)
        self.facts = replace(self.facts, kind="exact")
        truth = self.search(queries, k, exclude=sample).ids if k else None
        self.facts = replace(self.facts, kind=kind)
        names = {"hnsw": "HNSW", "ivfpq": "IVF_PQ"}
        set_index(self._client, self.facts.items, names[kind], _index_parameters(kind, count, self.facts.dimension))
        if truth is not None:
            found = self.search(queries, k, exclude=sample).ids
            self.facts = replace(self.facts, recall=recall_against_exact(found, truth))


def _check_present(ids: Rows, found: Container[int]) -> None:
    for number in ids.tolist():
        if number not in found:
            raise GalleryError(f"the gallery has no item {number}: it was removed, or never was")


def _by_id(hits: Sequence[Any], dimension: int) -> tuple[Rows, Vectors]:
    """Ids, rising, and vectors of what a search of Milvus has found."""
    ids = np.array([hit["id"] for hit in hits], np.int64)
    vectors = np.array([hit["entity"]["embedding"] for hit in hits], np.float32).reshape(-1, dimension)
    order = np.argsort(ids)
    return ids[order], vectors[order]


class _Staging:
    """The collection of a build, until it is a gallery; what is in it is noted on this machine, block by block."""

    def __init__(self, client: Any, address: Address, dimension: int) -> None:
        self._client = client
        self._address = address
        self._dimension = dimension
        self._notes = address.work("building") / "blocks.json"
        noted = json.loads(self._notes.read_text()) if self._notes.is_file() else {}
        self.collection: str = noted.get("collection", "")
        there = bool(self.collection) and client.has_collection(self.collection)
        # After each block, a digest of all rows so far.
        self._inserted: list[str] = noted["blocks"] if there else []
        self._going_on = True  # until the first block that is inserted
        self.columns: dict[str, ColumnKind] = {}
        self.rows = 0

    def fill(self, blocks: Iterable[Block], total: int | None) -> None:
        """Insert the blocks, but those that a stopped build has inserted."""
        digest = hashlib.sha256()
        done: list[str] = []
        with progress_bar(disable=total is not None and total < ANSWER_ROWS) as bar:
            task = bar.add_task("inserting", total=total, note="")
            for given, items in blocks:
                vectors = unit_vectors(given)
                checked_items(items, len(vectors))
                if not done:
                    self.columns = columns_of(items)
                    digest.update(json.dumps([self._dimension, self.columns]).encode())
                digest.update(vectors.tobytes() + items.to_csv().encode(errors="surrogatepass"))
                done.append(digest.hexdigest())
                if self._inserted[: len(done)] != done:
                    self._insert(vectors, items, done)
                self.rows += len(items)
                bar.advance(task, len(items))

    def _insert(self, vectors: Vectors, items: pd.DataFrame, done: Sequence[str]) -> None:
        if len(done) == 1:
            self.discard()
            self.collection = f"{self._address.name}_{uuid.uuid4().hex[:8]}"
            self._note([])
            create_collection(self._client, self.collection, self._dimension, self.columns)
        elif self._going_on:  # a block may be there in part, or be another than it was
            self._client.delete(self.collection, filter=f"id >= {self.rows}")
        self._going_on = False
        ids = np.arange(self.rows, self.rows + len(items))
        _insert(self._client, self.collection, rows_of(ids, vectors, items, self.columns, fields_of(self.columns)))
        self._note(done)

    def _note(self, done: Sequence[str]) -> None:
        self._inserted = list(done)
        with atomic_write(self._notes) as path:
            path.write_text(json.dumps({"collection": self.collection, "blocks": self._inserted}))

    def discard(self) -> None:
        """Drop the collection."""
        if self.collection:
            self._client.drop_collection(self.collection)


def _check_kind(client: Any, address: Address, kind: Kind) -> None:
    if kind == "ivfpq" and str(client.get_server_version()).startswith("milvus_lite"):
        raise GalleryError(f"{address} is of milvus-lite, which has no ivfpq: choose exact or hnsw, or a Milvus server")


def _index_parameters(kind: Kind, count: int, dimension: int) -> dict[str, int]:
    if kind == "hnsw":
        return {"M": HNSW_LINKS, "efConstruction": HNSW_BUILD}
    return {"nlist": min(inverted_lists(count), 65_536), "m": product_codes(dimension), "nbits": 8}


def _insert(client: Any, collection: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows of at most a few thousand characters each, so many at a time as go into a message."""
    height = max(1, min(2000, MESSAGE_BYTES // (4 * len(rows[0]["embedding"])))) if rows else 1
    for start in range(0, len(rows), height):
        client.insert(collection, rows[start : start + height])


def _drop_others(client: Any, address: Address, before: MilvusFacts | None, collection: str) -> None:
    """Drop the collection that was replaced; in milvus-lite, which is ours alone, those of lost builds too."""
    own = re.compile(rf"{address.name}_[0-9a-f]{{8}}")
    for name in client.list_collections():
        lost = address.local is not None and own.fullmatch(name)
        if name != collection and (lost or (before is not None and name == before.items)):
            client.drop_collection(name)


def _facts_collection(address: Address) -> str:
    return f"{address.name}_facts"


def _read_facts(client: Any, address: Address) -> MilvusFacts | None:
    """None where there is no such gallery."""
    text = _read_text(client, address, 0)
    return None if text is None else parsed_facts(text, str(address), MilvusFacts)


def _write_facts(client: Any, address: Address, facts: MilvusFacts) -> None:
    _write_text(client, address, 0, facts_text(facts))


def _read_text(client: Any, address: Address, row: int) -> str | None:
    name = _facts_collection(address)
    if not client.has_collection(name):
        return None
    client.load_collection(name)
    found = client.query(name, filter=f"id == {row}", output_fields=["text"])
    return str(found[0]["text"]) if found else None


def _write_text(client: Any, address: Address, row: int, text: str) -> None:
    name = _facts_collection(address)
    columns: dict[str, ColumnKind] = {"text": "str"}
    if not client.has_collection(name):
        create_collection(client, name, 2, columns)  # Milvus knows no collection without vectors
    table = pd.DataFrame({"text": [text]})
    rows = rows_of(np.array([row]), np.array([[0, 1]], np.float32), table, columns, ["text"])
    client.upsert(name, rows)
