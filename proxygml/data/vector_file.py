"""Parquet files of vectors and their items: `proxygml embed` writes them, `proxygml index` reads them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proxygml.arrays import Block
from proxygml.data.arrow import to_pandas
from proxygml.errors import GalleryError
from proxygml.files import atomic_write, check_local, check_overwrite

ROWS_AT_A_TIME = 16_384


def write_vectors(path: Path, blocks: Iterable[Block], *, model: str, run: str, force: bool = False) -> None:
    """Write items and vectors as Parquet: the columns of the table, and `embedding`, a list of D floats.

    The model's fingerprint and its run folder are in the file's metadata, under `proxygml`.

    Raises:
        OverwriteError: something is there, and `force` is False.
    """
    check_overwrite(path, force)
    with atomic_write(path) as temporary:
        writer = None
        for vectors, table in blocks:
            part = pa.Table.from_pandas(table, preserve_index=False)
            flat = pa.array(vectors.reshape(-1), pa.float32())
            part = part.append_column("embedding", pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
            if writer is None:
                facts = {b"proxygml": json.dumps({"model": model, "run": run}).encode()}
                writer = pq.ParquetWriter(temporary, part.schema.with_metadata((part.schema.metadata or {}) | facts))
            writer.write_table(part.cast(writer.schema))
        if writer is not None:
            writer.close()


@dataclass(frozen=True)
class VectorFile:
    """A file that `write_vectors` wrote.

    Raises:
        GalleryError: the file is missing, or holds no vectors.
    """

    path: Path

    def __post_init__(self) -> None:
        check_local(self.path, "the file of vectors", GalleryError)
        try:
            schema = pq.read_schema(self.path)
        except FileNotFoundError:
            raise GalleryError(f"there is no {self.path}; `proxygml embed` makes such files") from None
        except (OSError, pa.ArrowInvalid) as error:
            raise GalleryError(f"{self.path} cannot be read as Parquet: {error}") from error
        kind = schema.field("embedding").type if "embedding" in schema.names else pa.null()
        if not _is_list(kind) or not pa.types.is_floating(kind.value_type):
            raise GalleryError(f"{self.path} has no column of vectors, `embedding`; `proxygml embed` makes such files")

    @property
    def dimension(self) -> int:
        """Size of the vectors."""
        kind = pq.read_schema(self.path).field("embedding").type
        if pa.types.is_fixed_size_list(kind):
            return int(kind.list_size)
        with pq.ParquetFile(self.path) as file:  # pandas and others write lists of any length
            for batch in file.iter_batches(1, columns=["embedding"]):
                first = batch.column("embedding")[0].as_py()
                return 0 if first is None else len(first)
        return 0

    @property
    def rows(self) -> int:
        """How many vectors."""
        return int(pq.read_metadata(self.path).num_rows)

    @property
    def model(self) -> str:
        """Fingerprint of the model; empty where the file does not say."""
        return str(self._facts().get("model", ""))

    @property
    def run(self) -> str:
        """The run folder of the model; empty where the file does not say."""
        return str(self._facts().get("run", ""))

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((pq.read_schema(self.path).metadata or {}).get(b"proxygml", b"{}"))
        return facts

    def _check_vectors(self, vectors: Any, size: int, first: int) -> None:
        """Raise GalleryError where a vector is missing, of another size, or lacks a number; `first` is the row."""
        lengths = pc.fill_null(pc.list_value_length(vectors), -1).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero((lengths != size) | (lengths == 0))
        if not len(wrong) and vectors.flatten().null_count:
            wrong = np.flatnonzero([None in vector for vector in vectors.to_pylist()])
        if len(wrong):
            length = int(lengths[wrong[0]])
            found = "no vector" if length < 0 else f"a vector of {length} numbers"
            found = "a missing number" if length == size else found
            raise GalleryError(
                f"{self.path} has {found} in row {first + wrong[0]}, but its first vector {size} numbers: leave it out"
            )

    def blocks(self) -> Iterator[Block]:
        """The content of the file in parts: vectors float32 (m, D), and a table of their m items."""
        size, row = self.dimension, 0
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(ROWS_AT_A_TIME):
                self._check_vectors(batch.column("embedding"), size, row)
                row += len(batch)
                flat = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
                table = to_pandas(batch.drop_columns(["embedding"]))
                yield flat.astype(np.float32).reshape(len(table), -1), table


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
