"""Places: paths on this machine, or URLs of object stores and web servers. Nothing is read here, but in remote.py."""

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from proxygml.errors import UserError, did_you_mean
from proxygml.files import PathLike

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "sftp": "paramiko",
    "memory": "fsspec",
}
"""The kinds of URLs that are read, and the package that fsspec needs for each. None of them is a file of this machine,
and none holds another URL, as those of fsspec's caches and archives do: what a URL leads to shows in how it begins."""

WEB = ("http", "https")
"""Those that can be read, but neither listed nor written."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
"""How a URL starts. One letter alone is a drive of Windows."""


class Url(str):
    """A URL of a kind that is read, without a slash at its end; named and joined like a path. `as_place` makes it."""

    __slots__ = ()  # there may be millions

    @property
    def scheme(self) -> str:
        """What stands before `://`, in lower case."""
        return self.partition("://")[0]

    @property
    def name(self) -> str:
        """The last part, without the parameters of a web address."""
        path = re.split("[?#]", self)[0] if self.scheme in WEB else str(self)
        return path.partition("://")[2].rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name, such as .csv; empty for none."""
        return posixpath.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> "Url":
        """The folder that it lies in; of a bucket or a server, itself."""
        path = re.split("[?#]", self)[0] if self.scheme in WEB else str(self)
        start, _, rest = path.partition("://")
        folder, slash, _ = rest.rpartition("/")
        return Url(f"{start}://{folder}") if slash or start == "memory" else self

    def relative_to(self, folder: "Place") -> PurePosixPath:
        """What follows the URL of a folder that it lies in."""
        return PurePosixPath(self.removeprefix(str(folder)).strip("/"))

    def __truediv__(self, name: str) -> "Url":
        """A place below this one. `..` goes upwards, never beyond the bucket or the server."""
        base = self
        if (
            name.startswith(("/", "./", "../"))
            or name in (".", "..")
            or any(part in name for part in ("//", "/./", "/../"))
        ):
            parts: list[str] = []
            for part in name.split("/"):
                if part == ".." and parts:
                    parts.pop()
                elif part == "..":
                    base = base.parent
                elif part not in ("", "."):
                    parts.append(part)
            name = "/".join(parts)
        if self.scheme in WEB:
            name = quote(name)
        return Url(f"{base}{name}" if base.endswith("://") or not name else f"{base}/{name}")


Place = Url | Path
"""Where a file or a folder is. In this order, an option of this type tries to be a URL first; each can be a path."""


def url_of(text: str) -> Url | None:
    """The URL that a text is, as pathlib writes it too, with one slash; None for paths and URLs that are not read."""
    found = _URL.match(text)
    if found is None or found[1].lower() not in PACKAGES:
        return None
    rest = text[found.end() :].removeprefix("/").rstrip("/")
    return Url(f"{found[1].lower()}://{rest}")


def as_place(place: PathLike, what: str, kind: type[UserError] = UserError) -> Place:
    """A path on this machine, or a URL.

    Args:
        place: what was given.
        what: how the message calls it, such as `--catalog`.
        kind: the error to raise.

    Raises:
        UserError: of that kind; it is a URL of a kind that is not read.
    """
    if isinstance(place, Url):
        return place
    text = os.fsdecode(place)
    if (url := url_of(text)) is not None:
        return url
    check_known(text, what, kind)
    return Path(text)


def as_places(places: PathLike | Sequence[PathLike], what: str) -> tuple[Place, ...]:
    """One place, or several; see as_place."""
    several = [places] if isinstance(places, (str, os.PathLike)) else places
    return tuple(as_place(place, what) for place in several)


def check_places(**places: PathLike | Sequence[PathLike] | None) -> None:
    """Raise UserError where one of these arguments is a URL that is not read, before anything else is looked at."""
    for name, value in places.items():
        if value is not None:
            as_places(value, name)


def check_known(text: str, what: str, kind: type[UserError] = UserError) -> None:
    """Raise an error, of that kind, where a text is a URL that is not read, such as one of a file of this machine."""
    found = _URL.match(text)
    if found is None or (scheme := found[1].lower()) in PACKAGES:
        return
    text = f"{found[1]}://{text[found.end() :].lstrip('/')}"  # pathlib makes one slash of two
    if scheme in ("file", "local"):
        raise kind(f"{what} is {text}, a file on this machine: leave out {scheme}://")
    raise kind(
        f"{what} is {text}, but URLs that start with {scheme}: are not read: "
        f"{did_you_mean(scheme, [known for known in PACKAGES if known != 'memory'])}"
    )


def check_row(text: str, row: int, folder: Place, kind: type[UserError]) -> None:
    """Check a path that stands in a table: one that lies on a URL may name nothing on this machine.

    Else whoever writes such a table could have files of yours read, and shown.

    Args:
        text: the path.
        row: its row in the table.
        folder: where the table lies.
        kind: the error to raise.

    Raises:
        UserError: of that kind; it is a URL that is not read, or a path of this machine in a table on a URL.
    """
    check_known(text, f"the path in row {row}", kind)
    if isinstance(folder, Url) and url_of(text) is None and _is_absolute(text):
        raise kind(
            f"the path in row {row} is {text}, a file on the machine of its reader, but the table lies at {folder}: "
            "give paths relative to the table, or URLs"
        )


def _is_absolute(path: str) -> bool:
    return path.startswith(("/", "\\", "~")) or re.match(r"[A-Za-z]:", path) is not None


def place_in(folder: Place, path: str) -> Place:
    """Where the path of a table leads: a URL or an absolute path by itself, any other one from the table's folder."""
    if ":/" in path and (url := url_of(path)) is not None:
        return url
    return folder / path


def absolute_in(folder: Place, path: str) -> str:
    """The path of a table in a folder, from the root, without links; a URL as it is."""
    return absolute(place_in(folder, path))


def absolute(place: PathLike) -> str:
    """A path from the root, without links; a URL as it is."""
    text = os.fsdecode(place)
    return str(url_of(text) or Path(text).resolve())
