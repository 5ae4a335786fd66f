"""Parquet files of vectors and their items: `proxygml embed` writes them, `proxygml index` reads them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from proxygml.arrays import Block
from proxygml.data.arrow import to_pandas
from proxygml.errors import GalleryError
from proxygml.files import atomic_write, check_overwrite

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
        try:
            schema = pq.read_schema(self.path)
        except FileNotFoundError:
            raise GalleryError(f"there is no {self.path}; `proxygml embed` makes such files") from None
        except (OSError, pa.ArrowInvalid) as error:
            raise GalleryError(f"{self.path} cannot be read as Parquet: {error}") from error
        if "embedding" not in schema.names or not pa.types.is_fixed_size_list(schema.field("embedding").type):
            raise GalleryError(f"{self.path} has no column of vectors, `embedding`; `proxygml embed` makes such files")

    @property
    def dimension(self) -> int:
        """Size of the vectors."""
        return int(pq.read_schema(self.path).field("embedding").type.list_size)

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

    def blocks(self) -> Iterator[Block]:
        """The content of the file in parts: vectors float32 (m, D), and a table of their m items."""
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(ROWS_AT_A_TIME):
                flat = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
                table = to_pandas(batch.drop_columns(["embedding"]))
                yield flat.astype(np.float32).reshape(len(table), -1), table
