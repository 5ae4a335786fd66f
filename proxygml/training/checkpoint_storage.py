"""The folder of a checkpoint: tensors that processes hold whole or in part, saved and loaded by all of them together.

    epoch-0003/
      checkpoint.json                       what each tensor is, which file holds which of its rows, and other values
      part-00000-of-00002.safetensors       what process 0 wrote: all that processes share, and its own rows
      part-00001-of-00002.safetensors       the rows of process 1

torch.distributed.checkpoint does the planning: each process reads just the rows that it needs, also where another
number of processes wrote them, and an error of one process is raised by all. Its own file formats are not used: they
unpickle their metadata, and a pickle can run any code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load as load_together
from torch.distributed.checkpoint.state_dict_saver import save as save_together
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from proxygml.errors import RunError
from proxygml.files import check_size, remove_folder, sync_folder
from proxygml.training.tensor_file import TYPES, row_blocks, source_of, write_tensor_file

FORMAT = 1
INDEX = "checkpoint.json"
_PART = re.compile(r"part-\d{5,}-of-\d{5,}\.safetensors")

LARGEST_INDEX = 2**28
"""Bytes of checkpoint.json: thousands of tensors in thousands of parts."""

_MOST_NUMBERS = 2**60  # in a tensor: more bytes than PyTorch could count

_TYPES_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in TYPES}


@dataclass(frozen=True)
class LocalRows:
    """What this process holds of a tensor.

    Args:
        tensor: (rows, ...) of any device.
        start: the number of its first row among all rows.
        total: how many rows all processes hold together, each of them other ones. None: every process holds the same
            whole tensor.
    """

    tensor: Tensor
    start: int = 0
    total: int | None = None

    @property
    def chunk(self) -> ChunkStorageMetadata:
        """Its place in the whole tensor."""
        offsets = (self.start, *[0] * (self.tensor.dim() - 1)) if self.tensor.dim() else ()
        return ChunkStorageMetadata(torch.Size(offsets), self.tensor.shape)

    @property
    def shape(self) -> torch.Size:
        """Of the whole tensor."""
        return self.tensor.shape if self.total is None else torch.Size((self.total, *self.tensor.shape[1:]))


@dataclass(frozen=True)
class Part:
    """LocalRows of a tensor in a file of a checkpoint."""

    file: str
    start: int
    rows: int


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint; one without dimensions has a single part of 0 rows."""

    dtype: torch.dtype
    shape: torch.Size
    parts: tuple[Part, ...]

    def chunk(self, part: Part) -> ChunkStorageMetadata:
        """The place of a part in the whole tensor."""
        if not self.shape:
            return ChunkStorageMetadata(torch.Size(()), torch.Size(()))
        offsets = (part.start, *[0] * (len(self.shape) - 1))
        return ChunkStorageMetadata(torch.Size(offsets), torch.Size((part.rows, *self.shape[1:])))


@dataclass(frozen=True)
class Index:
    """The content of checkpoint.json: the tensors, and values that are no tensors."""

    tensors: dict[str, Stored]
    values: dict[str, Any]


def save(folder: Path, tensors: Mapping[str, LocalRows], values: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; all processes of the default group call this together.

    Args:
        folder: the checkpoint's own; it must be on a file system that all processes see. Replaced where it is there.
        tensors: the same names on each process.
        values: what JSON can hold; those of the first process are kept.

    Raises:
        OSError: the folder cannot be written to.
        RunError: a process does not see what another wrote.
    """
    writer, planner = _Writer(folder, values), _SavePlanner()
    _together(lambda: save_together(dict(tensors), storage_writer=writer, planner=planner))


def load(folder: Path, index: Index, tensors: Mapping[str, LocalRows]) -> None:
    """Fill tensors with what a checkpoint holds of them; all processes of the default group call this together.

    Args:
        folder: the checkpoint's own.
        index: what read_index found there.
        tensors: to be filled in place; their names and whole shapes must be those of the index.

    Raises:
        RunError: a file is missing or damaged.
    """
    reader, planner = _Reader(folder, index), _LoadPlanner()
    _together(lambda: load_together(dict(tensors), storage_reader=reader, planner=planner))


def read_index(folder: Path) -> Index:
    """The index of a checkpoint, checked: every row of every tensor lies in one file of the folder.

    Raises:
        RunError: it is missing or damaged, or of another format.
    """
    path = folder / INDEX
    check_size(path, LARGEST_INDEX, RunError)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise RunError(f"{path} has format {content['format']!r}, but this version of proxygml reads {FORMAT}")
        tensors = {name: _stored(entry) for name, entry in content["tensors"].items()}
        return Index(tensors, dict(content["values"]))
    except (ArithmeticError, AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path} cannot be read ({type(error).__name__}: {error}): start another run") from error


def read_rows(folder: Path, name: str, stored: Stored, part: Part, rows: slice) -> Tensor:
    """Some rows of a part of a tensor, counted within the part, on the CPU; for one without dimensions, the tensor.

    Raises:
        RunError: the file is missing or damaged, or holds another tensor.
    """
    path = folder / part.file
    try:
        with safe_open(path, framework="pt") as file:
            found = file.get_slice(name)
            shape, dtype = tuple(stored.chunk(part).sizes), TYPES[stored.dtype]
            if tuple(found.get_shape()) != shape or found.get_dtype() != dtype:
                raise RunError(
                    f"{path}: {name} is {found.get_dtype()} of shape {tuple(found.get_shape())}, but {INDEX} says "
                    f"{dtype} of {shape}: it is of another checkpoint"
                )
            tensor: Tensor = found[rows] if shape else file.get_tensor(name)
            return tensor
    except RunError:
        raise
    except Exception as error:  # of the library's own kind, or of the operating system
        raise RunError(f"{path} cannot be read ({error}): the checkpoint is not whole") from error


def _stored(entry: Mapping[str, Any]) -> Stored:
    """A tensor of the index, checked."""
    dtype, sizes = _TYPES_BY_NAME[entry["dtype"]], entry["shape"]
    if not all(type(size) is int and size >= 0 for size in sizes) or max([*sizes, prod(sizes)]) > _MOST_NUMBERS:
        raise ValueError(f"a tensor cannot have the shape {sizes}")
    shape = torch.Size(sizes)
    parts = tuple(Part(str(part["file"]), int(part["start"]), int(part["rows"])) for part in entry["parts"])
    parts = tuple(sorted(parts, key=lambda part: part.start))
    end = 0
    for part in parts:
        if not _PART.fullmatch(part.file):
            raise ValueError(f"{part.file!r} is no name of a part")
        if part.start != end or part.rows < 0:
            raise ValueError(f"rows {end} to {part.start} are missing or twice there")
        end += part.rows
    if not parts or end != (shape[0] if shape else 0):
        raise ValueError(f"its parts hold {end} rows, but its shape is {tuple(shape)}")
    return Stored(dtype, shape, parts)


def _together(work: Callable[[], object]) -> None:
    """Save or load with all processes; where some of them fail, raise the first one's own error on each."""
    with warnings.catch_warnings():
        # PyTorch warns a single process that it is one.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        try:
            work()
        except CheckpointException as error:
            rank, (first, _) = min(error.failures.items())
            if isinstance(first, FileNotFoundError) and rank > 0:
                raise RunError(
                    f"process {rank} does not find {first.filename}, which process 0 made: put the run folder on a "
                    "file system that all machines share"
                ) from error
            raise first from error


class _SavePlanner(SavePlanner):
    """Plans which process writes what: its own rows, and the first one also what all hold alike."""

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        self.tensors: dict[str, LocalRows] = state_dict
        self.is_first = is_coordinator

    def create_local_plan(self) -> SavePlan:
        return SavePlan([_write_item(name, rows) for name, rows in self.tensors.items() if self._is_mine(rows)])

    def _is_mine(self, rows: LocalRows) -> bool:
        return self.is_first if rows.total is None else len(rows.tensor) > 0

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans: tuple[list[SavePlan], Metadata] = create_default_global_save_plan(all_plans)
        return plans

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self.tensors[write_item.index.fqn].tensor


def _write_item(name: str, rows: LocalRows) -> WriteItem:
    chunk, properties = rows.chunk, TensorProperties(dtype=rows.tensor.dtype)
    data = TensorWriteData(chunk=chunk, properties=properties, size=rows.shape)
    return WriteItem(MetadataIndex(name, chunk.offsets), WriteItemType.SHARD, tensor_data=data)


class _LoadPlanner(LoadPlanner):
    """Plans what a process reads: the rows that it holds, from whichever files they are in."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        assert metadata is not None
        self.tensors: dict[str, LocalRows] = state_dict
        self.stored = metadata.state_dict_metadata

    def create_local_plan(self) -> LoadPlan:
        items: list[ReadItem] = []
        for name, rows in self.tensors.items():
            if rows.tensor.numel():
                items += create_read_items_for_chunk_list(name, self.stored[name], [rows.chunk])  # type: ignore[arg-type]
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        raise NotImplementedError("a checkpoint holds tensors alone")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        tensor = self.tensors[read_item.dest_index.fqn].tensor.detach()
        if tensor.dim() == 0:
            return tensor
        return tensor.narrow(0, read_item.dest_offsets[0], read_item.lengths[0])

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing is left to do: the rows were read into the tensor itself."""


class _Writer(StorageWriter):
    """Writes each process's part to a temporary folder, which gets its name when all parts are on the disk."""

    def __init__(self, folder: Path, values: Mapping[str, Any]) -> None:
        self.folder = folder
        self.temporary = temporary_of(folder)
        self.values = values

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one checkpoint to the next: each has an object of its own."""

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None:
        if is_coordinator:  # before any process writes
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        names = [f"part-{number:05d}-of-{len(plans):05d}.safetensors" for number in range(len(plans))]
        return [replace(plan, storage_data=name) for plan, name in zip(plans, names, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        if plan.items:
            tensors = {item.index.fqn: source_of(planner.resolve_data(item)) for item in plan.items}  # type: ignore[arg-type]
            write_tensor_file(self.temporary / plan.storage_data, tensors)
        return _finished([WriteResult(item.index, 0, plan.storage_data) for item in plan.items])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Called by the first process alone, when all have written."""
        files = {(result.index.fqn, result.index.offset): result.storage_data for part in results for result in part}
        tensors = {}
        for name, stored in metadata.state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata)
            parts = [
                {
                    "file": files[name, chunk.offsets],
                    "start": chunk.offsets[0] if chunk.offsets else 0,
                    "rows": chunk.sizes[0] if chunk.sizes else 0,
                }
                for chunk in stored.chunks
            ]
            dtype = str(stored.properties.dtype).removeprefix("torch.")
            tensors[name] = {"dtype": dtype, "shape": list(stored.size), "parts": parts}
        content = {"format": FORMAT, "values": self.values, "tensors": tensors}
        with (self.temporary / INDEX).open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.temporary)
        if self.folder.exists():
            remove_folder(self.folder)
        self.temporary.rename(self.folder)
        sync_folder(self.folder.parent)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class _Reader(StorageReader):
    """Reads rows from the parts of a checkpoint."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        self.index = index

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one checkpoint to the next: each has an object of its own."""

    def read_metadata(self) -> Metadata:
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=stored.dtype), stored.shape, [stored.chunk(part) for part in stored.parts]
                )
                for name, stored in self.index.tensors.items()
            }
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        """Nothing is left to do: the index was read before."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            self._read(item, planner)
        return _finished(None)

    def _read(self, item: ReadItem, planner: LoadPlanner) -> None:
        name, target = item.storage_index.fqn, planner.resolve_tensor(item)
        stored, number = self.index.tensors[name], item.storage_index.index
        assert number is not None
        part = stored.parts[number]
        if target.dim() == 0:
            target.copy_(read_rows(self.folder, name, stored, part, slice(0)))
            return
        start = item.storage_offsets[0]
        for rows in row_blocks(target.shape, target.dtype):
            target[rows] = read_rows(self.folder, name, stored, part, slice(start + rows.start, start + rows.stop)).to(
                target.device
            )

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def temporary_of(folder: Path) -> Path:
    """Where a checkpoint is written until it is whole. A killed process may leave it; the next one removes it."""
    return folder.with_name(f".{folder.name}.tmp")


def _finished(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
