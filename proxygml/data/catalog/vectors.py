"""The vectors of a catalog: found in its file, written with it, and read for some of its rows."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from proxygml.data.arrow import to_arrow
from proxygml.data.columns import EMBEDDING, EMBEDDING_ROW
from proxygml.data.vectors.checks import ROWS_AT_A_TIME, Floats
from proxygml.data.vectors.file import write_parts
from proxygml.data.vectors.source import VectorSource, is_vector_type
from proxygml.errors import CatalogError
from proxygml.urls import Place

SAMPLED = 64
"""Vectors that stand for all in a fingerprint."""


def vectors_of(place: Place, file: Path) -> VectorSource | None:
    """The column of vectors of a catalog, read from its file; None for a .csv file, or one without such a column."""
    if place.suffix.lower() == ".csv" or not file.is_file():
        return None
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowInvalid):
        return None  # the table's reader says what is wrong
    if EMBEDDING not in schema.names or not is_vector_type(schema.field(EMBEDDING).type):
        return None
    return VectorSource(place) if pq.read_metadata(file).num_rows else None


def blocks_of_rows(source: VectorSource, rows: npt.NDArray[np.int64]) -> Iterator[Floats]:
    """The vectors of these rows, up to 16,384 at a time; read from the file in one pass where the rows rise."""
    if len(rows) > 1 and (np.diff(rows) <= 0).any():
        plain = source.mapped()
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            yield plain[rows[start : start + ROWS_AT_A_TIME]]
        return
    for block in source.blocks():
        first, last = np.searchsorted(rows, [block.first, block.first + len(block.vectors)])
        if last > first:
            yield block.vectors[rows[first:last] - block.first]


def write_with_vectors(table: pd.DataFrame, source: VectorSource, temporary: Path, path: Path) -> None:
    """Write a catalog's table and the vectors of its rows as Parquet.

    Args:
        table: with `embedding_row`.
        source: the vectors.
        temporary: the file to write.
        path: what it will be called.

    Raises:
        CatalogError: the name is that of a .csv file, which has no room for vectors.
    """
    if path.suffix.lower() == ".csv":
        raise CatalogError(f"{path} is a .csv file, which cannot hold vectors: choose a name that ends with .parquet")
    rows = table[EMBEDDING_ROW].to_numpy(dtype=np.int64)
    whole = to_arrow(table.drop(columns=EMBEDDING_ROW))

    def parts() -> Iterator[tuple[Floats, pa.Table]]:
        start = 0
        for vectors in blocks_of_rows(source, rows):
            yield vectors, whole.slice(start, len(vectors))
            start += len(vectors)

    write_parts(temporary, parts(), {})


def sample_of(source: VectorSource, rows: npt.NDArray[np.int64]) -> bytes:
    """A hash of some of the vectors of these rows, evenly spaced; one that is no good counts as zeros.

    It neither checks the others nor writes a file: who trains on the images beside them may have no use for them.
    """
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED)).astype(int)]
    if source.is_mapped:
        sample = source.mapped()[chosen]
    else:
        rising, places = np.unique(chosen, return_inverse=True)
        none = np.empty((0, source.size), source.dtype)
        sample = np.concatenate([none, *blocks_of_rows(source, rising)])[places]
    return hashlib.sha256(np.ascontiguousarray(sample, np.float32).tobytes()).digest()
