"""Files that are written whole or not at all, and where files lie that may be thrown away."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from proxygml.errors import OverwriteError, UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Hand out a temporary path beside `path`; when the block ends well, it takes the place of `path` in one step.

    When the block raises, or the process dies, `path` is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; some writers make files that only they may read
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_overwrite(path: Path, force: bool) -> None:
    """Raise OverwriteError when `path` is there already and `force` was not given."""
    if path.exists() and not force:
        raise OverwriteError(f"{path} is already there: choose another name, or give --force to replace it")


def check_ending(path: Path, *endings: str) -> None:
    """Raise UserError when the name does not end as a file of its kind does."""
    if path.suffix.lower() not in endings:
        expected = " or ".join(endings)
        raise UserError(f"{path} ends with {path.suffix or 'no suffix'}, but must be the name of a {expected} file")


@contextmanager
def exclusive_lock(lock: Path) -> Iterator[None]:
    """Be the only process inside such a block with this lock file; raise OverwriteError where another one is.

    The lock goes with the process, however that ends.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock, timeout=0).acquire()
    except Timeout as error:
        raise OverwriteError(f"another process is writing {lock.parent}: wait until it has finished") from error
    with held:
        yield


def cache_folder(purpose: str) -> Path:
    """The folder for what can be computed again, within the user's cache (on Linux ~/.cache, or XDG_CACHE_HOME)."""
    return user_cache_path("proxygml", appauthor=False) / purpose
