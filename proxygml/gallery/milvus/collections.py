"""Connections to Milvus and collections in it. pymilvus and milvus-lite are the extra `milvus`."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from proxygml.errors import GalleryError, install_command
from proxygml.gallery.items.column_types import Schema
from proxygml.gallery.milvus.address import Address
from proxygml.gallery.milvus.schema import FIELD_TYPES, OTHERS, TEXT_BYTES, fields_of
from proxygml.gallery.neighbors import HNSW_BUILD, HNSW_LINKS, Kind, inverted_lists, product_codes

MESSAGE_BYTES = 16 * 2**20
"""Of vectors in one message; a server takes 64 MiB."""


def connect(address: Address) -> Any:
    """A client of that server, or of milvus-lite in this process; the token is that of the environment's MILVUS_TOKEN.

    Raises:
        GalleryError: the extra is not installed, the server does not answer, or another process has the .db open.
    """
    try:
        pymilvus = _pymilvus()
        if address.local is not None:
            import_module("milvus_lite")
    except ImportError as error:
        raise GalleryError(f"{address} is a gallery in Milvus, which needs: {install_command('milvus')}") from error
    for name in ("pymilvus", "milvus_lite", "grpc._server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log what they raise, with a traceback
    if address.local is not None:
        address.local.absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        return pymilvus.MilvusClient(address.uri, token=os.environ.get("MILVUS_TOKEN", ""))
    except pymilvus.MilvusException as error:
        if address.local is not None:
            raise GalleryError(
                f"{address} cannot be opened: another process has it open (milvus-lite serves one at a time), or it is "
                "no database of this version of milvus-lite"
            ) from error
        raise GalleryError(
            f"{address} cannot be reached ({error.message}): is the URI right, and MILVUS_TOKEN?"
        ) from error


def _pymilvus() -> Any:
    """An extra, and slow to load."""
    return import_module("pymilvus")


@contextmanager
def translating_errors(address: Address) -> Iterator[None]:
    """Turn what Milvus raises into a GalleryError."""
    try:
        yield
    except _pymilvus().MilvusException as error:
        if re.search("collection.*(not found|not exist)", str(error.message)):
            raise GalleryError(
                f"{address} was replaced since it was loaded ({error.message}): load it again"
            ) from error
        raise GalleryError(f"{address}: {error.message}") from error


def create_collection(client: Any, name: str, dimension: int, columns: Schema) -> None:
    """A collection of `id`, `embedding` (dimension,) and a field for each column, searched exactly."""
    types = _pymilvus().DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", types.INT64, is_primary=True)
    schema.add_field("embedding", types.FLOAT_VECTOR, dim=dimension)
    for column in fields_of(columns):
        kind = FIELD_TYPES[columns[column].name]
        length = {"max_length": TEXT_BYTES} if kind == "VARCHAR" else {}
        schema.add_field(column, types[kind], nullable=True, **length)
    schema.add_field(OTHERS, types.JSON, nullable=True)
    client.create_collection(name, schema=schema, consistency_level="Strong")
    _set_index(client, name, "FLAT", {})


def check_kind(client: Any, address: Address, kind: Kind) -> None:
    """Raise GalleryError where this Milvus has no such index."""
    if kind == "ivfpq" and str(client.get_server_version()).startswith("milvus_lite"):
        raise GalleryError(f"{address} is of milvus-lite, which has no ivfpq: choose exact or hnsw, or a Milvus server")


def set_approximate_index(client: Any, collection: str, kind: Kind, count: int, dimension: int) -> None:
    """Replace the index of a collection of so many vectors (dimension,) by an approximate one."""
    if kind == "hnsw":
        _set_index(client, collection, "HNSW", {"M": HNSW_LINKS, "efConstruction": HNSW_BUILD})
    else:
        parameters = {"nlist": min(inverted_lists(count), 65_536), "m": product_codes(dimension), "nbits": 8}
        _set_index(client, collection, "IVF_PQ", parameters)


def _set_index(client: Any, collection: str, kind: str, parameters: Mapping[str, int]) -> None:
    """Index a collection by inner product, in place of the index that it has, and load it."""
    if client.list_indexes(collection):
        client.release_collection(collection)
        client.drop_index(collection, "embedding")
    index = client.prepare_index_params()
    index.add_index("embedding", index_type=kind, metric_type="IP", params=dict(parameters))
    client.create_index(collection, index)
    client.load_collection(collection)


def insert_rows(client: Any, collection: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows of at most a few thousand characters each, as many at a time as fit into a message."""
    height = max(1, min(2000, MESSAGE_BYTES // (4 * len(rows[0]["embedding"])))) if rows else 1
    for start in range(0, len(rows), height):
        client.insert(collection, rows[start : start + height])


def drop_other_collections(client: Any, address: Address, kept: str, replaced: str | None) -> None:
    """Drop the collection that was replaced; in milvus-lite, which only we use, those of lost builds too."""
    own = re.compile(rf"{address.name}_[0-9a-f]{{8}}")
    for name in client.list_collections():
        lost = address.local is not None and own.fullmatch(name)
        if name != kept and (lost or name == replaced):
            client.drop_collection(name)
