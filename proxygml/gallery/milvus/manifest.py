"""The manifest of a gallery in Milvus, which several processes may read and replace at the same time.

A gallery `photos` is a collection of its items, `photos_1a2b3c4d`, and an empty collection
`photos_manifest_000000000007`, whose property holds the manifest: which collection that is, and which of its ids count.
A manifest is replaced by the next one, 000000000008. Milvus makes one collection of that name, however many processes
try, so that the others notice and begin again with what they find: a compare-and-swap. The last one counts; earlier
ones are dropped.
"""

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from proxygml.errors import GalleryError, OverwriteError
from proxygml.gallery.folder.manifest import Count, Manifest, manifest_text, parse_manifest
from proxygml.gallery.milvus.address import Address
from proxygml.gallery.milvus.connection import Connection, connect

_TOKENS = 64  # manifests that others may write while one looks whether its own counts


@dataclass(frozen=True)
class MilvusManifest(Manifest):
    """What is kept of a gallery; `generation` grows with every manifest, and `rows` is not kept."""

    collection: str = ""
    """The name of the collection of the items."""

    fields: Sequence[str] = ()
    """The columns that have a field of their own."""

    edition: Count = 0
    """Grows by one with every `save`, but not with additions and removals that count at once."""

    pending: Sequence[Sequence[int]] = ()
    """Ranges of ids, first and last plus one, that a writer reserved and has not saved: they do not count."""

    tokens: Sequence[str] = ()
    """One of this manifest, which is the last, and of those before it; see `publish`."""

    removing: Sequence[int] = ()
    """The rows, first and last plus one, with negative ids, that list removed items which may still be there."""


def read_manifest(connection: Connection) -> MilvusManifest | None:
    """The manifest; None where there is no such gallery.

    Raises:
        GalleryError: it is damaged or of another format.
    """
    while names := _manifests(connection):
        text = connection.note(names[-1])
        if text is not None:
            return parse_manifest(text, str(connection.address), MilvusManifest)
    return None


def stored_manifest(connection: Connection) -> MilvusManifest:
    """The manifest; GalleryError where there is no such gallery."""
    manifest = read_manifest(connection)
    if manifest is None:
        address = connection.address
        raise GalleryError(f"{address} holds no gallery {address.name!r}; `proxygml index` makes one")
    return manifest


def newer_manifest(connection: Connection, manifest: MilvusManifest) -> MilvusManifest | None:
    """The manifest as it is now; None where it has not changed."""
    names = _manifests(connection)
    if names and names[-1] == _name(connection.address, manifest.generation):
        return None
    return stored_manifest(connection)


def change_manifest(connection: Connection, change: Callable[[MilvusManifest], MilvusManifest]) -> MilvusManifest:
    """Replace the manifest by a changed one, of what others have made of it until then; return it.

    Args:
        connection: to the gallery.
        change: makes the new manifest of the stored one; is called again where another process was faster.

    Raises:
        GalleryError: there is no such gallery; or what `change` raises.
    """
    while True:
        stored = stored_manifest(connection)
        made = replace(change(stored), generation=stored.generation + 1)
        if publish(connection, made):
            return made


def publish(connection: Connection, manifest: MilvusManifest) -> bool:
    """Write a manifest as that of its generation; False, and nothing is changed, where there is one already."""
    own, token = _name(connection.address, manifest.generation), uuid.uuid4().hex[:12]
    manifest = replace(manifest, tokens=[*manifest.tokens[1 - _TOKENS :], token])
    if not connection.create_note(own, manifest_text(manifest)):
        return False
    names = _manifests(connection)
    if names[-1] > own:
        # Either others have replaced it since, or its name was free because it was replaced long ago.
        counted = token in stored_manifest(connection).tokens
        connection.drop(own)
        return counted
    for earlier in names[: names.index(own)]:
        connection.drop(earlier)
    return True


def check_no_gallery(address: Address) -> None:
    """Raise OverwriteError where there is a gallery already."""
    if address.local is not None and not address.local.exists():
        return
    if _manifests(connect(address)):
        raise OverwriteError(f"{address} is a gallery already: add to it with --add, or give --force to replace it")


def _manifests(connection: Connection) -> list[str]:
    """The collections with manifests of this gallery, the one that counts last."""
    own = re.compile(rf"{connection.address.name}_manifest_\d{{12}}")
    return sorted(name for name in connection.collections() if own.fullmatch(name))


def _name(address: Address, generation: int) -> str:
    return f"{address.name}_manifest_{generation:012}"
