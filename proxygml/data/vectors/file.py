"""Parquet files of vectors and their items: `proxygml embed` writes them, `proxygml index` reads them.

A folder of such files (see parts.py) is read as one.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from proxygml.arrays import Block, Vectors
from proxygml.data.arrow import to_arrow, to_pandas
from proxygml.data.columns import EMBEDDING, MAP_COLUMNS
from proxygml.data.vectors.checks import LARGEST_VECTOR, Floats
from proxygml.data.vectors.codes import Coded, Codes, Dtype, code_bytes, decoded, encoded
from proxygml.data.vectors.parts import INDEX, PartsIndex, part_files
from proxygml.data.vectors.source import VectorSource, checked_lists, read_batches, vector_type
from proxygml.errors import GalleryError, counted
from proxygml.files import check_size
from proxygml.remote import check_free, exists, is_folder, local_file, written
from proxygml.urls import WEB, Place, as_place


def write_vectors(
    path: Place,
    blocks: Iterable[Block],
    *,
    model: str,
    run: str,
    dtype: Dtype = "float32",
    mapped: bool = False,
    force: bool = False,
) -> None:
    """Write items and vectors as Parquet, also to a URL: the table's columns, and `embedding`, D numbers or a code.

    The model's fingerprint and its run folder are in the file's metadata, under `proxygml`; of codes, also `dtype` and
    D, as `dimension`; and `columns`, atlas, where the tables have MAP_COLUMNS (`mapped`), which only this file's own
    rows have a use for: `VectorFile.blocks` leaves them out.

    Raises:
        OverwriteError: something is there, and `force` is False.
    """
    check_free(path, force)
    with written(path) as temporary:
        first, rest = _first(blocks)
        facts = vector_facts(model, run, dtype, 0 if first is None else first[0].shape[1])
        facts |= {"columns": "atlas"} if mapped else {}
        parts = ((encoded(vectors, dtype), to_arrow(table)) for vectors, table in rest)
        write_parts(temporary, parts, {b"proxygml": json.dumps(facts).encode()})


def vector_facts(model: str, run: str, dtype: Dtype, dimension: int) -> dict[str, str | int]:
    """What a file of vectors says of them in its metadata; the dimension, 0 where there are none, that of codes."""
    facts: dict[str, str | int] = {"model": model, "run": run}
    return facts | ({"dtype": dtype, "dimension": dimension} if dtype in get_args(Coded) and dimension else {})


def _first(blocks: Iterable[Block]) -> tuple[Block | None, Iterator[Block]]:
    """The first block, None where there is none; and all of them."""
    rest = iter(blocks)
    first = next(rest, None)
    return first, rest if first is None else chain([first], rest)


def write_parts(path: Path, parts: Iterable[tuple[Floats | Codes, pa.Table]], facts: Mapping[bytes, bytes]) -> None:
    """Write tables with a vector or a code for each of their rows, one row group a part."""
    writer = None
    for vectors, table in parts:
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        # Without columns of its own, a table loses its number of rows on the way from pandas.
        part = table.append_column(EMBEDDING, column) if table.num_columns else pa.table({EMBEDDING: column})
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

    A folder of Parquet files counts as one; its parts are read one after the other.

    Raises:
        GalleryError: the file is missing, or holds no vectors.
    """

    path: Place

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", as_place(self.path, "the file of vectors", GalleryError))
        if self.is_npy:
            _ = VectorSource(self.path)
            return
        if self.dtype is None:
            vector_type(self.files[0], EMBEDDING, GalleryError)
        else:
            self._check_codes()

    @cached_property
    def files(self) -> list[Place]:
        """The file, or the parts of a folder."""
        return part_files(self.path) if self._is_folder else [self.path]

    @cached_property
    def _first_file(self) -> Path:
        """The first of them, or a copy of what its URL holds."""
        return local_file(self.files[0], GalleryError)

    @cached_property
    def _is_folder(self) -> bool:
        if isinstance(self.path, Path):
            return self.path.is_dir()
        return self.path.scheme not in WEB and is_folder(self.path, GalleryError)

    @property
    def folder(self) -> Place:
        """What relative paths of items are relative to."""
        return self.path if self._is_folder else self.path.parent

    @property
    def is_npy(self) -> bool:
        return self.path.suffix.lower() == ".npy"

    @property
    def dtype(self) -> Coded | None:
        """How the vectors are coded; None where they are floats."""
        found = self._fact("dtype")
        if found and found not in get_args(Coded):
            raise GalleryError(f"{self.path} has vectors coded as {found[:40]!r}, which this version does not know")
        return cast("Coded", found) if found else None

    def _check_codes(self) -> None:
        """Raise GalleryError where the file holds no codes as its metadata states them."""
        assert self.dtype is not None
        size = code_bytes(self.dtype, self.dimension)
        expected = pa.list_(pa.int8() if self.dtype == "int8" else pa.uint8(), size)
        schema = pq.read_schema(self._first_file)
        found = schema.field(EMBEDDING).type if schema.names.count(EMBEDDING) == 1 else None
        if found != expected or not 1 <= self.dimension <= LARGEST_VECTOR:
            raise GalleryError(
                f"{self.path} states {self.dtype} codes of {counted(self.dimension, 'number')}, but its column "
                f"{EMBEDDING!r} is {found}: embed it again"
            )

    @cached_property
    def dimension(self) -> int:
        """Size of the vectors; 0 where there are none."""
        if self.dtype is not None:
            size = self._facts().get("dimension")
            return size if type(size) is int else 0
        filled = (file for file in self.files if self.is_npy or self._rows_of(file))
        return VectorSource(next(filled)).size if self.rows else 0

    @cached_property
    def rows(self) -> int:
        """How many vectors."""
        if self.is_npy:
            return VectorSource(self.path).rows
        if self._is_folder and exists(self.path / INDEX, GalleryError):
            return PartsIndex.read(self.path).rows
        return sum(map(self._rows_of, self.files))

    def _rows_of(self, file: Place) -> int:
        if len(self.files) > 1:
            VectorFile(file)  # raises where it is no such file
        return int(pq.read_metadata(local_file(file, GalleryError)).num_rows)

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
        fact = self._facts().get(name, "")
        if not isinstance(fact, str):
            raise self._damaged()
        return fact

    def _facts(self) -> Mapping[str, object]:
        """What write_vectors has written beside the columns."""
        check_size(self._first_file, sys.maxsize, GalleryError)  # reading a pipe would wait for ever
        try:
            text = None if self.is_npy else (pq.read_schema(self._first_file).metadata or {}).get(b"proxygml")
        except (OSError, pa.ArrowException):  # vector_type says what is wrong
            return {}
        if text is None:
            return {}
        try:
            facts = json.loads(text)
        except (ValueError, RecursionError):
            facts = None
        if not isinstance(facts, dict):
            raise self._damaged()
        return facts

    def _damaged(self) -> GalleryError:
        return GalleryError(f"{self.path} does not say which model made it, its metadata is damaged: embed it again")

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
        left_out = {EMBEDDING, *(MAP_COLUMNS if self._fact("columns") == "atlas" else ())}
        for batch in self._batches():
            if self.dtype is None:
                vectors, problems = checked_lists(batch.column(EMBEDDING), size)
            else:
                vectors, problems = _decoded(batch.column(EMBEDDING), size)
            self._check_vectors(problems, row, batch)
            row += len(batch)
            items = batch.select([name for name in batch.schema.names if name not in left_out])
            yield vectors.astype(np.float32, copy=False), to_pandas(items)

    def _batches(self) -> Iterator[Any]:
        for file in self.files:
            if len(self.files) > 1 and (found := VectorFile(file).dtype) != self.dtype:
                raise GalleryError(
                    f"{file} has vectors as {found or 'floats'}, but {self.files[0].name} as {self.dtype or 'floats'}: "
                    "embed the images again"
                )
            yield from read_batches(local_file(file, GalleryError))


def _decoded(lists: Any, size: int) -> tuple[Vectors, dict[int, str]]:
    """The vectors of codes, and what is wrong with which."""
    missing = lists.is_null().to_numpy(zero_copy_only=False)
    flat = lists.fill_null([0] * lists.type.list_size).flatten() if missing.any() else lists.flatten()
    holes = flat.is_null().to_numpy(zero_copy_only=False).reshape(len(lists), -1).any(axis=1)
    codes = flat.fill_null(0).to_numpy(zero_copy_only=False).reshape(len(lists), -1)
    empty = ~codes.any(axis=1) & (codes.dtype == np.int8)
    problems = {int(row): "nothing but zeros" for row in np.flatnonzero(empty)}
    problems |= {int(row): "a missing number" for row in np.flatnonzero(holes)}
    problems |= {int(row): "no vector" for row in np.flatnonzero(missing)}
    if problems:  # the caller names the first of them, and no vector is used
        return np.zeros((len(lists), size), np.float32), dict(sorted(problems.items()))
    return decoded(codes, size), {}
