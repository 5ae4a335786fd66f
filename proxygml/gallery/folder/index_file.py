"""Reading FAISS's files as data: of the two kinds that we write, every count within bounds, no other file opened.

A FAISS file can name other files, which FAISS then opens and resizes (lists of an index on disk), and counts that take
all memory or point outside of what was read. So FAISS gets the file's bytes through a reader that looks at them.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from proxygml.errors import GalleryError, counted

_PARTS = {"IHNf", "IxFI", "IwPQ", "ilar", "full", "sprs"}
"""The parts of HNSW over plain vectors and of IVF-PQ with its lists in memory, as FAISS names them."""

_UNUSED = 1 << 20  # FAISS writes this into two fields of every header
_PLACE_OF_BITS, _BITS = (
    14,
    8,
)  # the 14th number of an IVF-PQ file: of a code; tables have 2**bits rows


class _Reader:
    """Hands a file's bytes to FAISS, and raises ValueError at the first that no file of ours has."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._numbers = 0
        self._kind = ""

    def __call__(self, count: int) -> bytes:
        data = self._file.read(count)
        if count == 4 and data.isalnum() and data[:1].isalpha():
            self._check_part(data.decode("latin-1"))
        elif count == 8:
            self._check_number(int.from_bytes(data, "little", signed=True))
        return data

    def _check_part(self, name: str) -> None:
        if name not in _PARTS:
            raise ValueError(f"it has a part {name!r}, which no index of ours has")
        self._kind = self._kind or name

    def _check_number(self, number: int) -> None:
        self._numbers += 1
        if not 0 <= number <= self._size and number != _UNUSED:
            raise ValueError(f"it states the size {number:,}, but has {counted(self._size, 'byte')}")
        if self._kind == "IwPQ" and self._numbers == _PLACE_OF_BITS and number != _BITS:
            raise ValueError(f"its codes have {counted(number, 'bit')} instead of {_BITS}")


def read_faiss(path: Path, kind: str, dimension: int, most: int) -> Any:
    """The FAISS index in a file.

    Args:
        path: what FAISS wrote.
        kind: hnsw or ivfpq.
        dimension: D of its vectors.
        most: how many vectors it may hold.

    Raises:
        FileNotFoundError: there is none.
        GalleryError: it is damaged, of another kind or size, or refers to anything outside of itself.
    """
    faiss = import_module("faiss")
    try:
        with path.open("rb") as file:
            reader = faiss.PyCallbackIOReader(_Reader(file, path.stat().st_size))
            index = faiss.read_index(reader)
        _check(faiss, index, kind, dimension, most)
    except (RuntimeError, ValueError, MemoryError, IndexError, AssertionError) as error:
        reason = str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
        raise GalleryError(f"{path} cannot be read as an index ({reason}): build the gallery again") from error
    return index


def _check(faiss: Any, index: Any, kind: str, dimension: int, most: int) -> None:
    expected = faiss.IndexHNSWFlat if kind == "hnsw" else faiss.IndexIVFPQ
    if type(index) is not expected:
        raise ValueError(f"it is a {type(index).__name__}, but the gallery's kind is {kind}")
    if index.d != dimension or index.metric_type != faiss.METRIC_INNER_PRODUCT or not index.is_trained:
        raise ValueError(f"it is of vectors of size {index.d}, but the gallery's have {dimension}")
    if not 0 < index.ntotal <= most:
        raise ValueError(f"it holds {counted(index.ntotal, 'vector')}, but the gallery {most:,}")
    if kind == "hnsw":
        _check_graph(faiss, index)
    else:
        _check_lists(faiss, index)


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


def _check_lists(faiss: Any, index: Any) -> None:
    """Every list holds codes of this index's size and rows of the gallery."""
    lists, codes = index.invlists, index.pq
    fits = (
        int(index.quantizer.ntotal) == int(index.nlist) == int(lists.nlist)
        and int(index.quantizer.d) == index.d == codes.d
        and codes.M * codes.dsub == codes.d
        and int(codes.code_size) == int(index.code_size) == int(lists.code_size) == codes.M
    )
    total = 0
    for number in range(int(lists.nlist) if fits else 0):
        size = lists.list_size(number)
        rows = faiss.rev_swig_ptr(lists.get_ids(number), size) if size else np.empty(0, np.int64)
        fits = fits and (not size or (rows.min() >= 0 and rows.max() < index.ntotal))
        total += size
    if not fits or total != int(index.ntotal):
        raise ValueError("its lists do not fit its vectors")
