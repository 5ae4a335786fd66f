"""Reading items from a collection in Milvus, in answers that are no larger than Milvus allows."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from proxygml.arrays import Rows, Vectors
from proxygml.errors import GalleryError, counted
from proxygml.gallery.index_kinds import HNSW_SEARCH, PROBED, REFINED
from proxygml.gallery.kinds import CODED, Kind
from proxygml.gallery.milvus.connection import MESSAGE_BYTES, Connection
from proxygml.gallery.milvus.expressions import ids_between, ids_in

ANSWER_ROWS = 16_384
"""Rows that Milvus returns at most in one answer."""

_SPARE = 10  # candidates beyond those wanted, so that ties with the last one are noticed
_MORE = 4
"""Times as many candidates from lists of codes as in a folder: where some rows may not be found, Milvus 2.3.5 does not
return the nearest ones (IVF_PQ, a filter that lets a third pass: 100 candidates held 69% of the 7 nearest, 400 held
98%)."""

_AT_A_TIME = 4  # answers that are waited for together: each waits until Milvus has seen all that was written

MilvusRows = list[Mapping[str, Any]]


class Hits(NamedTuple):
    """Items that a search of Milvus has found."""

    ids: Rows
    """int64 (c,), rising."""
    vectors: Vectors
    """float32 (c, D)."""
    scores: Vectors | None
    """float32 (c,), the similarities that the index says; None where Milvus was not asked for any."""


@dataclass(frozen=True)
class CollectionReader:
    """Reads the items of one collection that meet a condition, an expression of Milvus."""

    connection: Connection
    collection: str
    dimension: int

    @property
    def largest_answer(self) -> int:
        """How many rows with their vectors one answer may hold."""
        return min(ANSWER_ROWS, 2 * MESSAGE_BYTES // (4 * self.dimension))

    def query(self, condition: str, fields: Sequence[str], **options: Any) -> MilvusRows:
        """The rows under a condition that fit into one answer: `id` and these fields."""
        return self.connection.query(self.collection, condition, ["id", *fields], **options)

    def scan(self, condition: str, last: int, fields: Sequence[str]) -> MilvusRows:
        """All rows under a condition, ordered by id; `last` is above every id."""
        parts = [f"{ids_between(start, start + ANSWER_ROWS)} and {condition}" for start in range(0, last, ANSWER_ROWS)]
        return [row for rows in self._answers(parts, fields) for row in sorted(rows, key=lambda row: int(row["id"]))]

    def rows(self, ids: Rows, condition: str, fields: Sequence[str], **options: Any) -> MilvusRows:
        """The rows of those of the ids that meet the condition, in any order."""
        height = min(ANSWER_ROWS, max(1, MESSAGE_BYTES // (4 * self.dimension)))
        parts = [f"{ids_in(ids[start : start + height])} and {condition}" for start in range(0, len(ids), height)]
        return [row for rows in self._answers(parts, fields, **options) for row in rows]

    def _answers(self, conditions: Sequence[str], fields: Sequence[str], **options: Any) -> Iterator[MilvusRows]:
        """The rows under each condition."""
        if len(conditions) < 2:
            yield from (self.query(condition, fields, **options) for condition in conditions)
            return
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            for start in range(0, len(conditions), _AT_A_TIME):  # not all at once, which the memory would have to hold
                yield from pool.map(
                    lambda one: self.query(one, fields, **options), conditions[start : start + _AT_A_TIME]
                )

    def vectors(self, ids: Rows, condition: str) -> Vectors:
        """The vectors, float32 (n, D), of these items.

        Raises:
            GalleryError: one of them does not meet the condition.
        """
        found = {row["id"]: row["embedding"] for row in self.rows(ids, condition, ["embedding"])}
        check_present(ids, found)
        return np.array([found[number] for number in ids.tolist()], np.float32).reshape(-1, self.dimension)

    def nearest(self, queries: Vectors, wanted: int, condition: str, kind: Kind, refine: int = REFINED) -> list[Hits]:
        """For each query items among which its `wanted` nearest are.

        Args:
            queries: (q, D), of length 1.
            wanted: how many at least, where there are so many.
            condition: which items may be found.
            kind: of the collection's index.
            refine: of codes, how many candidates for each result; 0: about as many as are wanted.

        Raises:
            GalleryError: one answer cannot hold so many.
        """
        if wanted + _SPARE > self.largest_answer:
            raise GalleryError(
                f"k needs {counted(wanted, 'candidate')}, but Milvus gives no more than about "
                f"{counted(self.largest_answer, 'vector')} in an answer: choose a smaller k"
            )
        limit = wanted + _SPARE if kind == "exact" else 2 * wanted
        if kind in CODED:
            limit = _MORE * (max(100, refine * wanted) if refine else wanted)
        found = [_by_id([], self.dimension)] * len(queries)
        todo, limit = np.arange(len(queries)), min(limit, self.largest_answer)
        while len(todo):
            again = []
            answers = self._hits(queries[todo], limit, condition, kind)
            for number, hits in zip(todo.tolist(), answers, strict=True):
                found[number] = _by_id(hits, self.dimension)
                if kind == "exact" and self._cuts_ties(hits, wanted, limit):
                    again.append(number)
            # Among equal items the first are returned, so all of them have to be seen.
            todo, limit = np.array(again, np.int64), min(2 * limit, self.largest_answer)
        if kind != "exact" and min((len(some.ids) for some in found), default=wanted) < wanted:
            self._complete(found, wanted, condition)
        return found

    def _cuts_ties(self, hits: Sequence[Any], wanted: int, limit: int) -> bool:
        """Whether items may be missing that are as near as the last wanted one, up to rounding."""
        if len(hits) < limit or limit >= self.largest_answer:
            return False
        return bool(hits[-1]["distance"] > hits[wanted - 1]["distance"] - 2.0**-22 * self.dimension)

    def _hits(self, queries: Vectors, limit: int, condition: str, kind: Kind) -> Iterator[Sequence[Any]]:
        parameters = {"nprobe": PROBED} if kind in CODED else {}
        if kind == "hnsw":
            parameters = {"ef": max(HNSW_SEARCH, limit)}
        height = max(1, MESSAGE_BYTES // (4 * self.dimension * limit))
        for start in range(0, len(queries), height):
            part = queries[start : start + height]
            yield from self.connection.search(self.collection, part, condition, limit, parameters)

    def _complete(self, found: list[Hits], wanted: int, condition: str) -> None:
        """Where an index found too few items behind a filter, take all that pass it, if one answer can hold them."""
        rows = self.query(condition, [], limit=ANSWER_ROWS)
        if len(rows) == ANSWER_ROWS:
            return
        ids = np.array([row["id"] for row in rows], np.int64)
        there = self.rows(ids, condition, ["embedding"])  # some may have been removed meanwhile
        everything = _by_id([{"id": row["id"], "entity": row} for row in there], self.dimension)
        for number, some in enumerate(found):
            if len(some.ids) < min(wanted, len(there)):
                found[number] = everything


def check_present(ids: Rows, found: Mapping[int, Any] | set[int]) -> None:
    """Raise GalleryError where an item was not found."""
    for number in ids.tolist():
        if number not in found:
            raise GalleryError(f"the gallery has no item {number}: it was removed, or never was")


def _by_id(hits: Sequence[Any], dimension: int) -> Hits:
    """What a search of Milvus has found, by id."""
    ids = np.array([hit["id"] for hit in hits], np.int64)
    vectors = np.array([hit["entity"]["embedding"] for hit in hits], np.float32).reshape(-1, dimension)
    order = np.argsort(ids)
    if not all("distance" in hit for hit in hits):
        return Hits(ids[order], vectors[order], None)
    return Hits(ids[order], vectors[order], np.array([hit["distance"] for hit in hits], np.float32)[order])
