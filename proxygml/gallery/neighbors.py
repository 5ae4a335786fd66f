"""Nearest neighbours by inner product: exact, or by a FAISS index that finds most of them faster.

Both only propose candidates. `ranked` computes the similarities again, in one way for all candidates, so that a score
never depends on the kind of index, the batch or the item's row, and equal scores rank in the order of the gallery.
"""

import math
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from proxygml.arrays import Rows, Vectors
from proxygml.console import progress_bar
from proxygml.errors import GalleryError
from proxygml.files import atomic_write, naming
from proxygml.gallery.folder.index_file import read_faiss
from proxygml.gallery.vectors import VectorRows

Kind = Literal["exact", "hnsw", "ivfpq"]

HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 100, 64  # M, efConstruction, efSearch: see benchmarks/gallery.py
PROBED = 32  # of IVF's lists, for each query
SMALLEST_IVFPQ = 1000  # items below which there is too little to learn 256 codewords from
REFINED = 10  # candidates an approximate index proposes for each result, at least 100 of them

_BLOCK_BYTES = 64 * 2**20
_SAMPLE_BYTES = 256 * 2**20  # of vectors from which an IVF-PQ index learns
_ADDED_AT_A_TIME = 4096
_CHECKPOINT_SECONDS = 120


def exact_candidates(
    vectors: VectorRows, queries: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None, first: int = 0
) -> list[Rows]:
    """For each query rows that are sure to hold its k nearest.

    Args:
        vectors: n, of length 1.
        queries: (q, D), of length 1.
        k: at most the number of allowed rows.
        allowed: (n,), the rows that may be found; None for all.
        first: the row from which on to look.
    """
    rows: Rows | None = None
    if allowed is not None and 4 * np.count_nonzero(allowed[first:]) < len(allowed) - first:
        rows = first + np.flatnonzero(allowed[first:])  # few rows: fetching them costs less than comparing all
    count = len(vectors) - first if rows is None else len(rows)
    height = max(1, _BLOCK_BYTES // (4 * max(count, 1)))
    found: list[Rows] = []
    for start in range(0, len(queries), height):
        similarity = _products(vectors, queries[start : start + height], rows, first)
        if allowed is not None and rows is None:
            similarity[:, ~allowed[first:]] = -np.inf
        least = torch.from_numpy(similarity).topk(k, dim=1, sorted=False).values.amin(dim=1).numpy()
        # Rounding may have put a row that belongs in just below the k-th: the bound of a float32 inner product.
        slack = 2.0**-22 * vectors.size
        near = [np.flatnonzero(row >= bound - slack) for row, bound in zip(similarity, least, strict=True)]
        found += [first + places if rows is None else rows[places] for places in near]
    return found


def _products(vectors: VectorRows, queries: Vectors, rows: Rows | None, first: int) -> Vectors:
    """The inner products (q, n) of queries (q, D) and these rows, or all from `first` on; a block of rows at a time."""
    count = len(vectors) - first if rows is None else len(rows)
    height = max(1, _BLOCK_BYTES // (4 * vectors.size))
    result = np.empty((len(queries), count), np.float32)
    for start in range(0, count, height):
        end = min(start + height, count)
        part = vectors.part(first + start, first + end) if rows is None else vectors.take(rows[start:end])
        # One query as a plain vector: BLAS then reads the gallery once, at the memory's speed.
        result[:, start:end] = part @ queries[0] if len(queries) == 1 else queries @ part.T
    return result


def ranked(vectors: VectorRows, query: Vectors, rows: Rows, k: int) -> tuple[Vectors, Rows]:
    """The similarities of the k best candidates, and which they are, best first, equal ones in the order of the rows.

    Args:
        vectors: n of them.
        query: (D,).
        rows: (c,), rising.
        k: how many; fewer where there are fewer candidates.

    Returns:
        float32 (k,) in -1..1, and int64 (k,), places in `rows`.
    """
    scores = np.concatenate([_similarity(vectors.take(part), query) for part in _parts(rows)])
    order = np.argsort(-scores, kind="stable")[:k]
    return scores[order], order


def _parts(rows: Rows) -> Iterator[Rows]:
    for start in range(0, max(len(rows), 1), _ADDED_AT_A_TIME):
        yield rows[start : start + _ADDED_AT_A_TIME]


def _similarity(vectors: Vectors, query: Vectors) -> Vectors:
    """Summed in float64 row by row: equal vectors are equally similar, which a matrix product does not promise."""
    similarity = (vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=1)
    clipped: Vectors = similarity.clip(-1, 1).astype(np.float32)
    return clipped


class ApproximateIndex:
    """A FAISS index over the first rows of a gallery.

    Args:
        index: an IndexHNSWFlat or IndexIVFPQ of inner products.
    """

    def __init__(self, index: Any) -> None:
        self.index = index

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @classmethod
    def build(
        cls, kind: Kind, vectors: VectorRows, seed: int = 0, checkpoint: Path | None = None
    ) -> "ApproximateIndex":
        """Index all the vectors, with a progress bar.

        HNSW: Malkov and Yashunin, TPAMI 2020. IVF-PQ: Jegou et al., TPAMI 2011, learnt from a sample.

        Args:
            kind: hnsw or ivfpq.
            vectors: n of them.
            seed: of the sample and the k-means.
            checkpoint: a file that holds what is done, written every two minutes; a file that is there is continued.

        Raises:
            GalleryError: an ivfpq index of too few vectors.
        """
        faiss = _faiss()
        if checkpoint is not None and checkpoint.is_file():
            made = cls.read(checkpoint, kind, vectors.size, len(vectors))
        elif kind == "hnsw":
            index = faiss.IndexHNSWFlat(vectors.size, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = HNSW_BUILD
            made = cls(index)
        else:
            made = cls(_trained_ivfpq(vectors, seed))
        made.add(vectors, checkpoint)
        return made

    def add(self, vectors: VectorRows, checkpoint: Path | None = None) -> None:
        """Index those of the vectors that follow what is indexed already."""
        kept = 0.0  # so the first block writes a checkpoint: learning the codewords took long
        with progress_bar(disable=len(vectors) - len(self) < _ADDED_AT_A_TIME) as bar:
            task = bar.add_task("indexing", total=len(vectors), completed=len(self), note="")
            while (start := len(self)) < len(vectors):
                part = np.ascontiguousarray(vectors.part(start, min(start + _ADDED_AT_A_TIME, len(vectors))))
                self.index.add(part)
                bar.advance(task, len(part))
                if checkpoint is not None and time.monotonic() - kept > _CHECKPOINT_SECONDS:
                    with atomic_write(checkpoint) as path:
                        self.write(path)
                    kept = time.monotonic()

    def candidates(self, queries: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None) -> list[Rows]:
        """For each query (q, D) the rows, rising, that the index holds nearest: several times k, or what it found."""
        faiss = _faiss()
        count = min(max(100, REFINED * k) if self._is_ivf() else 2 * k, len(self))
        bits = None if allowed is None else np.packbits(allowed[: len(self)], bitorder="little")
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)
        if self._is_ivf():
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=min(PROBED, self.index.nlist))
        else:
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(HNSW_SEARCH, count))
        found = self.index.search(queries, count, params=parameters)[1]
        return [np.sort(row[row >= 0]) for row in found]

    def _is_ivf(self) -> bool:
        return hasattr(self.index, "nlist")

    def write(self, path: Path) -> None:
        """Write FAISS's own file.

        Raises:
            OSError: it cannot be written; also where the disk is full.
        """
        faiss = _faiss()
        with naming(path), path.open("wb") as file:

            def write(data: bytes) -> None:  # FAISS's own errors do not say what the system said
                file.write(data)

            faiss.write_index(self.index, faiss.PyCallbackIOWriter(write))

    @classmethod
    def read(cls, path: Path, kind: str, dimension: int, most: int) -> "ApproximateIndex":
        """Read what `write` wrote; see index_file.read_faiss."""
        return cls(read_faiss(path, kind, dimension, most))


def candidate_rows(
    vectors: VectorRows,
    index: ApproximateIndex | None,
    queries: Vectors,
    k: int,
    allowed: npt.NDArray[np.bool_] | None,
) -> list[Rows]:
    """For each query rows, rising, among which its k nearest are, or all where fewer may be found.

    Args:
        vectors: n, of length 1.
        index: over the first of the vectors; those after them are searched exactly. None searches all of them exactly.
        queries: (q, D), of length 1.
        k: 1 or more.
        allowed: bool (n,), the rows that may be found; None for all.
    """
    count = len(vectors) if allowed is None else int(np.count_nonzero(allowed))
    k = min(k, count)
    if not count:
        return [np.empty(0, np.int64)] * len(queries)
    # Where few items may be found, an approximate index would spend its search on those that may not.
    if index is None or 20 * count < len(vectors):
        return exact_candidates(vectors, queries, k, allowed)
    found, first = index.candidates(queries, k, allowed), len(index)
    tail = len(vectors) - first if allowed is None else int(np.count_nonzero(allowed[first:]))
    if tail:
        newest = exact_candidates(vectors, queries, min(k, tail), allowed, first)
        found = [np.concatenate([rows, more]) for rows, more in zip(found, newest, strict=True)]
    for number, rows in enumerate(found):
        if len(rows) < k:
            found[number] = exact_candidates(vectors, queries[number : number + 1], k, allowed)[0]
    return found


def _faiss() -> Any:
    """FAISS, which is slow to load; untyped, since its type hints lack what is used here."""
    return import_module("faiss")


def _trained_ivfpq(vectors: VectorRows, seed: int) -> Any:
    faiss = _faiss()
    count, size = len(vectors), vectors.size
    check_enough_for_ivfpq(count)
    lists = inverted_lists(count)
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(size), size, lists, product_codes(size), 8, faiss.METRIC_INNER_PRODUCT)
    for clustering in (index.cp, index.pq.cp):
        clustering.seed = seed
        clustering.min_points_per_centroid = 1  # else FAISS writes warnings that a user can do nothing about
    most = min(max(64 * lists, 65_536), _SAMPLE_BYTES // (4 * size))
    sample = np.random.default_rng(seed).permutation(count)[:most]
    index.train(np.ascontiguousarray(vectors.take(np.sort(sample))))
    return index


def check_enough_for_ivfpq(count: int) -> None:
    """Raise GalleryError where an IVF-PQ index cannot be made of so few items."""
    if count < SMALLEST_IVFPQ:
        raise GalleryError(
            f"an ivfpq index needs at least {SMALLEST_IVFPQ:,} items, but there are {count:,}: choose the kind exact"
        )


def inverted_lists(count: int) -> int:
    """How many lists an IVF index of so many vectors has."""
    return max(1, min(round(4 * math.sqrt(count)), count // 39))


def product_codes(size: int) -> int:
    """How many codes stand for a vector of that size: the most that divide it into parts of 4 or more."""
    return max(divisor for divisor in range(1, size // 4 + 1) if size % divisor == 0) if size >= 4 else size


def recall_against_exact(found: Rows, exact: Rows) -> float:
    """The share, 0..1, of the exact neighbours (q, k) that are among the found ones (q, k)."""
    hits = sum(len(np.intersect1d(one, other)) for one, other in zip(found, exact, strict=True))
    return hits / exact.size
