"""Checksums of a gallery's files, kept in its manifest, so that a changed bit is noticed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from proxygml.errors import GalleryError, counted

_PART = 32 * 2**20
"""Bytes of each part that has a checksum: what is appended changes the last one only."""


@dataclass(frozen=True)
class StoredFile:
    """What a file of the gallery holds."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    size: Annotated[int, Field(ge=0, lt=2**60)] = 0
    """In bytes; a file may be longer, by what a stopped writer has appended."""

    sha256: Sequence[str] = ()
    """Of each part of 32 MiB."""


def stored_file(path: Path, size: int, before: StoredFile | None = None) -> StoredFile:
    """The checksums of a file's first `size` bytes; those of parts that were whole `before` are not computed again."""
    kept = [] if before is None else list(before.sha256[: before.size // _PART])
    with path.open("rb") as file:
        file.seek(len(kept) * _PART)
        for start in range(len(kept) * _PART, size, _PART):
            kept.append(_digest(file.read(min(_PART, size - start))))
    return StoredFile(size, kept)


def whole_parts(stored: StoredFile) -> int:
    """The bytes of a file that do not change any more while it grows."""
    return stored.size // _PART * _PART


def same_start(one: StoredFile, other: StoredFile, size: int) -> bool:
    """Whether the first bytes of both files, all in parts that are whole, are the same."""
    parts = -(-size // _PART)
    whole = min(whole_parts(one), whole_parts(other)) >= size
    return whole and list(one.sha256[:parts]) == list(other.sha256[:parts])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_sizes(folder: Path, files: Mapping[str, StoredFile]) -> None:
    """Raise GalleryError where a file is shorter than the manifest says; FileNotFoundError where one is gone."""
    for name, stored in files.items():
        size = (folder / name).stat().st_size
        if size < stored.size:
            raise GalleryError(
                f"{folder / name} has {counted(size, 'byte')} instead of {stored.size:,}: build the gallery again"
            )


def check_contents(folder: Path, files: Mapping[str, StoredFile]) -> None:
    """Raise GalleryError where a file does not hold what the manifest says."""
    check_sizes(folder, files)
    for name, stored in files.items():
        found = stored_file(folder / name, stored.size).sha256
        wrong = [place for place, (one, other) in enumerate(zip(found, stored.sha256, strict=False)) if one != other]
        if wrong or len(found) != len(stored.sha256):
            start = wrong[0] * _PART if wrong else 0
            raise GalleryError(
                f"{folder / name} has changed since it was written, in the {_PART:,} bytes from {start:,} on: restore "
                "it from a copy, or build the gallery again"
            )
