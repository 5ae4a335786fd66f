"""Files and folders that are written completely or not at all, locks, and the cache folder."""

import ctypes
import errno
import os
import platform
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from proxygml.errors import OverwriteError, UserError, counted

if sys.platform != "win32":
    import fcntl

PathLike = str | os.PathLike[str]
"""What functions take for a path: text or a pathlib.Path."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)
"""The names that atomic_write and atomic_folder give."""

_REPLACED = re.compile(r"\.(.+)\.[0-9a-f]{8}\.old", re.DOTALL)
"""The names of folders that atomic_folder has moved out of the way, where it cannot swap two in one step."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
"""How a URL starts. One letter alone is a drive of Windows."""

_MILVUS_SCHEMES = ("http", "https", "tcp")

_FRESH_SECONDS = 60
"""A temporary file or folder that was written to so lately is left: its writer may be about to lock it."""

_EXCHANGE = 2
"""The flag of Linux's renameat2 and of macOS's renamex_np that swaps two names in one step."""

_HERE = -100
"""What renameat2 takes for paths that are relative to the working folder (AT_FDCWD)."""

_LONGEST_HOLDER = 1000
"""Bytes of what the holder of a lock writes about itself."""

ADVICE = {
    errno.ENOSPC: "make room on the disk, or choose another folder, and repeat the command",
    errno.EDQUOT: "make room within your quota, or choose another folder, and repeat the command",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose another place, or ask for the right to use this one",
    errno.EPERM: "choose another place, or ask for the right to use this one",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path, and make the folders it needs",
    errno.ENOTDIR: "a part of this path is a file: choose another place",
    errno.EISDIR: "it is a folder, but a file is needed: choose another name",
    errno.EEXIST: "choose another name",
    errno.EMFILE: "allow more open files (ulimit -n), or use fewer workers",
    errno.ENOMEM: "use smaller batches or fewer workers",
}
"""What to do about an error of the operating system."""


class _Named(Protocol):
    """A path, or a Url."""

    @property
    def suffix(self) -> str: ...


@contextmanager
def atomic_write(path: Path, *, tidy: bool = True) -> Iterator[Path]:
    """Hand out a temporary path beside `path`; when the block ends without an error, the file there replaces `path`.

    When the block raises, or the process dies, `path` is as it was before.

    Args:
        path: the file to write; its folder is made.
        tidy: first remove what killed processes have left in the folder (see remove_leftovers). Where many files are
            written to one folder, call that once instead.
    """
    check_local(path, "the file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    if tidy:
        remove_leftovers(path.parent)
    temporary = _temporary_name(path)
    with ExitStack() as held:
        try:
            with naming(path, temporary):
                temporary.touch()
                _hold(temporary, held)
                mode = (
                    temporary.stat().st_mode
                )  # as the user's umask has it; some writers make files only they may read
                yield temporary
                _hold(temporary, held)  # again: some writers put another file in its place
                temporary.chmod(mode)
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Hand out a new hidden folder beside `path`, and delete it when the block ends.

    After a kill, the next command that writes beside `path` deletes it (see remove_leftovers).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    temporary = _temporary_name(path)
    with ExitStack() as held:
        try:
            with naming(path, temporary):
                temporary.mkdir()
                _hold(temporary, held)
                yield temporary
        finally:
            _delete(temporary)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Hand out a temporary folder beside `path`; when the block ends without an error, it becomes `path`.

    When the block raises, or the process dies, what was at `path` is there as it was before. Where the system cannot
    swap two folders in one step, a process that dies between the two renames leaves the earlier folder under a hidden
    name, and the next command that writes beside `path` moves it back.

    Args:
        path: the folder to make.
        replace: whether a folder that is at `path` by then is replaced.

    Raises:
        OverwriteError: `replace` is False, and something is at `path` by then.
    """
    with temporary_folder(path) as temporary, ExitStack() as held:
        yield temporary
        _hold(temporary, held)  # again: another folder may have been put in its place
        os.utime(temporary)  # fresh, so that nobody takes it for a leftover once its lock has ended
        if not replace:
            _move(temporary, path)
        elif not path.exists() or not _swapped(temporary, path):
            _replace(temporary, path, held)


def remove_folder(path: Path) -> None:
    """Delete a folder so that it is never seen with a part of its files gone."""
    temporary = _temporary_name(path)
    path.rename(temporary)
    _delete(temporary)


def remove_leftovers(folder: Path, *, fresh: bool = False) -> None:
    """Remove the temporary files and folders that killed processes have left in a folder.

    A living process holds a lock on each of its own, which ends with the process. A folder that was moved out of the
    way by a process that died before it could replace it is moved back. Where the system has no such locks (Windows),
    nothing is removed.

    Args:
        folder: where to look.
        fresh: remove those of the last minute too. Only for who alone writes there: a file has no lock at first.
    """
    if sys.platform == "win32" or not folder.is_dir():
        return
    for leftover in [path for path in folder.iterdir() if path.name[0] == "."]:
        replaced = _REPLACED.fullmatch(leftover.name)
        if not replaced and not _TEMPORARY.fullmatch(leftover.name):
            continue
        with suppress(OSError), ExitStack() as held:  # another process holds it, or has removed it
            status = leftover.lstat()
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                continue
            if fresh or replaced or time.time() - status.st_mtime > _FRESH_SECONDS:
                fcntl.flock(_opened(leftover, held), fcntl.LOCK_EX | fcntl.LOCK_NB)
                if replaced and not (folder / replaced[1]).exists():
                    leftover.rename(folder / replaced[1])
                else:
                    _delete(leftover)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _delete(path: Path) -> None:
    """Delete a file, a link or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _move(folder: Path, path: Path) -> None:
    """Rename a folder; raise OverwriteError where something is at `path`."""
    try:
        if path.exists():  # an empty folder would be replaced
            raise FileExistsError
        folder.rename(path)
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno == errno.ENOTEMPTY:
            raise OverwriteError(f"another process has made {path} meanwhile: repeat the command") from error
        raise


def _swapped(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system, or the file system, cannot."""
    library = ctypes.CDLL(None, use_errno=True) if sys.platform in ("linux", "darwin") else None
    paths = os.fsencode(one), os.fsencode(other)
    if library is not None and hasattr(library, "renameat2"):
        return bool(library.renameat2(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0)
    if library is not None and hasattr(library, "renamex_np"):
        return bool(library.renamex_np(*paths, _EXCHANGE) == 0)
    return False


def _replace(folder: Path, path: Path, held: ExitStack) -> None:
    """Put a folder in the place of another one, in two steps."""
    old = folder.with_suffix(".old")
    if path.exists():
        _hold(path, held)
        path.rename(old)
    try:
        folder.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    _delete(old)


def _hold(temporary: Path, held: ExitStack) -> None:
    """Lock a temporary file or folder until `held` is closed, so that no other process takes it for a leftover."""
    if sys.platform == "win32":
        return
    if not temporary.exists():
        temporary.touch()  # another process was quicker
    with suppress(OSError):  # locked by the first call, or on a file system without locks
        fcntl.flock(_opened(temporary, held), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _opened(path: Path, held: ExitStack) -> int:
    """The descriptor of a file or folder, open until `held` is closed; OSError for a link."""
    descriptor = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW)
    held.callback(os.close, descriptor)
    return descriptor


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let errors of the operating system that name no file, such as that of a full disk, name this one.

    Args:
        path: the file or folder that is written.
        temporary: what stands for it meanwhile; an error that names this, or a file in it, names `path` instead.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        if isinstance(named, (str, bytes)) and temporary is not None and error.filename2 is None:
            named = None if Path(os.fsdecode(named)).is_relative_to(temporary) else named
        if named is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def translating_os_errors() -> Iterator[None]:
    """Turn an error of the operating system on a file or disk into a UserError: the path, what is wrong, what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in ADVICE:
            raise  # from the network or another program, whose own message says more
        place = " -> ".join(str(path) for path in (error.filename, error.filename2) if path is not None) or "a file"
        raise UserError(f"{place}: {os.strerror(error.errno)}: {ADVICE[error.errno]}") from error
    except ValueError as error:
        if str(error) != "embedded null byte":  # of open(), os.stat() and others, all with this message
            raise
        raise UserError(
            "a path holds a NUL character, which no file name can: check the paths that were given"
        ) from error


def local_path(place: PathLike, what: str) -> Path:
    """A path on this machine; see check_local."""
    check_local(place, what)
    return Path(place)


def local_paths(places: PathLike | Sequence[PathLike], what: str) -> tuple[Path, ...]:
    """One path on this machine, or several; see check_local."""
    several = [places] if isinstance(places, (str, os.PathLike)) else places
    return tuple(local_path(place, what) for place in several)


def check_local(place: object, what: str, kind: type[UserError] = UserError, *, gallery: bool = False) -> None:
    """Raise an error where a place is a URL: only paths are read and written, and `s3://x` would be a folder `s3:`.

    Args:
        place: what was given; only text and paths can be URLs.
        what: how the message calls it, such as `--out`.
        kind: the error to raise.
        gallery: whether the place is that of a gallery, which may also be in Milvus.
    """
    if not isinstance(place, (str, os.PathLike)):
        return
    text = os.fsdecode(place)
    found = _URL.match(text)
    if found is None or (gallery and found[1].lower() in _MILVUS_SCHEMES and text.startswith("//", found.end() - 1)):
        return
    url = f"{found[1]}://{text[found.end() :].lstrip('/')}"  # pathlib makes one slash of two
    taken = (
        "paths on this machine and the addresses of Milvus servers (http://HOST:19530)"
        if gallery
        else ("paths on this machine")
    )
    fix = "leave out file://" if found[1].lower() == "file" else "copy the files here, or mount the storage as a folder"
    raise kind(f"{what} is {url}, but only {taken} are taken: {fix}")


def check_size(path: Path, most: int, kind: type[UserError] = UserError) -> None:
    """Check a file before it is read whole: a device or a pipe never ends, and a huge file fills the memory.

    Args:
        path: what is there; nothing is checked where there is nothing.
        most: bytes that such a file can have.
        kind: the error to raise.

    Raises:
        UserError: of that kind; it is no ordinary file, or larger.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise kind(f"{path} is a folder, a device or a pipe, but must be an ordinary file")
    size = path.stat().st_size
    if size > most:
        raise kind(
            f"{path} has {counted(size, 'byte')}, but such a file has at most {most:,}: check that it is the right one"
        )


def reserve_space(path: Path) -> None:
    """Let a file that was just made of its full size have its room on the disk now.

    Else a file that is mapped into memory runs out of it in the middle of a write, and the process dies by a signal.

    Raises:
        OSError: there is not enough.
    """
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except AttributeError:  # not on every system
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise OSError(error.errno, error.strerror, str(path)) from error


def check_overwrite(path: Path, force: bool) -> None:
    """Raise OverwriteError when `path` is there already and `force` was not given."""
    if path.exists() and not force:
        raise OverwriteError(f"{path} is already there: choose another name, or give --force to replace it")


def check_ending(path: "_Named", *endings: str) -> None:
    """Raise UserError when the name does not end as a file of its kind does; `path` may be a Url too."""
    if path.suffix.lower() not in endings:
        expected = " or ".join(endings)
        raise UserError(f"{path} ends with {path.suffix or 'no suffix'}, but must be the name of a {expected} file")


@contextmanager
def exclusive_lock(lock: Path) -> Iterator[None]:
    """Hold this lock file for the length of the block; raise OverwriteError where another process holds it.

    The message names the process that holds the lock. The lock is free when that process ends, however it ends. A
    folder that is made for the lock, and that holds nothing else at the end, is removed again.
    """
    made = not lock.parent.exists()
    holder = lock.with_name(f"{lock.name}-holder")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock, timeout=0).acquire()
    except Timeout as error:
        raise OverwriteError(
            f"another process is writing {lock.parent} ({_holder(holder)}): wait until it has finished, or stop it"
        ) from error
    with ExitStack() as left:
        if made:
            left.callback(_remove_empty, lock.parent)
        left.enter_context(held)
        left.callback(_remove_lock, lock, holder, alone=made)
        with atomic_write(holder, tidy=False) as temporary:  # never through a link that is there under its name
            temporary.write_text(
                f"{os.getpid()} on {platform.node()}, since {datetime.now():%Y-%m-%d %H:%M}", encoding="utf-8"
            )
        yield


def _remove_lock(lock: Path, holder: Path, *, alone: bool) -> None:
    """Remove what says who holds a lock, and, where nothing else is beside it, the lock that this process holds."""
    holder.unlink(missing_ok=True)
    if alone and list(lock.parent.iterdir()) == [lock]:
        lock.unlink()


def _remove_empty(folder: Path) -> None:
    """Remove a folder if nothing is in it."""
    with suppress(OSError):
        folder.rmdir()


def _holder(path: Path) -> str:
    """What a lock's holder has written about itself; it may not have done so yet, or just have removed it."""
    with suppress(OSError, UnicodeDecodeError):
        if path.is_file() and path.stat().st_size <= _LONGEST_HOLDER:
            return path.read_text(encoding="utf-8")
    return "which has just started, or is about to end"


def cache_folder(purpose: str) -> Path:
    """The folder for what can be computed again, within the user's cache (on Linux ~/.cache, or XDG_CACHE_HOME)."""
    return user_cache_path("proxygml", appauthor=False) / purpose
