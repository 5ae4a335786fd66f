"""Where in Milvus a gallery is: a file of milvus-lite or a server, and the gallery's name there."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from proxygml.errors import GalleryError
from proxygml.files import cache_folder


def is_milvus(place: str | Path) -> bool:
    """Whether a gallery's place is in Milvus: NAME.db (milvus-lite) or a server's URI, either perhaps with #GALLERY."""
    return _split(place)[0].endswith(".db") or bool(re.match(r"(https?|tcp)://", str(place)))


def _split(place: str | Path) -> tuple[str, str]:
    uri, _, name = str(place).partition("#")
    return uri, name or "gallery"


@dataclass(frozen=True)
class Address:
    """Where in Milvus a gallery is.

    Raises:
        GalleryError: the name after # is none that a collection can have.
    """

    uri: str
    """A path that ends in .db, or http://[user:password@]host:port[/database]."""

    name: str
    """Its collections' names start with it."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", self.name):
            raise GalleryError(f"{self.name!r} cannot name a gallery in Milvus: take letters, digits and _")

    @classmethod
    def parse(cls, place: str | Path) -> "Address":
        """milvus.db, http://host:19530, either with #photos for a gallery that is not called `gallery`."""
        return cls(*_split(place))

    @property
    def local(self) -> Path | None:
        """The folder of milvus-lite; None for a server."""
        return Path(self.uri) if self.uri.endswith(".db") else None

    def __str__(self) -> str:
        """As the user wrote it, without a password."""
        name = "" if self.name == "gallery" else f"#{self.name}"
        parts = urlsplit(self.uri)
        return (self.uri if self.local else urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))) + name

    def work(self, purpose: str) -> Path:
        """A place on this machine for work in progress: beside the .db, or in the user's cache folder."""
        if self.local is not None:
            return self.local.with_name(f".{self.local.name}.{self.name}.{purpose}")
        return cache_folder("milvus") / f"{hashlib.sha256(str(self).encode()).hexdigest()[:16]}.{purpose}"
