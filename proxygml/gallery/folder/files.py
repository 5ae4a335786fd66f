"""The files of a gallery's folder: how a state of the gallery is written, and how readers and a writer get along.

gallery.json names the files of a state and is replaced in one step. A writer puts new files beside the old ones, or
appends to the vectors beyond what any reader looks at; then it replaces gallery.json and deletes what is not named
there any more. What a gallery answers is gallery.py's.
"""

import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from proxygml.arrays import Block, Rows, Vectors
from proxygml.console import progress_bar
from proxygml.errors import GalleryError, OverwriteError, counted
from proxygml.files import atomic_write, naming
from proxygml.gallery.approximate import ApproximateIndex
from proxygml.gallery.folder.checksums import StoredFile, check_contents, check_sizes, stored_file
from proxygml.gallery.folder.item_file import read_items, write_items
from proxygml.gallery.folder.manifest import MANIFEST_BYTES, Manifest, manifest_text, parse_manifest
from proxygml.gallery.items.cells import joined
from proxygml.gallery.items.coercion import check_items, conformed
from proxygml.gallery.items.column_types import Schema
from proxygml.gallery.items.table import ItemTable
from proxygml.gallery.vectors import VectorRows, check_same_size, unit_vectors

MANIFEST = "gallery.json"

_PATTERNS = ("vectors-*.f32", "items-*.parquet", "index-*.faiss", ".*.faiss", ".*.tmp")
"""Files of a state, and what a stopped writer may leave: half an index, half a file."""

_NAMES = {"vectors": r"vectors-\w+\.f32", "items": r"items-\w+\.parquet", "index": r"(index-\w+\.faiss)?"}
"""What gallery.json may call the files."""

_ATTEMPTS = 10  # to read a gallery that changes meanwhile
_WRITTEN_AT_A_TIME = 16_384  # vectors


@dataclass(frozen=True)
class FolderManifest(Manifest):
    """What gallery.json says; the three names are those of files in the folder."""

    vectors: str = ""
    items: str = ""
    index: str = ""
    """Empty where the gallery has no approximate index."""

    files: Mapping[str, StoredFile] = field(default_factory=dict)
    """The sizes and checksums of these files."""

    @property
    def names(self) -> list[str]:
        """The names of the files: vectors, items, and the index where there is one."""
        return [name for name in (self.vectors, self.items, self.index) if name]


def check_gallery_folder(folder: Path, force: bool) -> None:
    """Raise OverwriteError when a gallery may not be put there."""
    if folder.is_dir():
        check_no_links(folder)
    if (folder / MANIFEST).exists():
        if not force:
            raise OverwriteError(f"{folder} is a gallery already: add to it with --add, or give --force to replace it")
        return
    ours = tuple(pattern.partition("*")[0] for pattern in _PATTERNS)  # of a build that was stopped
    if folder.exists() and any(not path.name.startswith(ours) for path in folder.iterdir()):
        raise OverwriteError(f"{folder} holds something that is no gallery: choose another name")


def read_manifest(folder: Path) -> FolderManifest:
    """What gallery.json says.

    Raises:
        GalleryError: it is missing, damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        found = f"it holds no {MANIFEST}" if folder.is_dir() else "there is no such folder"
        raise GalleryError(f"{folder} is no gallery: {found}; `proxygml index` makes one")
    check_no_links(folder)
    if (size := path.stat().st_size) > MANIFEST_BYTES:
        raise GalleryError(
            f"{path} has {counted(size, 'byte')}, but a gallery's has at most {MANIFEST_BYTES:,}: build it again"
        )
    try:
        manifest = parse_manifest(path.read_text(encoding="utf-8"), str(path), FolderManifest)
    except (OSError, UnicodeDecodeError) as error:
        raise GalleryError(f"{path} cannot be read ({error}): build the gallery again") from error
    for what, pattern in _NAMES.items():
        name = getattr(manifest, what)
        if not re.fullmatch(pattern, name, re.A):
            raise GalleryError(f"{path} names {name[:100]!r} as its {what}, which cannot be: build the gallery again")
    if set(manifest.files) != set(manifest.names) or (manifest.kind == "exact" and manifest.index):
        raise GalleryError(f"{path} states sizes of other files than its own: build the gallery again")
    return manifest


def check_no_links(folder: Path) -> None:
    """Raise GalleryError where something in a gallery's folder is a link: it would be written to, or deleted in."""
    hidden = [path for path in folder.glob(".*") if path.is_dir() and not path.is_symlink()]
    for path in (*folder.iterdir(), *(inside for parent in hidden for inside in parent.iterdir())):
        if path.is_symlink():
            raise GalleryError(f"{path} is a link, but a gallery's folder holds none: put the file itself there")


def replaced_generation(folder: Path) -> int:
    """The generation of the gallery that is to be replaced; 0 where there is none, or a damaged one."""
    try:
        return read_manifest(folder).generation
    except GalleryError:
        return 0


def read_state(folder: Path) -> tuple[FolderManifest, Vectors, pd.DataFrame, ApproximateIndex | None]:
    """The manifest, the vectors (mapped into memory), the item table with ids, and the index, all of one state.

    Raises:
        GalleryError: there is no gallery, or it is damaged.
    """
    for _ in range(_ATTEMPTS):  # a writer may delete the files between two of our steps, and name others
        manifest = read_manifest(folder)
        try:
            check_sizes(folder, manifest.files)
            vectors = mapped_vectors(folder, manifest)
            table = read_items(folder / manifest.items, manifest)
            index = _read_index(folder, manifest) if manifest.index else None
        except (FileNotFoundError, GalleryError) as error:
            if read_manifest(folder).generation != manifest.generation:
                continue
            if isinstance(error, GalleryError):
                raise
            raise GalleryError(f"{folder} lacks a file that its {MANIFEST} names: build it again") from error
        except (ValueError, OSError, KeyError) as error:
            raise GalleryError(f"{folder} is damaged ({error}): build it again") from error
        return manifest, vectors, table, index
    raise GalleryError(f"{folder} changes faster than it can be read: try again")


def _read_index(folder: Path, manifest: FolderManifest) -> ApproximateIndex:
    return ApproximateIndex.read(folder / manifest.index, manifest.kind, manifest.dimension, manifest.rows)


def check_files(folder: Path) -> None:
    """Raise GalleryError where the files of a gallery do not hold what was written, to the bit."""
    for _ in range(_ATTEMPTS):
        manifest = read_manifest(folder)
        try:
            return check_contents(folder, manifest.files)
        except (FileNotFoundError, GalleryError):
            if read_manifest(folder).generation == manifest.generation:
                raise
    raise GalleryError(f"{folder} changes faster than it can be read: try again")


def mapped_vectors(folder: Path, manifest: FolderManifest) -> Vectors:
    """The file of vectors as an array that is read where it is touched; the file cannot be changed through it.

    Raises:
        FileNotFoundError: a writer has replaced it meanwhile.
        GalleryError: it is too short.
    """
    shape = (manifest.rows, manifest.dimension)
    size = (folder / manifest.vectors).stat().st_size
    if size < 4 * manifest.rows * manifest.dimension:
        raise GalleryError(
            f"{folder / manifest.vectors} has {counted(size, 'byte')}, too few for {shape} vectors: build it again"
        )
    return np.memmap(folder / manifest.vectors, "<f4", "c", shape=shape).view(np.ndarray)


def unfinished_vectors(folder: Path) -> str:
    """The name of the vector file that a stopped build has left, or of a new one.

    Where gallery.json cannot be read, no file counts as left: a server may still read any of them.
    """
    named, left = "", sorted(path.name for path in folder.glob("vectors-*.f32") if not path.is_symlink())
    if (folder / MANIFEST).exists():
        try:
            named = read_manifest(folder).vectors
        except GalleryError:
            left = []
    left = [name for name in left if name != named]
    return left[0] if left else _new_name("vectors", "f32")


def write_blocks(blocks: Iterable[Block], path: Path, total: int | None) -> tuple[pd.DataFrame, Schema, int, str]:
    """Write the vectors of all blocks to a file, except those that it holds already.

    Returns:
        The item tables as one, its types, the size of the vectors, and a digest of all vectors.

    Raises:
        GalleryError: there are no rows, or the blocks do not fit together.
    """
    tables, dimension, digest, size = [], 0, hashlib.sha256(), 0
    schema: Schema = {}
    path.touch()
    with path.open("r+b") as file, progress_bar(disable=total is not None and total < _WRITTEN_AT_A_TIME) as bar:
        task = bar.add_task("Copying", total=total, note="")
        for given, items in blocks:
            vectors = unit_vectors(given)
            check_items(items, len(vectors))
            dimension = dimension or vectors.shape[1]
            check_same_size(vectors, dimension)
            part = vectors.astype("<f4").tobytes()
            table, schema = conformed(items, schema)
            tables.append(table)
            if file.read(len(part)) != part:
                with naming(path):
                    file.seek(size)
                    file.truncate()
                    file.write(part)
            digest.update(part)
            size += len(part)
            bar.advance(task, len(items))
        with naming(path):
            file.truncate(size)
            _flush(file)
    if not size:
        raise GalleryError(f"no items are left to build {path.parent} from")
    return joined(tables, schema).reset_index(drop=True), schema, dimension, digest.hexdigest()


def append_vectors(folder: Path, manifest: FolderManifest, vectors: VectorRows) -> FolderManifest:
    """Write the vectors that are not in the file yet, beyond what readers look at."""
    path = folder / manifest.vectors
    with naming(path), path.open("r+b") as file:
        file.truncate(4 * manifest.rows * manifest.dimension)  # what a stopped writer has left
        file.seek(0, os.SEEK_END)
        _write_rows(file, vectors, np.arange(manifest.rows, len(vectors)))
    return replace(manifest, rows=len(vectors))


def rewrite_vectors(folder: Path, manifest: FolderManifest, vectors: VectorRows, kept: Rows) -> FolderManifest:
    """Write the vectors of these rows to a new file."""
    name = _new_name("vectors", "f32")
    with naming(folder / name), (folder / name).open("wb") as file:
        _write_rows(file, vectors, kept)
    return replace(manifest, vectors=name, rows=len(kept), index="", generation=replaced_generation(folder))


def publish(folder: Path, manifest: FolderManifest, table: ItemTable, index: ApproximateIndex | None) -> FolderManifest:
    """Write items and index under new names, then gallery.json, which makes them the gallery; delete the old files.

    Args:
        folder: which holds the vectors already.
        manifest: names the index where it is written already.
        table: the items.
        index: the approximate index, if there is one.

    Returns:
        The manifest that was written.
    """
    items, index_name = _new_name("items", "parquet"), manifest.index
    with atomic_write(folder / items) as path:
        write_items(path, table)
    if index is not None and not index_name:
        index_name = _new_name("index", "faiss")
        with atomic_write(folder / index_name) as path:
            index.write(path)
    manifest = replace(manifest, items=items, index=index_name, generation=manifest.generation + 1)
    manifest = replace(manifest, files=_stored_files(folder, manifest))
    with atomic_write(folder / MANIFEST) as path:
        path.write_text(manifest_text(manifest), encoding="utf-8")
    _delete_old(folder, manifest)
    return manifest


def _stored_files(folder: Path, manifest: FolderManifest) -> dict[str, StoredFile]:
    """The sizes and checksums of the files of a state; of the vectors, what was appended is read alone."""
    size = 4 * manifest.rows * manifest.dimension
    files = {manifest.vectors: stored_file(folder / manifest.vectors, size, manifest.files.get(manifest.vectors))}
    for name in manifest.names[1:]:
        known = manifest.files.get(name)
        files[name] = known or stored_file(folder / name, (folder / name).stat().st_size)
    return files


def _delete_old(folder: Path, manifest: FolderManifest) -> None:
    """Delete the files of earlier states, and of stopped writers, as far as that is possible.

    The new state stands already: one that cannot be deleted must not make a writer undo it.
    """
    for pattern in _PATTERNS:
        for file in folder.glob(pattern):
            if file.name not in manifest.names:
                with suppress(OSError):
                    file.unlink()


def _new_name(kind: str, ending: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:8]}.{ending}"


def _write_rows(file: BinaryIO, vectors: VectorRows, rows: Rows) -> None:
    for start in range(0, len(rows), _WRITTEN_AT_A_TIME):
        file.write(vectors.take(rows[start : start + _WRITTEN_AT_A_TIME]).astype("<f4").tobytes())
    _flush(file)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
