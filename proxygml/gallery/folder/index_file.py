"""Reading FAISS's files as data: of the kinds that we write, every count within bounds, no other file opened.

A FAISS file can name other files, which FAISS then opens and resizes (lists of an index on disk), and counts that take
all memory or point outside of what was read. So FAISS gets the file's bytes through a reader that looks at them.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from proxygml.errors import GalleryError, counted
from proxygml.gallery.kinds import Kind

_LISTS = {"IxFI", "ilar", "full", "sprs"}

_PARTS: Mapping[Kind, set[str]] = {
    "hnsw": {"IHNf", "IxFI"},
    "ivfpq": {"IxPT", "rrot", "IwPQ", *_LISTS},
    "int8": {"IxSQ"},
    "binary": {"IxPT", "rrot", "Ixrq"},
    "ivfbinary": {"IxPT", "rrot", "Iwrq", *_LISTS},
}
"""The parts of an index of each kind, as FAISS names them; those of lists in memory alone."""

_UNUSED = 1 << 20  # FAISS writes this into two fields of every header
_PLACE_OF_BITS, _BITS = 19, 8  # the 19th number of an IVF-PQ file: of a code; tables have 2**bits rows


class _Reader:
    """Hands a file's bytes to FAISS, and raises ValueError at the first that no file of ours has."""

    def __init__(self, file: BinaryIO, size: int, kind: Kind) -> None:
        self._file = file
        self._size = size
        self._kind = kind
        self._numbers = 0

    def __call__(self, count: int) -> bytes:
        data = self._file.read(count)
        if count == 4 and data.isalnum() and data[:1].isalpha():
            self._check_part(data.decode("latin-1"))
        elif count == 8:
            self._check_number(int.from_bytes(data, "little", signed=True))
        return data

    def _check_part(self, name: str) -> None:
        if name not in _PARTS[self._kind]:
            raise ValueError(f"it has a part {name!r}, which no index of ours has in a gallery of kind {self._kind}")

    def _check_number(self, number: int) -> None:
        self._numbers += 1
        if not 0 <= number <= self._size and number != _UNUSED:
            raise ValueError(f"it states the size {number:,}, but has {counted(self._size, 'byte')}")
        if self._kind == "ivfpq" and self._numbers == _PLACE_OF_BITS and number != _BITS:
            raise ValueError(f"its codes have {counted(number, 'bit')} instead of {_BITS}")


def read_faiss(path: Path, kind: Kind, dimension: int, most: int) -> Any:
    """The FAISS index in a file.

    Args:
        path: what FAISS wrote.
        kind: not exact.
        dimension: D of its vectors.
        most: how many vectors it may hold.

    Raises:
        FileNotFoundError: there is none.
        GalleryError: it is damaged, of another kind or size, or refers to anything outside of itself.
    """
    faiss = import_module("faiss")
    try:
        with path.open("rb") as file:
            reader = faiss.PyCallbackIOReader(_Reader(file, path.stat().st_size, kind))
            index = faiss.read_index(reader)
        _check(faiss, index, kind, dimension, most)
    except (RuntimeError, ValueError, MemoryError, IndexError, AssertionError) as error:
        reason = str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
        raise GalleryError(f"{path} cannot be read as an index ({reason}): build the gallery again") from error
    return index


def _check(faiss: Any, index: Any, kind: Kind, dimension: int, most: int) -> None:
    _check_type(faiss, index, _TYPES[kind][0])
    _check_head(faiss, index, dimension, most)
    if kind == "hnsw":
        _check_graph(faiss, index)
    elif kind == "int8":
        codes = index.sq
        fits = codes.qtype == codes.QT_8bit and codes.d == dimension and codes.trained.size() == 2 * dimension
        _check_fits(fits and int(codes.code_size) == dimension)
        _check_codes(index, dimension)
    else:
        inner = _behind_rotation(faiss, index, kind)
        if kind == "ivfpq":
            _check_products(faiss, inner)
        else:
            _check_bits(faiss, inner, kind)


_TYPES: Mapping[Kind, tuple[str, ...]] = {
    "hnsw": ("IndexHNSWFlat",),
    "ivfpq": ("IndexPreTransform", "IndexIVFPQ"),
    "int8": ("IndexScalarQuantizer",),
    "binary": ("IndexPreTransform", "IndexRaBitQ"),
    "ivfbinary": ("IndexPreTransform", "IndexIVFRaBitQ"),
}
"""The class of an index of each kind, and of the one inside of it."""


def _check_type(faiss: Any, index: Any, expected: str) -> None:
    if type(index) is not getattr(faiss, expected):
        raise ValueError(f"it has a {type(index).__name__} where a gallery of its kind has {expected}")


def _check_fits(holds: bool) -> None:
    if not holds:
        raise ValueError("its codes do not fit its vectors")


def _check_head(faiss: Any, index: Any, dimension: int, most: int) -> None:
    if index.d != dimension or index.metric_type != faiss.METRIC_INNER_PRODUCT or not index.is_trained:
        raise ValueError(f"it is of vectors of size {index.d}, but the gallery's have {dimension}")
    if not 0 < index.ntotal <= most:
        raise ValueError(f"it holds {counted(index.ntotal, 'vector')}, but the gallery {most:,}")


def _check_codes(index: Any, size: int) -> None:
    """An index without lists has a code of so many bytes for each vector."""
    _check_fits(int(index.code_size) == size and int(index.codes.size()) == int(index.ntotal) * size)


def _behind_rotation(faiss: Any, index: Any, kind: Kind) -> Any:
    """The index of codes that stands behind a rotation of the whole space, both of the same size and vectors."""
    _check_fits(int(index.chain.size()) == 1)
    rotation, inner = faiss.downcast_VectorTransform(index.chain.at(0)), faiss.downcast_index(index.index)
    _check_type(faiss, rotation, "RandomRotationMatrix")
    whole = int(rotation.A.size()) == index.d**2 and not rotation.have_bias and not rotation.b.size()
    _check_fits(rotation.d_in == rotation.d_out == index.d and whole and rotation.is_trained)
    _check_type(faiss, inner, _TYPES[kind][1])
    _check_head(faiss, inner, index.d, index.ntotal)
    _check_fits(inner.ntotal == index.ntotal)
    return inner


def _check_products(faiss: Any, index: Any) -> None:
    """Lists of codes of product quantisation."""
    codes = index.pq
    _check_fits(codes.M * codes.dsub == codes.d == index.d and int(codes.code_size) == codes.M)
    _check_lists(faiss, index, codes.M)


def _check_bits(faiss: Any, index: Any, kind: Kind) -> None:
    """RaBitQ's codes of one bit a number."""
    codes, expected = index.rabitq, faiss.RaBitQuantizer(index.d, faiss.METRIC_INNER_PRODUCT)
    same = codes.metric_type == expected.metric_type and getattr(codes, "nb_bits", 1) == 1
    size = int(expected.code_size)
    _check_fits(codes.d == index.d and int(codes.code_size) == size and same)
    _check_fits(index.qb <= 8)  # more bits of a query than its tables have
    if kind == "binary":
        _check_fits(int(index.center.size()) == index.d)
        _check_codes(index, size)
    else:
        _check_lists(faiss, index, size)


def _check_graph(faiss: Any, index: Any) -> None:
    """Every link leads to a vector of the index."""
    graph, count = index.hnsw, int(index.ntotal)
    levels, offsets = (faiss.vector_to_array(part) for part in (graph.levels, graph.offsets))
    per_level = faiss.vector_to_array(graph.cum_nneighbor_per_level)
    size = graph.neighbors.size()
    links = faiss.rev_swig_ptr(graph.neighbors.data(), size) if size else np.empty(0, np.int32)
    whole = (
        int(index.storage.ntotal) == count
        and int(index.storage.d) == index.d
        and len(levels) == count
        and len(offsets) == count + 1
        and 0 <= graph.entry_point < count
        and len(per_level) >= 2
        and levels.min() >= 1
        and levels.max() < len(per_level)
        and graph.max_level == levels[graph.entry_point] - 1 == levels.max() - 1
        and int(offsets[0]) == 0
        and int(offsets[-1]) == size
        and bool((np.diff(offsets.astype(np.int64)) == per_level[levels]).all())
        and bool((np.diff(per_level) > 0).all())
        and links.min() >= -1
        and links.max() < count
    )
    if not whole:
        raise ValueError("its graph leads outside of its vectors")


def _check_lists(faiss: Any, index: Any, code_size: int) -> None:
    """Every list holds codes of that size and rows of the gallery; plain vectors say which lists are near."""
    lists, nearest = index.invlists, faiss.downcast_index(index.quantizer)
    _check_type(faiss, nearest, "IndexFlatIP")
    fits = (
        int(nearest.ntotal) == int(index.nlist) == int(lists.nlist)
        and int(nearest.d) == index.d
        and int(nearest.codes.size()) == 4 * index.d * int(nearest.ntotal)
        and int(index.code_size) == int(lists.code_size) == code_size
        and index.direct_map.type == index.direct_map.NoMap
    )
    total = 0
    for number in range(int(lists.nlist) if fits else 0):
        size = lists.list_size(number)
        rows = faiss.rev_swig_ptr(lists.get_ids(number), size) if size else np.empty(0, np.int64)
        fits = fits and (not size or (rows.min() >= 0 and rows.max() < index.ntotal))
        total += size
    if not fits or total != int(index.ntotal):
        raise ValueError("its lists do not fit its vectors")
