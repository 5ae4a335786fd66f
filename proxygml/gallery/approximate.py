"""A FAISS index of a gallery: built, extended, searched, written and read.

It only proposes candidates; neighbors.py decides among them. Which indexes there are is in index_kinds.py.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from proxygml.arrays import Rows, Vectors
from proxygml.console import progress_bar
from proxygml.files import atomic_write, naming
from proxygml.gallery.folder.index_file import read_faiss
from proxygml.gallery.index_kinds import REFINED, empty_index, faiss, search_parameters
from proxygml.gallery.kinds import CODED, Kind
from proxygml.gallery.vectors import VectorRows

_ADDED_AT_A_TIME = 4096
_CHECKPOINT_SECONDS = 120


class FoundRows(NamedTuple):
    """Rows among which the nearest of a query are."""

    rows: Rows
    """int64 (c,), rising."""
    scores: Vectors | None = None
    """float32 (c,), the similarities to go by; None where they are to be computed from the exact vectors."""


class ApproximateIndex:
    """A FAISS index over the first rows of a gallery.

    Args:
        index: of inner products.
        kind: which one it is.
    """

    def __init__(self, index: Any, kind: Kind) -> None:
        self.index = index
        self.kind = kind

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @classmethod
    def build(
        cls, kind: Kind, vectors: VectorRows, seed: int = 0, checkpoint: Path | None = None
    ) -> "ApproximateIndex":
        """Index all the vectors, with a progress bar.

        Args:
            kind: not exact; see index_kinds.empty_index.
            vectors: n of them.
            seed: of what is drawn.
            checkpoint: a file that holds what is done, written every two minutes; a file that is there is continued.

        Raises:
            GalleryError: too few vectors for the kind, or too small ones.
        """
        if checkpoint is not None and checkpoint.is_file():
            made = cls.read(checkpoint, kind, vectors.size, len(vectors))
        else:
            made = cls(empty_index(kind, vectors, seed), kind)
        made.add(vectors, checkpoint)
        return made

    def add(self, vectors: VectorRows, checkpoint: Path | None = None) -> None:
        """Index those of the vectors that follow what is indexed already."""
        kept = 0.0  # so the first block writes a checkpoint: learning the codewords took long
        with progress_bar(disable=len(vectors) - len(self) < _ADDED_AT_A_TIME) as bar:
            task = bar.add_task("Indexing", total=len(vectors), completed=len(self), note="")
            while (start := len(self)) < len(vectors):
                part = np.ascontiguousarray(vectors.part(start, min(start + _ADDED_AT_A_TIME, len(vectors))))
                self.index.add(part)
                bar.advance(task, len(part))
                if checkpoint is not None and time.monotonic() - kept > _CHECKPOINT_SECONDS:
                    with atomic_write(checkpoint) as path:
                        self.write(path)
                    kept = time.monotonic()

    def candidates(
        self, queries: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None, refine: int = REFINED
    ) -> list[FoundRows]:
        """For each query (q, D) the rows that the index holds nearest: several times k, or what it found.

        Args:
            queries: of length 1.
            k: how many results are wanted.
            allowed: bool (n,), the rows that may be found; None for all.
            refine: of codes, how many candidates to give for each result, at least 100 in all; 0 gives k, with the
                similarities that the codes say.
        """
        count = 2 * k
        if self.kind in CODED:
            count = max(100, refine * k) if refine else k
        bits = None if allowed is None else np.packbits(allowed[: len(self)], bitorder="little")
        selector = None if bits is None else faiss().IDSelectorBitmap(bits)
        count = min(count, len(self))
        parameters = search_parameters(self.kind, self.index, selector, count)
        scores, found = self.index.search(queries, count, params=parameters)
        said = self.kind in CODED and not refine
        return [_found_rows(row, score if said else None) for row, score in zip(found, scores, strict=True)]

    def write(self, path: Path) -> None:
        """Write FAISS's own file.

        Raises:
            OSError: it cannot be written; also where the disk is full.
        """
        with naming(path), path.open("wb") as file:

            def write(data: bytes) -> None:  # FAISS's own errors do not say what the system said
                file.write(data)

            faiss().write_index(self.index, faiss().PyCallbackIOWriter(write))

    @classmethod
    def read(cls, path: Path, kind: Kind, dimension: int, most: int) -> "ApproximateIndex":
        """Read what `write` wrote; see index_file.read_faiss."""
        return cls(read_faiss(path, kind, dimension, most), kind)


def _found_rows(rows: Rows, scores: Vectors | None) -> FoundRows:
    """What FAISS found for a query; it fills up with -1 what it did not find."""
    order = np.argsort(rows)
    order = order[rows[order] >= 0]
    return FoundRows(rows[order], None if scores is None else scores[order])
