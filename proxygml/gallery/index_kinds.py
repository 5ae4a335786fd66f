"""The kinds of FAISS indexes: how an empty one is made for given vectors, and how it is searched.

A new kind is a function that makes its index, and a line in each table here and in folder/index_file.py.
"""

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from proxygml.arrays import Vectors
from proxygml.gallery.kinds import CODED, IN_LISTS, Kind, check_enough
from proxygml.gallery.vectors import VectorRows

HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 100, 64  # M, efConstruction, efSearch: see benchmarks/gallery.py
PROBED = 32  # of IVF's lists, for each query
REFINED = 10  # candidates an index of codes proposes for each result, at least 100 of them
QUERY_BITS = 8  # of each number of a query that is compared with bits

_SAMPLE_BYTES = 256 * 2**20  # of vectors from which codes are learnt
_ROWS_AT_A_TIME = 16_384


def empty_index(kind: Kind, vectors: VectorRows, seed: int) -> Any:
    """A FAISS index of that kind for these vectors: trained on a sample of them, and without any.

    HNSW: Malkov and Yashunin, TPAMI 2020. IVF-PQ: Jegou et al., TPAMI 2011, behind the rotation of
    `balanced_directions`. int8: a byte for each number, between its
    least and its largest value in the sample. binary: RaBitQ, Gao and Long, SIGMOD 2024: the sign of each number after
    a random rotation, and two numbers by which the estimate of the similarity has no bias.

    Args:
        kind: not exact.
        vectors: n of them.
        seed: of the sample, the k-means and the rotation.

    Raises:
        GalleryError: too few vectors, or too small ones.
    """
    check_enough(kind, len(vectors), vectors.size)
    index = _MAKERS[kind](len(vectors), vectors.size, seed)
    if kind in CODED:
        most = max(65_536, 64 * inverted_lists(len(vectors)) if kind in IN_LISTS else 0)
        most = min(most, _SAMPLE_BYTES // (4 * vectors.size))
        sample = np.random.default_rng(seed).permutation(len(vectors))[:most]
        part = np.ascontiguousarray(vectors.take(np.sort(sample)))
        if kind == "ivfpq":
            _turn(index, balanced_directions(part, product_codes(vectors.size)))
        index.train(part)
    return index


def search_parameters(kind: Kind, index: Any, selector: Any, count: int) -> Any:
    """What FAISS needs to find `count` items of an index among those that a selector lets through.

    The caller keeps the selector, which FAISS only points to.
    """
    return _PARAMETERS[kind](index, selector, count)


def _hnsw(count: int, size: int, seed: int) -> Any:
    index = faiss().IndexHNSWFlat(size, HNSW_LINKS, faiss().METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = HNSW_BUILD
    return index


def _ivfpq(count: int, size: int, seed: int) -> Any:
    lists, codes, metric = inverted_lists(count), product_codes(size), faiss().METRIC_INNER_PRODUCT
    index = _in_lists(faiss().IndexIVFPQ, size, lists, codes, 8, metric)
    for clustering in (index.cp, index.pq.cp):
        _set_clustering(clustering, seed)
    return _rotated(index, size, seed)


def _int8(count: int, size: int, seed: int) -> Any:
    bits = faiss().ScalarQuantizer.QT_8bit
    return faiss().IndexScalarQuantizer(size, bits, faiss().METRIC_INNER_PRODUCT)


def _binary(count: int, size: int, seed: int) -> Any:
    return _rotated(faiss().IndexRaBitQ(size, faiss().METRIC_INNER_PRODUCT), size, seed)


def _ivfbinary(count: int, size: int, seed: int) -> Any:
    index = _in_lists(faiss().IndexIVFRaBitQ, size, inverted_lists(count), faiss().METRIC_INNER_PRODUCT)
    _set_clustering(index.cp, seed)
    return _rotated(index, size, seed)


def _in_lists(kind: Callable[..., Any], size: int, *arguments: Any) -> Any:
    """An index of lists, and the one that finds the nearest lists."""
    nearest = faiss().IndexFlatIP(size)
    index = kind(nearest, size, *arguments)
    index.own_fields = True  # the index deletes it, and Python must not: older versions would delete it at once
    nearest.this.disown()
    return index


def _rotated(index: Any, size: int, seed: int) -> Any:
    """Behind a random rotation: the theory of RaBitQ asks for one, and the first numbers of a head are larger."""
    rotation = faiss().RandomRotationMatrix(size, size)
    rotation.init(seed)
    return faiss().IndexPreTransform(rotation, index)


def _turn(index: Any, rotation: Vectors) -> None:
    """Let an index behind a rotation have this one, float32 (D, D)."""
    faiss().copy_array_to_vector(rotation.reshape(-1), faiss().downcast_VectorTransform(index.chain.at(0)).A)


def balanced_directions(vectors: Vectors, parts: int, size: int | None = None) -> Vectors:
    """A rotation after which every part of a vector, which one code stands for, varies as much as the others.

    The principal directions of the vectors, the strongest first, each go to the part whose variances have the least
    product so far and that is not full: the eigenvalue allocation of optimised product quantisation (Ge et al., TPAMI
    2014).

    Args:
        vectors: float32 (n, D).
        parts: how many codes; they divide `size`.
        size: keep so many of the strongest directions; None for all.

    Returns:
        float32 (size, D), with orthonormal rows.
    """
    size = size or vectors.shape[1]
    energy, directions = np.linalg.eigh(_covariance(vectors))
    kept = np.argsort(-energy, kind="stable")[:size]
    least = max(energy[kept[-1]], np.finfo(np.float32).eps * energy[kept[0]], np.finfo(np.float64).tiny)
    strength = np.log(np.maximum(energy, least) / least)  # 0 or more: a product that grows with each direction
    held: list[list[int]] = [[] for _ in range(parts)]
    product = np.zeros(parts)
    for direction in kept:
        part = min((part for part in range(parts) if len(held[part]) < size // parts), key=lambda part: product[part])
        held[part].append(int(direction))
        product[part] += strength[direction]
    chosen: Vectors = np.ascontiguousarray(directions[:, np.concatenate(held)].T, np.float32)
    return chosen


def _covariance(vectors: Vectors) -> npt.NDArray[np.float64]:
    """That of vectors (n, D), (D, D); a part of them at a time, so that no copy of all is made."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    total = np.zeros((len(mean), len(mean)))
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        centred = vectors[start : start + _ROWS_AT_A_TIME] - mean
        total += centred.T @ centred
    covariance: npt.NDArray[np.float64] = total / len(vectors)
    return covariance


def _set_clustering(clustering: Any, seed: int) -> None:
    clustering.seed = seed
    clustering.min_points_per_centroid = 1  # else FAISS writes warnings that a user can do nothing about


def _hnsw_parameters(index: Any, selector: Any, count: int) -> Any:
    return faiss().SearchParametersHNSW(sel=selector, efSearch=max(HNSW_SEARCH, count))


def _ivfpq_parameters(index: Any, selector: Any, count: int) -> Any:
    probed = min(PROBED, faiss().downcast_index(index.index).nlist)
    found = faiss().SearchParametersIVF(sel=selector, nprobe=probed)
    return faiss().SearchParametersPreTransform(index_params=found)


def _int8_parameters(index: Any, selector: Any, count: int) -> Any:
    return faiss().SearchParameters(sel=selector)


def _binary_parameters(index: Any, selector: Any, count: int) -> Any:
    found = faiss().RaBitQSearchParameters(sel=selector, qb=QUERY_BITS)
    return faiss().SearchParametersPreTransform(index_params=found)


def _ivfbinary_parameters(index: Any, selector: Any, count: int) -> Any:
    probed = min(PROBED, faiss().downcast_index(index.index).nlist)
    found = faiss().IVFRaBitQSearchParameters(sel=selector, nprobe=probed, qb=QUERY_BITS)
    return faiss().SearchParametersPreTransform(index_params=found)


_MAKERS: Mapping[Kind, Callable[[int, int, int], Any]] = {
    "hnsw": _hnsw,
    "ivfpq": _ivfpq,
    "int8": _int8,
    "binary": _binary,
    "ivfbinary": _ivfbinary,
}

_PARAMETERS: Mapping[Kind, Callable[[Any, Any, int], Any]] = {
    "hnsw": _hnsw_parameters,
    "ivfpq": _ivfpq_parameters,
    "int8": _int8_parameters,
    "binary": _binary_parameters,
    "ivfbinary": _ivfbinary_parameters,
}


def faiss() -> Any:
    """FAISS, which is slow to load; untyped, since its type hints lack what is used here."""
    return import_module("faiss")


def inverted_lists(count: int) -> int:
    """How many lists an IVF index of so many vectors has."""
    return max(1, min(round(4 * math.sqrt(count)), count // 39))


def product_codes(size: int) -> int:
    """How many codes stand for a vector of that size: the most that divide it into parts of 4 or more."""
    return max(divisor for divisor in range(1, size // 4 + 1) if size % divisor == 0) if size >= 4 else size
