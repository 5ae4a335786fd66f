"""Which files are in folders: one way of listing them for all commands, which names what it leaves out.

Links to folders are followed, but never twice into the same folder, and never upwards. No image is opened here.
"""

import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from proxygml.data.decode import image_endings
from proxygml.data.image_folders import STAMP
from proxygml.errors import first_few

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

    path: Path
    kind: Kind
    is_link: bool = False


class LeftOut:
    """Files and folders that were left out, by the reason."""

    def __init__(self) -> None:
        self.names: dict[Kind, list[str]] = {}

    def add(self, kind: Kind, name: str | Path) -> None:
        """Note one more."""
        self.names.setdefault(kind, []).append(readable(name))

    def __len__(self) -> int:
        return sum(map(len, self.names.values()))

    def __str__(self) -> str:
        """Such as `3 left out: hidden: 2 (.git, .DS_Store), links to nothing: 1 (a.jpg)`; empty for nothing."""
        parts = [f"{kind}: {len(names):,} ({first_few(names, NAMES_SHOWN)})" for kind, names in self.names.items()]
        return f"{len(self):,} left out: {', '.join(parts)}" if parts else ""


def entries(folder: Path) -> list[Entry]:
    """What is in a folder, sorted by name: links count as what they point at.

    A folder that cannot be listed has one entry: itself, as UNREADABLE.
    """
    try:
        with os.scandir(folder) as found:
            named = [entry for entry in found if entry.name != STAMP]  # which prepare has put there itself
            return sorted(Entry(folder / entry.name, _kind(entry), entry.is_symlink()) for entry in named)
    except OSError:
        return [Entry(folder, Kind.UNREADABLE)]


def _kind(entry: os.DirEntry[str]) -> Kind:
    if entry.name.startswith("."):
        return Kind.HIDDEN
    if entry.name.lower() in SYSTEM_FILES:
        return Kind.SYSTEM
    if readable(entry.name) != entry.name:
        return Kind.NOT_UTF8
    try:
        mode = entry.stat().st_mode
    except FileNotFoundError:
        return Kind.DANGLING
    except OSError:  # links in a circle, or beyond a folder that may not be entered
        return Kind.UNREADABLE
    return Kind.FOLDER if stat.S_ISDIR(mode) else Kind.FILE if stat.S_ISREG(mode) else Kind.SPECIAL


def readable(name: str | Path) -> str:
    """The name as text that can be written into a table; file systems take any bytes."""
    text = name.as_posix() if isinstance(name, Path) else name
    return text.encode(errors="backslashreplace").decode()


def image_files(places: Sequence[Path]) -> tuple[list[str], LeftOut]:
    """The image files in folders, at any depth, by the endings of their names; files that are given count as images.

    Args:
        places: files and folders that exist.

    Returns:
        Their absolute paths without links, each once, those of a folder sorted; and what was left out.
    """
    files: dict[str, None] = {}
    left_out = LeftOut()
    seen: set[str] = set()
    for place in places:
        found = sorted(_walk(place, seen, left_out)) if place.is_dir() else [(place.resolve(), False, place)]
        for path, _, name in found:
            if str(path) in files:
                left_out.add(Kind.AGAIN, name)
            files[str(path)] = None
    return list(files), left_out


def _walk(place: Path, seen: set[str], left_out: LeftOut) -> Iterator[tuple[Path, bool, Path]]:
    """The image files below a folder: where each is, whether a link led there, and how it is called in the folder.

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
            if kind == Kind.FOLDER:
                if is_link and any(inside.is_relative_to(path.resolve()) for inside in (real, top)):
                    left_out.add(Kind.UPWARDS, _name(path, place))
                else:
                    (links if is_link else waiting).append(path)
            elif kind != Kind.FILE or path.suffix.lower() not in endings:
                left_out.add(Kind.NO_IMAGE if kind == Kind.FILE else kind, _name(path, place))
            else:
                yield path.resolve() if is_link else real / path.name, is_link, _name(path, place)


def _name(path: Path, place: Path) -> Path:
    return place if path == place else path.relative_to(place)
