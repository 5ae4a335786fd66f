"""Copies of remote files on this machine's disk, within a bound."""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from proxygml.errors import UserError
from proxygml.files import atomic_write

if sys.platform != "win32":
    import fcntl

SIZE_VARIABLE: Final = "PROXYGML_CACHE_GB"
DEFAULT_GB = 50.0

_SHARE = 64
"""When a process has added this part of the bound, it looks at the whole folder again."""

_FULL, _TRIMMED = 1.0, 0.8
"""Parts of the bound: above the first one, the copies that were not used for longest are deleted down to the second."""

_held: dict[Path, int] = {}
"""The copies that this process uses, and the descriptors that keep others from deleting them."""


def largest_size() -> int:
    """Bytes that the copies may take in all: PROXYGML_CACHE_GB, 50 GB by default; 0 keeps no images.

    Raises:
        UserError: the variable is no number of 0 or more.
    """
    text = os.environ.get(SIZE_VARIABLE, str(DEFAULT_GB))
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not 0 <= size < float("inf"):
        raise UserError(f"{SIZE_VARIABLE} is {text!r}, but must be a number of gigabytes, 0 or more")
    return int(size * 1e9)


class DiskCache:
    """Copies in one folder, each under a key; any number of processes may share it.

    Args:
        folder: of the user's cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._added: int | None = None  # since the last look at the folder; None before the first
        self._full = False

    def path(self, key: str, name: str) -> Path:
        """Where the copy for a key is, or would be: a file of that name in a folder of the key's own."""
        digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
        return self.folder / digest[:2] / digest / name

    def recent(self, path: Path, seconds: float) -> bytes | None:
        """The content of a copy that was made so lately; None where there is none."""
        with suppress(OSError):
            made = path.stat().st_mtime
            if time.time() - made < seconds:
                content = path.read_bytes()
                os.utime(path, (time.time(), made))  # used now; made when it was
                return content
        return None

    def keep(self, path: Path, content: bytes) -> None:
        """Write a copy, where there is room: nothing that was used by this run makes room for it."""
        if len(content) > largest_size() or not self._has_room(len(content)):
            return
        # Without a copy, on a full disk for example, it works as well.
        with suppress(OSError), atomic_write(path, tidy=False) as temporary:
            temporary.write_bytes(content)

    def fetch(self, path: Path, write: Callable[[Path], None]) -> Path:
        """The copy, made by `write` unless it is there; it stays until this process ends."""
        hold(path)
        if not path.is_file():
            self._has_room(0)
            with atomic_write(path, tidy=False) as temporary:
                write(temporary)
            hold(path)
        with suppress(OSError):
            os.utime(path, (time.time(), path.stat().st_mtime))
        return path

    def _has_room(self, size: int) -> bool:
        bound = largest_size()
        if self._added is None or self._added > bound // _SHARE:
            self._full = self._trim(bound) > bound
            self._added = 0
        self._added += size
        return not self._full

    def _trim(self, bound: int) -> int:
        """Delete what was not used for longest, where there is too much; the bytes that are left."""
        copies = [(status.st_atime, status.st_size, path) for path, status in _files(self.folder)]
        total = sum(size for _, size, _ in copies)
        if total <= bound * _FULL:
            return total
        started = _started()
        for used, size, path in sorted(copies):
            if total <= bound * _TRIMMED or used >= started:
                break
            if _delete_unused(path):
                total -= size
        return total


def hold(path: Path) -> None:
    """Keep other processes from deleting a copy, where it is there, until this process ends."""
    if sys.platform == "win32" or path in _held:
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _held[path] = descriptor


def _delete_unused(path: Path) -> bool:
    """Delete a copy that no process holds; False where one does."""
    if path in _held:
        return False
    try:
        if sys.platform != "win32":
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)
        else:
            path.unlink()
        path.parent.rmdir()
    except OSError:
        return not path.exists()
    return True


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                path = Path(parent) / name
                found.append((path, path.stat()))
    return found


def _started() -> float:
    """When this process began, seconds since the epoch."""
    import psutil  # noqa: PLC0415  (only where a cache is full)

    return float(psutil.Process().create_time())
