"""Vectors in a column of a Parquet file or in a .npy file: every one checked, read a block at a time or mapped.

A catalog says which label and split a vector has. file.py reads vectors together with all columns beside them.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proxygml.data.columns import EMBEDDING
from proxygml.data.vectors.checks import LARGEST_VECTOR, ROWS_AT_A_TIME, Floats, checked_matrix
from proxygml.errors import CatalogError, UserError, counted, did_you_mean
from proxygml.files import atomic_write, cache_folder, check_size, reserve_space
from proxygml.remote import local_file
from proxygml.urls import Place

_READ_AT_A_TIME = 2**20
"""Bytes of a column of a Parquet file."""


class CheckedBlock(NamedTuple):
    """Consecutive vectors of a source."""

    first: int
    """The row of the first one."""
    vectors: Floats
    """float16 where the source has that, else float32 (m, F); zeros in the rows that have a problem."""
    problems: Mapping[int, str]
    """What is wrong with which row, counted from the start of the source."""


@dataclass(frozen=True)
class VectorSource:
    """n vectors of F numbers in a file.

    Raises:
        CatalogError: the file is missing or cannot be read, or has no such column of vectors.
    """

    path: Place
    column: str = EMBEDDING
    """Of a Parquet file; a .npy file holds nothing but the vectors."""

    def __post_init__(self) -> None:
        _ = self.size  # raises where there is none

    @cached_property
    def file(self) -> Path:
        """The path, or that of a copy of what the URL holds."""
        return local_file(self.path, CatalogError)

    @property
    def is_npy(self) -> bool:
        return self.path.suffix.lower() == ".npy"

    @cached_property
    def rows(self) -> int:
        """n."""
        return len(self._npy) if self.is_npy else int(pq.read_metadata(self.file).num_rows)

    @cached_property
    def size(self) -> int:
        """F. Where lists may be of any length, the length that most of the first vectors have."""
        size = self._npy.shape[1] if self.is_npy else self._size_of_lists()
        if not 1 <= size <= LARGEST_VECTOR:
            raise CatalogError(
                f"{self.path} has vectors of {counted(size, 'number')}, but 1 to {LARGEST_VECTOR:,} are possible"
            )
        return int(size)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """float16 where the file has that, else float32."""
        kind = self._npy.dtype if self.is_npy else self._kind().value_type.to_pandas_dtype()
        return np.dtype(np.float16 if kind == np.float16 else np.float32)

    def blocks(self) -> Iterator[CheckedBlock]:
        """All vectors in their order, up to 16,384 at a time."""
        first = 0
        for vectors, problems in self._checked_parts():
            yield CheckedBlock(first, vectors, {first + row: problem for row, problem in problems.items()})
            first += len(vectors)

    def mapped(self) -> Floats:
        """All vectors (n, F), mapped into memory: read when they are used, shared by all processes.

        A Parquet file is first written as one file of plain numbers into the cache folder, once.

        Raises:
            CatalogError: a vector is missing, of another size, not finite or all zeros.
        """
        if self.is_npy:
            for block in self.blocks():
                self.check_rows(block.problems)
            return self._npy
        cached = self._cached_file()
        if not cached.exists():
            self._write_plain(cached)
        plain: Floats = np.load(cached, mmap_mode="r", allow_pickle=False)
        return plain

    @property
    def is_mapped(self) -> bool:
        """Whether the vectors can be mapped at once: `mapped` has found all of them good, and written its file."""
        return not self.is_npy and self._cached_file().exists()

    def _cached_file(self) -> Path:
        status = self.file.stat()
        facts = repr((str(self.file.resolve()), status.st_size, status.st_mtime_ns, self.column))
        return cache_folder("vectors") / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.npy"

    def _write_plain(self, path: Path) -> None:
        with atomic_write(path) as temporary:
            plain = np.lib.format.open_memmap(temporary, "w+", self.dtype, (self.rows, self.size))
            reserve_space(temporary)
            for block in self.blocks():
                self.check_rows(block.problems)
                plain[block.first : block.first + len(block.vectors)] = block.vectors
            plain.flush()

    def check_rows(self, problems: Mapping[int, str]) -> None:
        """Raise CatalogError where something is wrong with a row; see CheckedBlock.problems."""
        for row, problem in problems.items():
            raise CatalogError(
                f"{self.path} has {problem} in row {row}{self.name_of(row)}: correct it or leave the row out, as "
                "`proxygml prepare vectors --on_bad drop` does"
            )

    def name_of(self, row: int) -> str:
        """How a message names a row beside its number: by its `id`, or its `path`, where the file has them."""
        if self.is_npy:
            return ""
        names = pq.read_schema(self.file).names
        key = next((name for name in ("id", "path") if name in names and name != self.column), None)
        if key is None:
            return ""
        return f" ({key} {pq.read_table(self.file, columns=[key], partitioning=None)[key][row].as_py()})"

    def _checked_parts(self) -> Iterator[tuple[Floats, dict[int, str]]]:
        if self.is_npy:
            for start in range(0, self.rows, ROWS_AT_A_TIME):
                yield checked_matrix(np.asarray(self._npy[start : start + ROWS_AT_A_TIME]))
            return
        for batch in read_batches(self.file, [self.column]):
            yield checked_lists(batch.column(0), self.size)

    @cached_property
    def _npy(self) -> Floats:
        check_size(self.file, sys.maxsize, CatalogError)
        try:
            vectors: Floats = np.load(self.file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise CatalogError(f"there is no {self.path}") from None
        except (OSError, ValueError, OverflowError, EOFError) as error:
            raise CatalogError(f"{self.path} cannot be read as .npy: {error}") from error
        if not isinstance(vectors, np.ndarray):
            raise CatalogError(f"{self.path} is an archive of arrays (.npz), but must hold one: save it by numpy.save")
        if vectors.ndim != 2 or vectors.dtype.kind != "f":
            raise CatalogError(f"{self.path} holds {vectors.shape}, {vectors.dtype}: expected floats (n, F)")
        return vectors

    def _kind(self) -> Any:
        return vector_type(self.path, self.column, CatalogError)

    def _size_of_lists(self) -> int:
        kind = self._kind()
        if pa.types.is_fixed_size_list(kind):
            return int(kind.list_size)
        for batch in read_batches(self.file, [self.column]):
            lengths = pc.fill_null(pc.list_value_length(batch.column(0)), 0).to_numpy(zero_copy_only=False)
            if lengths.any():
                counts = np.bincount(lengths[lengths > 0])
                first = next(int(length) for length in lengths if length > 0)
                return first if counts[first] == counts.max() else int(counts.argmax())
        raise CatalogError(f"{self.path} has no vector in its column {self.column!r}: every cell is empty")


def read_batches(path: Path, columns: list[str] | None = None, rows: int = ROWS_AT_A_TIME) -> Iterator[Any]:
    """The rows of a Parquet file, up to so many at a time.

    Raises:
        CatalogError: what it holds cannot be read.
    """
    try:
        # By default, Arrow keeps all that it has read of the file until it is closed.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_READ_AT_A_TIME) as file:
            yield from file.iter_batches(rows, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{path} cannot be read as Parquet, it is damaged ({error}): write it again") from error


def vector_type(path: Place, column: str, error: type[UserError]) -> Any:
    """The Arrow type of a column of vectors in a Parquet file.

    Raises:
        UserError: of the type `error`; there is no such file, or no such column of vectors.
    """
    file = local_file(path, error)
    check_size(file, sys.maxsize, error)
    try:
        schema = pq.read_schema(file)
    except FileNotFoundError:
        raise error(f"there is no {path}; `proxygml embed` makes such files") from None
    except (OSError, pa.ArrowException) as found:
        raise error(f"{path} cannot be read as Parquet: {found}") from found
    fields = [field for field in schema if field.name == column]
    if not fields:
        lists = [field.name for field in schema if is_vector_type(field.type)]
        hint = did_you_mean(column, lists) if lists else "none of its columns is a list of floats"
        raise error(f"{path} has no column {column!r} of vectors: {hint}")
    if len(fields) > 1:
        raise error(f"{path} has {counted(len(fields), 'column')} {column!r}: rename all but one")
    if not is_vector_type(kind := fields[0].type):
        codes = b"proxygml" in (schema.metadata or {})
        hint = "convert it, to float32 for example, or name another column"
        if codes:
            hint = "`proxygml embed --dtype` wrote codes of vectors, which `index` and `search` read"
        raise error(f"{path} has {kind} in its column {column!r}: expected lists of floats, one vector a row: {hint}")
    return kind


def is_vector_type(kind: Any) -> bool:
    """Whether cells of this Arrow type are lists of floats."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def checked_lists(lists: Any, size: int) -> tuple[Floats, dict[int, str]]:
    """Lists of floats of Arrow as a matrix (m, size), and what is wrong with which of them; their rows are zeros."""
    lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    fits = lengths == size
    problems = {int(row): _length_problem(int(lengths[row]), size) for row in np.flatnonzero(~fits)}
    kept = lists if not problems else lists.filter(pa.array(fits))
    flat = kept.flatten()
    missing = None
    if flat.null_count:
        missing = flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, size).any(axis=1)
        flat = pc.fill_null(pc.cast(flat, pa.float32()), 0)
    found, wrong = checked_matrix(flat.to_numpy(zero_copy_only=False).reshape(-1, size))
    rows = np.flatnonzero(fits)
    problems |= {int(rows[row]): problem for row, problem in wrong.items()}
    if missing is not None:
        found = np.where(missing[:, None], found.dtype.type(0), found)
        problems |= {int(row): "a missing number" for row in rows[missing]}
    if len(found) == len(fits):
        return found, problems
    vectors = np.zeros((len(fits), size), found.dtype)
    vectors[fits] = found
    return vectors, dict(sorted(problems.items()))


def _length_problem(length: int, size: int) -> str:
    return "no vector" if length < 0 else f"a vector of {counted(length, 'number')} instead of {size}"
