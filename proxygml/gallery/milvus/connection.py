"""A connection to Milvus: the calls that galleries make. pymilvus and milvus-lite are the extra `milvus`."""

import logging
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from importlib import import_module
from threading import Lock
from typing import Any

from proxygml.arrays import Rows, Vectors
from proxygml.errors import GalleryError, GalleryServerError, GalleryUnavailableError, install_command
from proxygml.gallery.items.column_types import Schema
from proxygml.gallery.milvus.address import Address
from proxygml.gallery.milvus.schema import FIELD_TYPES, MISSING, OTHERS, TEXT_BYTES, fields_of

MESSAGE_BYTES = 16 * 2**20
"""Of vectors in one message; a server takes 64 MiB."""

VERSIONS = "Milvus 2.3 or later (tried with 2.3.5), or milvus-lite 3 (tried with 3.2)"
"""What a gallery can be kept in."""

_OLDEST_SERVER, _OLDEST_LITE = (2, 3), (3, 0)

_SECONDS = 20
"""How long a call may take, a restart of the server included; making an index or loading may take longer."""

_CONNECT_SECONDS = 5

_MAKING = Lock()
"""milvus-lite, of which there is one in this process, does not order the threads that make and drop collections."""

_NOTE = "proxygml"
"""The property of a collection that holds the text of a note."""

_GONE = re.compile("(collection|database).*(not found|not exist)|can't find collection", re.IGNORECASE)
_EXISTS = re.compile("already exist|file exists|duplicate collection", re.IGNORECASE)
_UNAVAILABLE_STATUSES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED", "RESOURCE_EXHAUSTED")
_UNAVAILABLE = re.compile(
    "retry (timeout|run out)|fail connecting|unavailable|not ready|not (fully )?loaded|no available|initializing|"
    "is not serving|node not found|channel not|not healthy|failed to connect|deadline|lack of|on heartbeat",
    re.IGNORECASE,
)


class CollectionGoneError(GalleryUnavailableError):
    """The collection was dropped, or was never made."""


class Connection:
    """Calls a server, or milvus-lite in this process. Reads see all that was written before, by whomever.

    Every method raises GalleryError where Milvus refuses, GalleryUnavailableError where it does not answer, and
    CollectionGoneError where a collection is not there.

    Attributes:
        address: where it is.
    """

    def __init__(self, client: Any, address: Address) -> None:
        self._client = client
        self.address = address

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self._client, name)(*arguments, **{"timeout": _SECONDS, **options})
        except _errors() as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> GalleryError:
        """What Milvus has raised, as an error of ours."""
        message = _message(error)
        if _GONE.search(message):
            return CollectionGoneError(f"{self.address} was replaced since it was loaded ({message}): load it again")
        code = getattr(error, "code", None)
        status = getattr(code() if callable(code) else code, "name", "")  # of gRPC; Milvus's own codes have none
        if status in _UNAVAILABLE_STATUSES or _UNAVAILABLE.search(message):
            return GalleryUnavailableError(f"{self.address} does not answer now ({message}): try again later")
        return GalleryServerError(f"{self.address}: {message}")

    def check_version(self) -> None:
        """Raise GalleryError where this Milvus is too old."""
        oldest = _OLDEST_LITE if self.is_lite else _OLDEST_SERVER
        if self.version < oldest:
            text = self._call("get_server_version")
            raise GalleryError(f"{self.address} is {text}, which is too old: galleries need {VERSIONS}")

    @property
    def version(self) -> tuple[int, int]:
        """The first two numbers of the version; a very late one where Milvus states none."""
        found = re.search(r"(\d+)\.(\d+)", str(self._call("get_server_version")))
        return (int(found[1]), int(found[2])) if found else (2**31, 0)

    @property
    def is_lite(self) -> bool:
        """Whether it is milvus-lite, in this process or as a server."""
        return str(self._call("get_server_version")).startswith("milvus_lite")

    def check_rights(self) -> None:
        """Raise GalleryError where this user may not make and drop collections, write to them and read them."""
        name = f"{self.address.name}_check_{uuid.uuid4().hex[:12]}"
        self.create_note(name, "")
        self.drop(name)

    # Collections ------------------------------------------------------------------------------------------------------

    def collections(self) -> list[str]:
        """The names of all collections."""
        return [str(name) for name in self._call("list_collections")]

    def create_note(self, name: str, text: str) -> bool:
        """Make an empty collection with a text: all of it at once, and False where one of that name is there already.

        Of several processes that make the same one at the same time, one is successful: the server orders them. It
        takes an equal description for a repetition, so each has its own.
        """
        pymilvus, token = _pymilvus(), uuid.uuid4().hex
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False, description=token)
        schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
        schema.add_field(f"token_{token}", pymilvus.DataType.FLOAT_VECTOR, dim=2)  # there are none without vectors
        try:
            with _MAKING:
                self._call("create_collection", name, schema=schema, properties={_NOTE: text})
        except GalleryUnavailableError:
            raise
        except GalleryError as error:
            if not _EXISTS.search(str(error)):
                raise
            return self._has_field(name, f"token_{token}")  # ours, if a first attempt was repeated
        return True

    def _has_field(self, name: str, field: str) -> bool:
        try:
            return any(one["name"] == field for one in self._call("describe_collection", name)["fields"])
        except CollectionGoneError:
            return False

    def note(self, name: str) -> str | None:
        """The text of a note; None where there is none."""
        try:
            return str(self._call("describe_collection", name)["properties"][_NOTE])
        except (CollectionGoneError, KeyError):
            return None

    def create_collection(self, name: str, dimension: int, columns: Schema) -> None:
        """A collection of `id`, `embedding` (dimension,) and a field for each column, searched exactly."""
        types = _pymilvus().DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", types.INT64, is_primary=True)
        schema.add_field("embedding", types.FLOAT_VECTOR, dim=dimension)
        for column in fields_of(columns):
            kind = FIELD_TYPES[columns[column].name]
            length = {"max_length": TEXT_BYTES} if kind == "VARCHAR" else {}
            schema.add_field(column, types[kind], **length)
        schema.add_field(OTHERS, types.JSON)
        schema.add_field(MISSING, types.JSON)
        self._call("create_collection", name, schema=schema, consistency_level="Strong")
        self.set_index(name, "FLAT", {})

    def set_index(self, name: str, kind: str, parameters: Mapping[str, int]) -> None:
        """Index a collection by inner product, in place of the index that it has, and load it."""
        if self._call("list_indexes", name):
            self._call("release_collection", name)
            self._call("drop_index", name, "embedding")
        index = self._client.prepare_index_params()
        index.add_index("embedding", index_type=kind, metric_type="IP", params=dict(parameters))
        self._call("create_index", name, index, timeout=None)
        self.load(name)

    def load(self, name: str) -> None:
        """Make a collection ready to be searched."""
        self._call("load_collection", name, timeout=None)

    def flush(self, name: str) -> None:
        """Close the parts that grow, so that an index is built of all."""
        self._call("flush", name, timeout=None)

    def drop(self, name: str) -> None:
        """Drop a collection, if it is there."""
        with _MAKING:
            self._call("drop_collection", name)

    # Rows -------------------------------------------------------------------------------------------------------------

    def write(self, collection: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows, or replace those with the same ids; each is there whole or not, as many at a time as fit.

        A repeated call, such as pymilvus makes when the connection breaks, changes nothing.
        """
        height = max(1, min(2000, MESSAGE_BYTES // (4 * len(rows[0]["embedding"])))) if rows else 1
        for start in range(0, len(rows), height):
            self._call("upsert", collection, rows[start : start + height])

    def delete(self, collection: str, ids: Rows) -> None:
        """Delete the rows with these ids."""
        for start in range(0, len(ids), _DELETED_AT_A_TIME):
            self._call("delete", collection, ids=ids[start : start + _DELETED_AT_A_TIME].tolist())

    def delete_where(self, collection: str, condition: str) -> None:
        """Delete the rows under a condition."""
        self._call("delete", collection, filter=condition)

    def query(self, collection: str, condition: str, fields: Sequence[str], **options: Any) -> list[Mapping[str, Any]]:
        """The rows under a condition that fit into one answer: these fields of them."""
        rows: list[Mapping[str, Any]] = self._call(
            "query",
            collection,
            filter=condition,
            output_fields=list(fields),
            **{"consistency_level": "Strong", **options},
        )
        return rows

    def count(self, collection: str, condition: str) -> int:
        """How many rows meet a condition."""
        return int(self.query(collection, condition, ["count(*)"])[0]["count(*)"])

    def search(
        self, collection: str, queries: Vectors, condition: str, limit: int, parameters: Mapping[str, int]
    ) -> list[Sequence[Any]]:
        """For each query the nearest rows under a condition, best first, with their vectors."""
        answers: list[Sequence[Any]] = self._call(
            "search",
            collection,
            queries,
            anns_field="embedding",
            limit=limit,
            filter=condition,
            output_fields=["embedding"],
            search_params={"metric_type": "IP", "params": dict(parameters)},
            consistency_level="Strong",
        )
        return answers


_DELETED_AT_A_TIME = 10_000


def connect(address: Address) -> Connection:
    """A connection; the token is that of the environment's MILVUS_TOKEN.

    Raises:
        GalleryError: the extra is not installed, the server does not answer or is too old, or another process has the
            .db open.
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
        client = pymilvus.MilvusClient(address.uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=_CONNECT_SECONDS)
    except _errors() as error:
        if address.local is not None:
            raise GalleryError(
                f"{address} cannot be opened: another process has it open (milvus-lite serves one at a time), or it is "
                "no database of this version of milvus-lite"
            ) from error
        raise GalleryUnavailableError(
            f"{address} cannot be reached ({_message(error)}): is the URI right, and MILVUS_TOKEN? A gallery needs "
            f"{VERSIONS}"
        ) from error
    connection = Connection(client, address)
    connection.check_version()
    return connection


def _errors() -> tuple[type[Exception], ...]:
    """What the calls of pymilvus raise: its own errors, and those of gRPC that it does not translate."""
    return _pymilvus().MilvusException, import_module("grpc").RpcError


def _message(error: Exception) -> str:
    own = getattr(error, "message", None)
    return str(own if own is not None else getattr(error, "details", lambda: error)())


def _pymilvus() -> Any:
    """An extra, and slow to load."""
    return import_module("pymilvus")
