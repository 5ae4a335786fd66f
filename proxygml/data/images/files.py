"""Which files are in folders: one way of listing them for all commands, which names what it leaves out.

Links to folders are followed, but never twice into the same folder, and never upwards. No image is opened here. On an
object store, a folder is what names have in common up to a slash.
"""

import os
import posixpath
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path, PurePath
from typing import NamedTuple

from proxygml.data.images.decode import image_endings
from proxygml.data.images.folders import STAMP
from proxygml.errors import DatasetError, ImageError, first_few
from proxygml.urls import WEB, Place, Url

SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx"}
"""What file managers leave behind, in lower case, beside names that start with a dot."""

NAMES_SHOWN = 3
"""Of the files that are left out for the same reason."""


class Kind(StrEnum):
    """What something in a folder is, as messages say it."""

    FILE = "files"
    FOLDER = "folders"
    HIDDEN = "hidden"
    SYSTEM = "left by a file manager"
    DANGLING = "links to nothing"
    SPECIAL = "neither files nor folders"
    UNREADABLE = "cannot be read"
    NOT_UTF8 = "named in other characters than UTF-8"
    NO_IMAGE = "not named like an image"
    UPWARDS = "links to a folder that they lie in"
    AGAIN = "listed already"


class Entry(NamedTuple):
    """Something in a folder."""

    path: Place
    kind: Kind
    is_link: bool = False


class LeftOut:
    """Files and folders that were left out, by the reason."""

    def __init__(self) -> None:
        self.names: dict[Kind, list[str]] = {}

    def add(self, kind: Kind, name: str | PurePath) -> None:
        """Note one more."""
        self.names.setdefault(kind, []).append(readable(name))

    def __len__(self) -> int:
        return sum(map(len, self.names.values()))

    def __str__(self) -> str:
        """Such as `3 left out: hidden: 2 (.git, .DS_Store), links to nothing: 1 (a.jpg)`; empty for nothing."""
        parts = [f"{kind}: {len(names):,} ({first_few(names, NAMES_SHOWN)})" for kind, names in self.names.items()]
        return f"{len(self):,} left out: {', '.join(parts)}" if parts else ""


class ListedFolder(Url):
    """A folder at a URL, with all that is below it as it was listed once, so that looking into it asks nobody."""

    inside: dict[str, list[Entry]]
    """The entries of each folder by its URL, sorted by name."""

    @classmethod
    def of(cls, url: Url) -> "ListedFolder":
        """The folder, listed now.

        Raises:
            DatasetError: it cannot be listed.
        """
        from proxygml.remote import files_below  # noqa: PLC0415  (most folders are on this machine)

        top = cls(url)
        top.inside = {str(url): []}
        for name in files_below(url, DatasetError):
            top._add(name)
        for found in top.inside.values():
            found.sort()
        return top

    def _add(self, name: str) -> None:
        """Note a file, by its name relative to the folder, and the folders that it lies in."""
        folder, parts = str(self), name.split("/")
        for part in parts[:-1]:
            path = f"{folder}/{part}"
            if path not in self.inside:
                self.inside[path] = []
                self.inside[folder].append(Entry(self._at(path), _kind_by_name(part) or Kind.FOLDER))
            folder = path
        self.inside[folder].append(Entry(Url(f"{folder}/{parts[-1]}"), _kind_by_name(parts[-1]) or Kind.FILE))

    def _at(self, url: str) -> "ListedFolder":
        """Another folder of the same listing."""
        folder = ListedFolder(url)
        folder.inside = self.inside
        return folder

    def __truediv__(self, name: str) -> Url:
        """A place below this one: a folder of the listing, where it is one."""
        place = super().__truediv__(name)
        return self._at(place) if str(place) in self.inside else place

    def __reduce__(self) -> tuple[type[Url], tuple[str]]:
        """Sent to another process, or copied, it is only a URL."""
        return Url, (str(self),)


def entries(folder: Place) -> list[Entry]:
    """What is in a folder, sorted by name: links count as what they point at.

    A folder that cannot be listed has one entry: itself, as UNREADABLE.
    """
    if isinstance(folder, Url):
        listed = folder if isinstance(folder, ListedFolder) else ListedFolder.of(folder)
        return listed.inside[str(folder)]
    try:
        with os.scandir(folder) as found:
            named = [entry for entry in found if entry.name != STAMP]  # which prepare has put there itself
            return sorted(Entry(folder / entry.name, _kind(entry), entry.is_symlink()) for entry in named)
    except OSError:
        return [Entry(folder, Kind.UNREADABLE)]


def _kind_by_name(name: str) -> Kind | None:
    """What something is whatever its name leads to; None where the name does not say."""
    if name.startswith("."):
        return Kind.HIDDEN
    if name.lower() in SYSTEM_FILES:
        return Kind.SYSTEM
    return None if readable(name) == name else Kind.NOT_UTF8


def _kind(entry: os.DirEntry[str]) -> Kind:
    if (kind := _kind_by_name(entry.name)) is not None:
        return kind
    try:
        mode = entry.stat().st_mode
    except FileNotFoundError:
        return Kind.DANGLING
    except OSError:  # links in a circle, or beyond a folder that may not be entered
        return Kind.UNREADABLE
    return Kind.FOLDER if stat.S_ISDIR(mode) else Kind.FILE if stat.S_ISREG(mode) else Kind.SPECIAL


def readable(name: str | PurePath) -> str:
    """The name as text that can be written into a table; file systems take any bytes."""
    text = name.as_posix() if isinstance(name, PurePath) else name
    return text.encode(errors="backslashreplace").decode()


def image_files(places: Sequence[Place]) -> tuple[list[str], LeftOut]:
    """The image files in folders, at any depth, by the endings of their names; files that are given count as images.

    Args:
        places: files and folders that exist.

    Returns:
        Their absolute paths without links, or their URLs, each once, those of a folder sorted; and what was left out.

    Raises:
        ImageError: there is nothing at a URL, or it cannot be listed.
    """
    files: dict[str, None] = {}
    left_out = LeftOut()
    seen: set[str] = set()
    for place in places:
        if isinstance(place, Url):
            _add_remote(place, files, left_out)
            continue
        found = list(_walk(place, seen, left_out)) if place.is_dir() else [(str(place.resolve()), False, str(place))]
        for path, _, name in sorted(found, key=_by_folders):
            if path in files:
                left_out.add(Kind.AGAIN, Path(name))
            files[path] = None
    return list(files), left_out


def _by_folders(found: tuple[str, bool, str]) -> tuple[str, bool]:
    """What files are sorted by: their paths, folder by folder as the paths of pathlib; links last."""
    return found[0].replace(os.sep, "\0"), found[1]


def _add_remote(place: Url, files: dict[str, None], left_out: LeftOut) -> None:
    """Add the image at a URL, or those below a folder; the listing goes by, and nothing but the images is kept."""
    from proxygml.remote import exists, files_below, is_folder  # noqa: PLC0415  (most folders are on this machine)

    if not exists(place, ImageError):
        raise ImageError(f"there is no {place}: give image files, or folders of them")
    if place.scheme in WEB or not is_folder(place, ImageError):
        names = [""]
    else:
        names = sorted(_image_names(files_below(place, ImageError), left_out), key=lambda name: name.replace("/", "\0"))
    for name in names:
        url = f"{place}/{name}" if name else str(place)
        if url in files:
            left_out.add(Kind.AGAIN, name or url)
        files[url] = None


def _image_names(names: Iterable[str], left_out: LeftOut) -> Iterator[str]:
    """Those of images. A folder that is hidden is left out as one."""
    endings, folders = image_endings(), set()
    for name in names:
        parts = name.split("/")
        kinds = map(_kind_by_name, parts)
        depth, kind = next(((depth, kind) for depth, kind in enumerate(kinds, 1) if kind is not None), (0, None))
        if kind is None and posixpath.splitext(parts[-1])[1].lower() in endings:
            yield name
        elif kind is None:
            left_out.add(Kind.NO_IMAGE, name)
        elif (place := "/".join(parts[:depth])) not in folders:
            folders.add(place)
            left_out.add(kind, place)


def _walk(place: Path, seen: set[str], left_out: LeftOut) -> Iterator[tuple[str, bool, str]]:
    """The image files below a folder: where each is, whether a link led there, and how it is called in the folder.

    As text: of the millions that there may be, pathlib's paths would take several times the memory.

    Args:
        place: the folder.
        seen: folders that were read already; filled.
        left_out: filled.
    """
    endings, top = image_endings(), place.resolve()
    waiting = deque([place])
    links: deque[Path] = deque()  # read last, so that a folder is found under its own name, if it is below the place
    while waiting or links:
        folder = waiting.popleft() if waiting else links.popleft()
        real = folder.resolve()
        if str(real) in seen:
            left_out.add(Kind.AGAIN, _name(folder, place))
            continue
        seen.add(str(real))
        for path, kind, is_link in entries(folder):
            assert isinstance(path, Path)  # as the folder is
            if kind == Kind.FOLDER:
                if is_link and any(inside.is_relative_to(path.resolve()) for inside in (real, top)):
                    left_out.add(Kind.UPWARDS, _name(path, place))
                else:
                    (links if is_link else waiting).append(path)
            elif kind != Kind.FILE or path.suffix.lower() not in endings:
                left_out.add(Kind.NO_IMAGE if kind == Kind.FILE else kind, _name(path, place))
            else:
                yield str(path.resolve() if is_link else real / path.name), is_link, str(_name(path, place))


def _name(path: Path, place: Path) -> Path:
    return place if path == place else path.relative_to(place)
