"""Parquet files of vectors and their items: `proxygml embed` writes them, `proxygml index` reads them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from proxygml.arrays import Block
from proxygml.data.arrow import to_arrow, to_pandas
from proxygml.data.columns import EMBEDDING
from proxygml.data.vector_checks import Floats
from proxygml.data.vector_source import VectorSource, checked_lists, read_batches, vector_type
from proxygml.errors import GalleryError
from proxygml.files import atomic_write, check_local, check_overwrite


def write_vectors(path: Path, blocks: Iterable[Block], *, model: str, run: str, force: bool = False) -> None:
    """Write items and vectors as Parquet: the columns of the table, and `embedding`, a list of D floats.

    The model's fingerprint and its run folder are in the file's metadata, under `proxygml`.

    Raises:
        OverwriteError: something is there, and `force` is False.
    """
    check_overwrite(path, force)
    facts = {b"proxygml": json.dumps({"model": model, "run": run}).encode()}
    parts = ((vectors, to_arrow(table)) for vectors, table in blocks)
    with atomic_write(path) as temporary:
        write_parts(temporary, parts, facts)


def write_parts(path: Path, parts: Iterable[tuple[Floats, pa.Table]], facts: Mapping[bytes, bytes]) -> None:
    """Write tables with a vector for each of their rows, float16 or float32, one row group a part."""
    writer = None
    for vectors, table in parts:
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        part = table.append_column(EMBEDDING, pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
        if writer is None:
            schema = part.schema.with_metadata((part.schema.metadata or {}) | dict(facts))
            # Floats hardly repeat: a dictionary of them would only take time, and so would compression.
            plain = {"use_dictionary": table.schema.names, "compression": "NONE"}
            writer = pq.ParquetWriter(path, schema, **plain)
        writer.write_table(part.cast(writer.schema))
    if writer is not None:
        writer.close()


@dataclass(frozen=True)
class VectorFile:
    """A file that `write_vectors` wrote, or another with a column of vectors, `embedding`; or vectors alone, as .npy.

    Raises:
        GalleryError: the file is missing, or holds no vectors.
    """

    path: Path

    def __post_init__(self) -> None:
        check_local(self.path, "the file of vectors", GalleryError)
        if self.is_npy:
            _ = VectorSource(self.path)
            return
        vector_type(self.path, EMBEDDING, GalleryError)

    @property
    def is_npy(self) -> bool:
        return self.path.suffix.lower() == ".npy"

    @property
    def dimension(self) -> int:
        """Size of the vectors; 0 where there are none."""
        return VectorSource(self.path).size if self.rows else 0

    @property
    def rows(self) -> int:
        """How many vectors."""
        return VectorSource(self.path).rows if self.is_npy else int(pq.read_metadata(self.path).num_rows)

    @property
    def model(self) -> str:
        """Fingerprint of the model; empty where the file does not say."""
        return self._fact("model")

    @property
    def run(self) -> str:
        """The run folder of the model; empty where the file does not say."""
        return self._fact("run")

    def _fact(self, name: str) -> str:
        """One of the facts that write_vectors has written beside the columns; empty where the file has none."""
        text = None if self.is_npy else (pq.read_schema(self.path).metadata or {}).get(b"proxygml")
        if text is None:
            return ""
        try:
            fact = json.loads(text).get(name, "")
        except (ValueError, AttributeError, RecursionError):
            fact = None
        if not isinstance(fact, str):
            raise GalleryError(f"{self.path} does not say which model made it, its metadata is damaged: embed it again")
        return fact

    def _npy_blocks(self) -> Iterator[Block]:
        for first, vectors, problems in VectorSource(self.path).blocks():
            for row, problem in problems.items():
                raise GalleryError(f"{self.path} has {problem} in row {row}: correct it, or leave it out")
            rows = pd.RangeIndex(first, first + len(vectors))
            yield vectors.astype(np.float32, copy=False), pd.DataFrame({"row": rows})

    def _check_vectors(self, problems: Mapping[int, str], first: int, table: Any) -> None:
        """Raise GalleryError where a vector is missing, of another size, not finite or all zeros; `first` is a row."""
        for row, problem in problems.items():
            key = next((name for name in ("id", "path") if name in table.schema.names), None)
            name = "" if key is None else f" ({key} {table.column(key)[row].as_py()})"
            raise GalleryError(f"{self.path} has {problem} in row {first + row}{name}: correct it, or leave it out")

    def blocks(self) -> Iterator[Block]:
        """The content of the file in parts: vectors float32 (m, D), and a table of their m items."""
        if self.is_npy:
            yield from self._npy_blocks()
            return
        size, row = self.dimension, 0
        for batch in read_batches(self.path):
            vectors, problems = checked_lists(batch.column(EMBEDDING), size)
            self._check_vectors(problems, row, batch)
            row += len(batch)
            yield vectors.astype(np.float32, copy=False), to_pandas(batch.drop_columns([EMBEDDING]))
