"""Reading, listing and writing what lies at URLs, through fsspec and its own settings for credentials.

fsspec is loaded when there is a URL. Its file systems are looked up for each call, never kept: they do not survive a
fork, and fsspec keeps one of each kind and process itself.
"""

import errno
import hashlib
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

from proxygml.disk_cache import DiskCache
from proxygml.errors import OverwriteError, UserError, counted
from proxygml.files import atomic_write, cache_folder, check_overwrite, temporary_folder
from proxygml.urls import PACKAGES, WEB, Place, Url

TRUSTED_SECONDS = 24 * 3600.0
"""A copy of an image stands for its URL for so long. Tables, vectors and models are looked at each time."""

_AT_A_TIME = 32
"""Requests for the facts of single files that wait for their answers together."""

_LISTED = 16
"""When facts of at least so many files of a folder are needed, the folder is listed."""

_CHUNK = 2**20

PAGE = 1000
"""Names that a store of the kind S3 gives at a time; it gives no more."""

# What file systems call what changes with a file's content; the first one that is there is taken.
_VERSIONS = ("etag", "md5hash", "content_md5", "content-md5", "generation", "blob_id")
_TIMES = ("lastmodified", "last_modified", "last-modified", "mtime", "updated", "created")


def read(url: Url, most: int, kind: type[UserError] = UserError) -> bytes:
    """The content of a file.

    Args:
        url: the file.
        most: bytes that it may have.
        kind: the error to raise.

    Raises:
        UserError: of that kind; it is not there, too large, or cannot be read.
    """
    with _translating(url, kind):
        files, path = _filesystem(url)
        if url.scheme in WEB:  # whose answers may be of any length
            with files.open(path, "rb", block_size=0) as stream:
                parts, size = [], 0
                while (part := stream.read(_CHUNK)) and size <= most:
                    parts.append(part)
                    size += len(part)
            content = b"".join(parts)
        else:
            content = bytes(files.cat_file(path))
    if len(content) > most:
        raise kind(f"{url} has more than {counted(most, 'byte')}: check that it is the right one")
    return content


def opened(url: Url, kind: type[UserError] = UserError) -> Any:
    """A file that can be read in pieces, each by one request.

    Raises:
        UserError: of that kind; it is not there, or cannot be read.
    """
    with _translating(url, kind):
        files, path = _filesystem(url)
        return files.open(path, "rb", cache_type="none")


def read_kept(url: Url, most: int, kind: type[UserError] = UserError) -> bytes:
    """As `read`, from a copy on the disk where there is one that is a day old at most; else one is made."""
    copies = _copies("images")
    path = copies.path(url, "image")
    content = copies.recent(path, TRUSTED_SECONDS)
    if content is None:
        content = read(url, most, kind)
        copies.keep(path, content)
    return content


def local_file(place: Place, kind: type[UserError] = UserError) -> Path:
    """A path on this machine with the content of a place: the path itself, or a copy of what a URL holds now.

    Raises:
        UserError: of that kind; it is not there, or cannot be read.
    """
    if isinstance(place, Path):
        return place
    with _translating(place, kind):
        files, path = _filesystem(place)
        facts = files.info(path)
        if facts["type"] == "directory":
            raise kind(f"{place} is a folder, but must be a file")
        # Where nothing says whether it has changed, it is fetched each time.
        version = _version(facts) or uuid.uuid4().hex
        copies = _copies("files")
        return copies.fetch(copies.path(f"{place}\0{version}", place.name or "file"), partial(_get, files, path))


def _get(files: Any, path: str, target: Path, most: int | None = None) -> None:
    """Copy a file; OSError as soon as more bytes have come than it may have, where the store did not say how many."""
    from fsspec.callbacks import NoOpCallback  # noqa: PLC0415

    class Counter(NoOpCallback):  # type: ignore[misc]
        def call(self, *_: object, **__: object) -> None:
            if most is not None and self.value > most:
                raise OSError(f"it has more than {counted(most, 'byte')}, the most that such a file has")

    files.get_file(path, str(target), callback=Counter())


def local_folder(url: Url, names: Mapping[str, int], kind: type[UserError] = UserError) -> Path:
    """A folder on this machine with copies of those of these files that a folder at a URL has now.

    Args:
        url: of the folder.
        names: of the files, and the bytes that each may have.
        kind: the error to raise.

    Raises:
        UserError: of that kind; one cannot be read or is larger, or they were changed while they were read.
    """
    with _translating(url, kind):
        versions = _versions(url, names, kind)
        copies = _copies("files")
        key = "\0".join([url, *(f"{name} {version or uuid.uuid4().hex}" for name, version in versions.items())])
        files, path = _filesystem(url)
        for name in versions:
            copies.fetch(copies.path(key, name), partial(_get, files, f"{path}/{name}", most=names[name]))
        if _versions(url, names, kind) != versions:
            raise kind(f"{url} was changed while it was read: repeat the command")
        return copies.path(key, "any").parent


def _versions(url: Url, names: Mapping[str, int], kind: type[UserError]) -> dict[str, str]:
    """The version of each of the files that are there, none larger than it may be."""
    facts = {name: _facts(Url(f"{url}/{name}"), UserError) for name in names}
    for name, most in names.items():
        found = facts[name]
        if found is not None and (found.get("size") or 0) > most:
            raise kind(f"{url}/{name} has {counted(found['size'], 'byte')}, but such a file has at most {most:,}")
    return {name: _version(found) for name, found in facts.items() if found is not None}


def exists(place: Place, kind: type[UserError] = UserError) -> bool:
    """Whether something is at a place.

    Raises:
        UserError: of that kind; the store does not answer, or refuses to.
    """
    return place.exists() if isinstance(place, Path) else _facts(place, kind) is not None


def is_folder(url: Url, kind: type[UserError] = UserError) -> bool:
    """Whether something at a URL is a folder; False where nothing is there."""
    facts = _facts(url, kind)
    return facts is not None and facts["type"] == "directory"


def _facts(url: Url, kind: type[UserError]) -> Mapping[str, Any] | None:
    with _translating(url, kind):
        files, path = _filesystem(url)
        with suppress(FileNotFoundError):
            facts: Mapping[str, Any] = files.info(path)
            return facts
    return None


def files_below(url: Url, kind: type[UserError] = UserError) -> Iterator[str]:
    """The names of all files below a folder, at any depth, as they come, relative to it with slashes.

    Object stores of the kind S3 are read in pages of 1,000 names, all others folder by folder.

    Raises:
        UserError: of that kind; it cannot be listed.
    """
    with _translating(url, kind):
        for name, _ in _listed(url, deep=True):
            yield name


def names_in(folder: Place, kind: type[UserError] = UserError) -> list[str]:
    """The sorted names of what is in a folder, at a URL of its files alone; none where there is no such folder.

    Raises:
        UserError: of that kind; it cannot be listed.
    """
    if isinstance(folder, Path):
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    with _translating(folder, kind):
        return sorted(name for name, _ in _listed(folder, deep=False))


def remove_file(place: Place) -> None:
    """Delete a file, if it is there.

    Raises:
        UserError: it cannot be deleted.
    """
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
        return
    with _translating(place, UserError, "deleted"), suppress(FileNotFoundError):
        files, path = _filesystem(place)
        files.rm_file(path)


def stamps(urls: Sequence[Url]) -> list[int]:
    """For each file a number above 0 that changes when the file does; 0 where there is none, or it does not answer."""
    found: dict[Url, int] = {}
    folders: defaultdict[Url, list[Url]] = defaultdict(list)
    for url in urls:
        folders[url.parent].append(url)
    single = []
    for folder, inside in folders.items():
        if len(inside) < _LISTED or folder.scheme in WEB:
            single += inside
            continue
        wanted = {url.name: url for url in inside}
        with suppress(UserError), _translating(folder, UserError):
            found |= {wanted[name]: _stamp(facts) for name, facts in _listed(folder, deep=False) if name in wanted}
    if single:
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            found |= zip(single, pool.map(_single_stamp, single), strict=True)
    return [found.get(url, 0) for url in urls]


def _single_stamp(url: Url) -> int:
    try:
        facts = _facts(url, UserError)
    except UserError:
        return 0
    return 0 if facts is None else _stamp(facts)


def _stamp(facts: Mapping[str, Any]) -> int:
    text = _version(facts) or f"{_known(facts).get('size')}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") + 1


def _version(facts: Mapping[str, Any]) -> str:
    """What tells a state of a file from others; empty where the file system does not say."""
    known = _known(facts)
    for key in (*_VERSIONS, *_TIMES):
        value = known.get(key)
        if value:
            text = str(value.timestamp() if isinstance(value, datetime) else value).strip('"')
            return f"{known.get('size')} {text}"
    return ""


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key.lower(): value for key, value in facts.items()}


def _listed(url: Url, deep: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The files in a folder, or below it too: their names, relative to it, and facts."""
    files, path = _filesystem(url)
    if url.scheme in WEB:
        raise UserError(f"{url} is an address of a web server, which lists no folders: give a catalog of the images")
    if PACKAGES[url.scheme] == "s3fs":
        yield from _s3_objects(files, path, deep)
        return
    files.invalidate_cache()
    for folder, _, inside in files.walk(path, maxdepth=None if deep else 1, detail=True):
        start = str(folder).strip("/").removeprefix(str(path).strip("/")).strip("/")
        for name, facts in inside.items():
            yield f"{start}/{name}" if start else name, facts


def _s3_objects(files: Any, path: str, deep: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    bucket, prefix, _ = files.split_path(path)
    prefix = f"{prefix}/" if prefix else ""
    arguments = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE} | ({} if deep else {"Delimiter": "/"})
    while True:
        page = files.call_s3("list_objects_v2", **arguments)
        for facts in page.get("Contents", ()):
            name = facts["Key"][len(prefix) :]
            if name and not name.endswith("/"):  # an empty object that stands for a folder
                yield name, facts
        if not page.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = page["NextContinuationToken"]


@contextmanager
def written(place: Place, *, tidy: bool = True) -> Iterator[Path]:
    """As files.atomic_write, for a place that may be a URL: the file is put there, whole, when the block has ended.

    Raises:
        UserError: it cannot be written.
    """
    if isinstance(place, Path):
        with atomic_write(place, tidy=tidy) as temporary:
            yield temporary
        return
    with temporary_folder(cache_folder("uploads") / place.name) as folder:
        yield folder / place.name
        upload(folder / place.name, place)


def upload(file: Path, url: Url) -> None:
    """Put a file at a URL, where it is seen when it is whole.

    Object stores do that themselves; elsewhere, it gets its name last.

    Raises:
        UserError: it cannot be written.
    """
    with _translating(url, UserError, "written"):
        files, path = _filesystem(url)
        if url.scheme != "sftp":
            files.put_file(str(file), path)
            return
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            files.put_file(str(file), temporary)
            files.mv(temporary, path)
        except BaseException:
            with suppress(Exception):
                files.rm_file(temporary)
            raise


def check_free(place: Place, force: bool) -> None:
    """Check that a file can be written at a place, before it is computed.

    Raises:
        OverwriteError: something is there already, and `force` was not given.
        UserError: nothing can be written there.
    """
    if isinstance(place, Path):
        check_overwrite(place, force)
        return
    if place.scheme in WEB:
        raise UserError(f"{place} is an address of a web server, where nothing can be written: choose another place")
    if exists(place) and not force:
        raise OverwriteError(f"{place} is already there: choose another name, or give --force to replace it")
    with _translating(place, UserError, "written"):
        files, path = _filesystem(place)
        probe = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        files.pipe_file(probe, b"")
        with suppress(Exception):  # one may have the right to write, but not to delete
            files.rm_file(probe)


def _filesystem(url: Url) -> tuple[Any, str]:
    """The file system of a URL, with the settings of its environment, and how it calls the place.

    Not by fsspec's own function for that, for which a name with `::` is several URLs.
    """
    import fsspec  # noqa: PLC0415

    kind = fsspec.get_filesystem_class(url.scheme)
    return fsspec.filesystem(url.scheme, **kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)


def _copies(purpose: str) -> DiskCache:
    return _cache_in(cache_folder(purpose))


@cache
def _cache_in(folder: Path) -> DiskCache:
    return DiskCache(folder)


@contextmanager
def _translating(url: Url, kind: type[UserError], done: str = "read") -> Iterator[None]:
    """Turn what a file system raises, each its own, into an error of that kind that names the URL."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except ImportError as error:
        package = PACKAGES[url.scheme]
        raise kind(f"{url}: {url.scheme}:// needs the package {package}: pip install {package}") from error
    except FileNotFoundError as error:
        if done == "read":
            raise kind(f"there is no {url}") from error
        raise kind(f"{url} cannot be {done}: there is no such bucket or folder") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise  # of this machine's disk, which holds the copies
        reason = str(error) or type(error).__name__
        raise kind(f"{url} cannot be {done}: {reason}") from error
