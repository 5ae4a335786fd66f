"""Nearest neighbours by inner product: exact, or by a FAISS index that finds most of them faster.

Both only propose candidates. `ranked` computes their similarities anew, in one way for all, so that a score never
depends on the kind of index, on the batch or on an item's place, and equal scores rank in the order of the gallery.
"""

import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from proxygml.console import progress_bar
from proxygml.errors import GalleryError

Kind = Literal["exact", "hnsw", "ivfpq"]
Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 100, 64  # M, efConstruction, efSearch: see benchmarks/gallery.py
PROBED = 32  # of IVF's lists, for each query
SMALLEST_IVFPQ = 1000  # items below which there is too little to learn 256 codewords from
REFINED = 10  # candidates an approximate index proposes for each result, at least 100 of them

_BLOCK_BYTES = 64 * 2**20
_ADDED_AT_A_TIME = 4096


def exact_candidates(vectors: Vectors, queries: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None) -> list[Rows]:
    """For each query rows that are sure to hold its k nearest.

    Args:
        vectors: (n, D), of length 1.
        queries: (q, D), of length 1.
        k: at most the number of allowed rows.
        allowed: (n,), the rows that may be found; None for all.
    """
    if allowed is not None and 4 * np.count_nonzero(allowed) < len(vectors):
        rows = np.flatnonzero(allowed)  # few: to fetch them costs less than to compare all
        return [rows[places] for places in exact_candidates(vectors[rows], queries, k, None)]
    height = max(1, _BLOCK_BYTES // (4 * max(len(vectors), 1)))
    found: list[Rows] = []
    for start in range(0, len(queries), height):
        block = queries[start : start + height]
        # One query as a plain vector: BLAS then reads the gallery once, at the memory's speed.
        similarity = (vectors @ block[0])[None] if len(block) == 1 else block @ vectors.T
        if allowed is not None:
            similarity[:, ~allowed] = -np.inf
        least = torch.from_numpy(similarity).topk(k, dim=1, sorted=False).values.amin(dim=1).numpy()
        # Rounding may have put a row that belongs in just below the k-th: the bound of a float32 inner product.
        slack = 2.0**-22 * vectors.shape[1]
        found += [np.flatnonzero(row >= bound - slack) for row, bound in zip(similarity, least, strict=True)]
    return found


def ranked(vectors: Vectors, query: Vectors, rows: Rows, k: int) -> tuple[Vectors, Rows]:
    """The k best of the candidate rows and their similarities, best first, equal ones in the order of the rows.

    Args:
        vectors: (n, D).
        query: (D,).
        rows: (c,), rising.
        k: how many; fewer where there are fewer candidates.

    Returns:
        float32 (k,) in -1..1, int64 (k,).
    """
    scores = np.concatenate([_similarity(vectors[part], query) for part in _parts(rows)])
    order = np.argsort(-scores, kind="stable")[:k]
    return scores[order], rows[order]


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
    def build(cls, kind: Kind, vectors: Vectors, seed: int = 0) -> "ApproximateIndex":
        """Index all the vectors (n, D), with a progress bar.

        HNSW: Malkov and Yashunin, TPAMI 2020. IVF-PQ: Jegou et al., TPAMI 2011, learnt from a sample.

        Raises:
            GalleryError: an ivfpq index of too few vectors.
        """
        faiss = _faiss()
        size = vectors.shape[1]
        if kind == "hnsw":
            index = faiss.IndexHNSWFlat(size, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = HNSW_BUILD
        else:
            index = _trained_ivfpq(vectors, seed)
        made = cls(index)
        made.add(vectors)
        return made

    def add(self, vectors: Vectors) -> None:
        """Index more vectors (m, D), as the rows that follow."""
        with progress_bar(disable=len(vectors) < _ADDED_AT_A_TIME) as bar:
            task = bar.add_task("indexing", total=len(vectors), note="")
            for start in range(0, len(vectors), _ADDED_AT_A_TIME):
                part = np.ascontiguousarray(vectors[start : start + _ADDED_AT_A_TIME])
                self.index.add(part)
                bar.advance(task, len(part))

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
        """Write FAISS's own file."""
        faiss = _faiss()
        faiss.write_index(self.index, str(path))

    @classmethod
    def read(cls, path: Path) -> "ApproximateIndex":
        """Read what `write` wrote.

        Raises:
            GalleryError: it is no such file.
        """
        faiss = _faiss()
        try:
            return cls(faiss.read_index(str(path)))
        except RuntimeError as error:
            raise GalleryError(f"{path} cannot be read as a FAISS index: build the gallery again") from error


def _faiss() -> Any:
    """FAISS, which is slow to load; untyped, since its type hints lack what is used here."""
    return import_module("faiss")


def _trained_ivfpq(vectors: Vectors, seed: int) -> Any:
    faiss = _faiss()
    count, size = vectors.shape
    if count < SMALLEST_IVFPQ:
        raise GalleryError(
            f"an ivfpq index needs at least {SMALLEST_IVFPQ:,} items, but there are {count:,}: choose the kind exact"
        )
    lists = inverted_lists(count)
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(size), size, lists, product_codes(size), 8, faiss.METRIC_INNER_PRODUCT)
    for clustering in (index.cp, index.pq.cp):
        clustering.seed = seed
        clustering.min_points_per_centroid = 1  # else FAISS writes warnings that a user can do nothing about
    sample = np.random.default_rng(seed).permutation(count)[: max(64 * lists, 65_536)]
    index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
    return index


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
