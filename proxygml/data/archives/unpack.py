"""Unpacking downloads: zip and tar archives from untrusted places, into a folder that is complete or not there at all.

Only plain files and folders are ever written. Links and devices are refused, because no data set of images needs them.
"""

import json
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from proxygml.console import note, progress_bar, warn
from proxygml.data.archives.names import is_of_a_file_manager, tar_name, zip_name
from proxygml.data.images.files import Kind, LeftOut
from proxygml.data.images.folders import ImageFolders
from proxygml.errors import DatasetError, counted, first_few
from proxygml.urls import Place

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Photos hardly shrink and small drawings shrink little: an archive that grows more than this is meant to fill the disk.
MAX_GROWTH = 200
FREE_GROWTH = 2**30
MIN_BYTES_PER_MEMBER = 16
FREE_MEMBERS = 10_000

_BLOCK = 2**20
_MEBIBYTE = 2**20
_DAMAGED = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
_LISTS = (".mat", ".txt")
_DEPTHS = ("", "*/", "*/*/")


@dataclass(frozen=True)
class Member:
    """One file or folder of an archive, as the archive describes it; nothing has been checked yet."""

    name: str
    kind: str
    """`file` or `folder`; or another kind, which is refused."""
    content: IO[bytes] | None = None
    size: int = 0
    position: int = 0
    """Bytes of the archive that lie before the member's end, for the progress bar."""
    name_is_known: bool = True
    """False where the archive does not say in which characters the name is written."""


def is_archive(path: Place) -> bool:
    """Whether the name is that of an archive that can be unpacked."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def unpacked(root: Path, beside: Path, known: Mapping[str, str], force: bool = False) -> Path:
    """The folder to read `root` from: `root` itself, or `beside`, laid out like it, with its archives unpacked.

    A folder that was unpacked from the same archives is used as it is. Where `beside` holds other ones, a new folder is
    made (see ImageFolders). Known archives inside an archive are unpacked too.

    Args:
        root: An archive, or a folder with or without known archives in it (at most two folders below).
        beside: Where to unpack.
        known: The archives that a folder may hold, without their suffixes, and the folder that each unpacks to: one
            whose folder is there already stays packed.
        force: Whether a new folder may be made where `beside` was unpacked from other archives.

    Raises:
        DatasetError: An archive is damaged, or holds what may not be unpacked (see `unpack`).
        OverwriteError: `beside` is there and holds something else.
    """
    archives = [root] if root.is_file() else _packed(root, known)
    if not archives:
        return root
    origin = json.dumps([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in archives])
    folders = ImageFolders(beside)
    if (made := folders.made_from(origin)) is not None:
        if root.is_dir():
            _copy_lists(root, made)  # one may have been added since
        return made
    folders.check_free("unpacked", force)
    with folders.new(origin) as (folder, target):
        for archive in archives:
            unpack(archive, folder if archive == root else folder / archive.parent.relative_to(root))
        for archive in _packed(folder, known):
            unpack(archive, archive.parent)
            archive.unlink()
        if root.is_dir():
            _copy_lists(root, folder)
    return target


def unpack(archive: Path, folder: Path) -> None:
    """Unpack one archive into a folder that nobody else writes to.

    Raises:
        DatasetError: The archive is damaged or locked; a member lies outside of the folder, or is a link or a device;
            or it unpacks to so much more than its own size that it is no data set of images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = archive.stat().st_size
    bytes_left = min(max(MAX_GROWTH * size, FREE_GROWTH), shutil.disk_usage(folder).free)
    members_left = FREE_MEMBERS + size // MIN_BYTES_PER_MEMBER
    left_out, guessed = LeftOut(), []
    try:
        with progress_bar() as bar:
            task = bar.add_task(f"Unpacking {archive.name} (MiB)", total=size // _MEBIBYTE, note="")
            for member in _members(archive):
                members_left -= 1
                if not member.name_is_known:
                    guessed.append(member.name)
                if is_of_a_file_manager(member.name):
                    left_out.add(Kind.SYSTEM, member.name)
                    continue
                if members_left < 0:
                    raise DatasetError(
                        f"{archive} holds too many files for its size: unpack it yourself if you trust it"
                    )
                bytes_left -= _write(member, folder, archive, bytes_left)
                bar.update(task, completed=member.position // _MEBIBYTE)
    except DatasetError:
        raise
    except RuntimeError as error:  # what zipfile raises for a password and for an unknown compression
        raise DatasetError(f"{archive} cannot be unpacked: {error}") from error
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0]
        # An error with a number comes from the system and is about the disk, not about the archive.
        advice = "" if isinstance(error, OSError) and error.errno else ": is the download complete? Fetch it again"
        raise DatasetError(f"{archive} cannot be unpacked ({reason}){advice}") from error
    if left_out:
        note(f"{archive}: {left_out}")
    if guessed:
        warn(
            f"{archive} does not say in which characters its names are written "
            f"({first_few(guessed, 3)}): if they look wrong, unpack it with the program that made it, and give the "
            "folder"
        )


def _members(archive: Path) -> Iterator[Member]:
    return _zip_members(archive) if archive.name.lower().endswith(".zip") else _tar_members(archive)


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            position = info.header_offset + info.compress_size
            kind = stat.S_IFMT(info.external_attr >> 16)
            name, known = zip_name(info)
            if name.endswith("/"):
                yield Member(name, "folder", position=position, name_is_known=known)
            elif kind not in (0, stat.S_IFREG):
                yield Member(name, "link" if kind == stat.S_IFLNK else "device")
            else:
                with opened.open(info) as content:
                    yield Member(name, "file", content, info.file_size, position, known)


def _tar_members(archive: Path) -> Iterator[Member]:
    with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as opened:
        for info in opened:
            name = tar_name(info.name)
            if info.isdir():
                yield Member(name, "folder", position=raw.tell())
            elif info.isreg():
                yield Member(name, "file", opened.extractfile(info), info.size, raw.tell())
            else:
                yield Member(name, "link" if info.issym() or info.islnk() else "device")
        if opened.fileobj is raw:
            # tarfile takes a damaged or missing header for the end of the archive; the true end is a block of zeros.
            raw.seek(opened.offset)
            if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"it breaks off, or is damaged, after {counted(opened.offset, 'byte')}")
        # The checksum of a compressed tar comes last, behind padding that tarfile leaves unread.
        for _ in range(FREE_GROWTH // _BLOCK):
            if opened.fileobj is None or not opened.fileobj.read(_BLOCK):
                break


def _write(member: Member, folder: Path, archive: Path, bytes_left: int) -> int:
    """Write one member; returns its bytes."""
    if member.kind not in ("file", "folder"):
        raise DatasetError(
            f"{archive} holds {member.name!r}, a {member.kind}: only plain files and folders are unpacked. "
            "If you trust it, unpack it yourself and give the folder"
        )
    target = folder / _safe_name(member.name, archive)
    if member.content is None:
        target.mkdir(parents=True, exist_ok=True)
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with target.open("wb") as file:
        # The stated size is not trusted: the bytes that come out are counted.
        while block := member.content.read(_BLOCK):
            written += len(block)
            if written > bytes_left:
                raise DatasetError(
                    f"{archive} unpacks to more than the disk holds or than a data set of images would "
                    f"({MAX_GROWTH} times its own size): make room, or unpack it yourself if you trust it"
                )
            file.write(block)
    if written != member.size:
        raise EOFError(f"{member.name} ends after {written:,} of {counted(member.size, 'byte')}")
    return written


def _safe_name(name: str, archive: Path) -> PurePosixPath:
    """The relative path that a member may be written to; both kinds of slashes separate folders, on every system."""
    path = PurePosixPath(name)
    windows = PureWindowsPath(name)
    if path.is_absolute() or windows.drive or windows.root or ".." in windows.parts or "\0" in name:
        raise DatasetError(f"{archive} holds {name!r}, which would be written outside of its folder: do not trust it")
    return path


def _packed(root: Path, known: Mapping[str, str]) -> list[Path]:
    """The known archives in a folder that have not been unpacked there yet."""
    return [
        path
        for depth in _DEPTHS
        for stem, content in known.items()
        for suffix in ARCHIVE_SUFFIXES
        for path in sorted(root.glob(f"{depth}{stem}{suffix}"))
        if path.is_file() and not (path.parent / content).is_dir()
    ]


def _copy_lists(root: Path, folder: Path) -> None:
    """Copy the lists that lie beside the archives, so that the reader finds everything in one place."""
    for depth in _DEPTHS:
        for path in root.glob(f"{depth}*"):
            if path.suffix.lower() in _LISTS and path.is_file():
                target = folder / path.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
