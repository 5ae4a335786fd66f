"""The manifest of a gallery in Milvus, and the lists of removed ids beside it: texts in a small collection.

A gallery `photos` is a collection of its items, `photos_1a2b3c4d`, and the first row of the collection
`photos_manifest`, which says which collection that is and which of its ids count. Writing that row is saving: whatever
a stopped writer left is ignored.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from proxygml.arrays import Rows
from proxygml.errors import OverwriteError
from proxygml.gallery.folder.manifest import Count, Manifest, manifest_text, parse_manifest
from proxygml.gallery.items.column_types import ColumnType
from proxygml.gallery.milvus.address import Address
from proxygml.gallery.milvus.collections import connect, create_collection, translating_errors
from proxygml.gallery.milvus.schema import rows_of

_IDS_IN_A_ROW = 4000  # removed ids in one text field


@dataclass(frozen=True)
class MilvusManifest(Manifest):
    """What the first row says; `rows` counts the items that can be found."""

    collection: str = ""
    """The name of the collection of the items."""

    fields: Sequence[str] = ()
    """The columns that have a field of their own."""

    pending: Sequence[Sequence[int]] = ()
    """Ranges of ids, first and last plus one, that a writer reserved and has not saved: they do not count."""

    removing: Count = 0
    """How many rows after the first list ids that are removed, though their items may still be in the collection."""


def read_manifest(client: Any, address: Address) -> MilvusManifest | None:
    """The manifest; None where there is no such gallery.

    Raises:
        GalleryError: it is damaged or of another format.
    """
    text = _read_text(client, address, 0)
    return None if text is None else parse_manifest(text, str(address), MilvusManifest)


def check_no_gallery(address: Address) -> None:
    """Raise OverwriteError where there is a gallery already."""
    if address.local is not None and not address.local.exists():
        return
    client = connect(address)
    with translating_errors(address):
        if read_manifest(client, address) is not None:
            raise OverwriteError(f"{address} is a gallery already: add to it with --add, or give --force to replace it")


def write_manifest(client: Any, address: Address, manifest: MilvusManifest) -> None:
    """Write the manifest in one step."""
    _write_text(client, address, 0, manifest_text(manifest))


def read_removed(client: Any, address: Address, manifest: MilvusManifest) -> Rows:
    """The ids, int64, of items that are removed but may still be in the collection."""
    texts = [_read_text(client, address, 1 + number) for number in range(manifest.removing)]
    return np.array([number for text in texts for number in json.loads(text or "[]")], np.int64)


def write_removed(client: Any, address: Address, ids: Rows) -> int:
    """Write the ids of removed items; the manifest then has to say in how many rows, which is returned."""
    parts = np.array_split(ids, -(-len(ids) // _IDS_IN_A_ROW)) if len(ids) else []
    for number, part in enumerate(parts):
        _write_text(client, address, 1 + number, json.dumps(part.tolist()))
    return len(parts)


def _read_text(client: Any, address: Address, row: int) -> str | None:
    name = _collection(address)
    if not client.has_collection(name):
        return None
    client.load_collection(name)
    found = client.query(name, filter=f"id == {row}", output_fields=["text"])
    return str(found[0]["text"]) if found else None


def _write_text(client: Any, address: Address, row: int, text: str) -> None:
    name = _collection(address)
    columns = {"text": ColumnType("str")}
    if not client.has_collection(name):
        create_collection(client, name, 2, columns)  # Milvus has no collections without vectors
    table = pd.DataFrame({"text": [text]})
    rows = rows_of(np.array([row]), np.array([[0, 1]], np.float32), table, columns, ["text"])
    client.upsert(name, rows)


def _collection(address: Address) -> str:
    return f"{address.name}_manifest"
