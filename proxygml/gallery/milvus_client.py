"""Milvus, as a gallery needs it: addresses, connections, columns as fields, filters as expressions, rows.

What a gallery is made of in Milvus is milvus_gallery.py's. pymilvus and milvus-lite are the extra `milvus`.
"""

import hashlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pandas as pd

from proxygml.arrays import Rows, Vectors
from proxygml.errors import GalleryError
from proxygml.files import cache_folder
from proxygml.gallery.filters import Value, Where, alternatives, check_column, numbers

ColumnKind = Literal["int64", "float64", "bool", "str"]
Columns = Mapping[str, ColumnKind]

ANSWER_ROWS = 16_384
"""Rows that Milvus gives at most in one answer."""

MESSAGE_BYTES = 16 * 2**20
"""Of vectors in one message; a server takes 64 MiB."""

OTHERS = "other_columns"
"""The JSON field for columns whose names no field can have, and for those that came after the gallery was made."""

_TEXT_BYTES = 65_535
_FIELD_TYPES = {"int64": "INT64", "float64": "DOUBLE", "bool": "BOOL", "str": "VARCHAR"}
_KEYWORDS = ("and", "or", "not", "in", "like", "is", "null", "exists", "iso", "interval", "true", "false", OTHERS)
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


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


def connect(address: Address) -> Any:
    """A client of that server, or of milvus-lite in this process; the token is the environment's MILVUS_TOKEN.

    Raises:
        GalleryError: the extra is not installed, nobody answers, or another process has the .db open.
    """
    try:
        pymilvus = _pymilvus()
        if address.local is not None:
            import_module("milvus_lite")
    except ImportError:
        raise GalleryError(f"{address} is a gallery in Milvus, which needs: pip install proxygml[milvus]") from None
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


def create_collection(client: Any, name: str, dimension: int, columns: Columns) -> None:
    """A collection of `id`, `embedding` (dimension,) and a field for each column, searched exactly."""
    types = _pymilvus().DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", types.INT64, is_primary=True)
    schema.add_field("embedding", types.FLOAT_VECTOR, dim=dimension)
    for column in fields_of(columns):
        length = {"max_length": _TEXT_BYTES} if columns[column] == "str" else {}
        schema.add_field(column, types[_FIELD_TYPES[columns[column]]], nullable=True, **length)
    schema.add_field(OTHERS, types.JSON, nullable=True)
    client.create_collection(name, schema=schema, consistency_level="Strong")
    set_index(client, name, "FLAT", {})


def set_index(client: Any, collection: str, kind: str, parameters: Mapping[str, int]) -> None:
    """Index a collection by inner product, in place of the index that it has, and load it."""
    if client.list_indexes(collection):
        client.release_collection(collection)
        client.drop_index(collection, "embedding")
    index = client.prepare_index_params()
    index.add_index("embedding", index_type=kind, metric_type="IP", params=dict(parameters))
    client.create_index(collection, index)
    client.load_collection(collection)


def fields_of(columns: Columns) -> list[str]:
    """The columns that become fields of their own; the others share the field OTHERS."""
    return [
        name for name in columns if re.fullmatch(r"[A-Za-z_]\w{0,254}", name, re.A) and name.lower() not in _KEYWORDS
    ]


def columns_of(items: pd.DataFrame) -> dict[str, ColumnKind]:
    """What each column of an item table holds; all but numbers and truth values is kept as text."""
    types = pd.api.types
    tests: tuple[tuple[Callable[[object], bool], ColumnKind], ...] = (
        (types.is_bool_dtype, "bool"),
        (types.is_integer_dtype, "int64"),
        (types.is_float_dtype, "float64"),
    )
    return {
        str(name): next((kind for test, kind in tests if test(cells.dtype)), "str") for name, cells in items.items()
    }


def rows_of(
    ids: Rows, vectors: Vectors, items: pd.DataFrame, columns: Columns, fields: Sequence[str]
) -> list[dict[str, object]]:
    """What Milvus takes in.

    Args:
        ids: (n,).
        vectors: (n, D).
        items: n rows.
        columns: of the gallery, those of the items among them.
        fields: which of them have a field of their own.

    Raises:
        GalleryError: a cell that the column cannot hold.
    """
    cells = {str(name): _cells(str(name), items[name], columns[str(name)]) for name in items.columns}
    typed, others = [name for name in cells if name in fields], [name for name in cells if name not in fields]
    rows = []
    for place, number in enumerate(ids.tolist()):
        more = {name: cells[name][place] for name in others if cells[name][place] is not None}
        row: dict[str, object] = {"id": number, "embedding": vectors[place], OTHERS: more or None}
        rows.append(row | {name: cells[name][place] for name in typed})
    return rows


def _cells(column: str, cells: pd.Series, kind: ColumnKind) -> list[Value | None]:
    missing = cells.isna().to_numpy()
    try:
        return [None if gone else _cell(value, kind) for value, gone in zip(cells.tolist(), missing, strict=True)]
    except ValueError as error:
        raise GalleryError(f"the gallery's column {column!r} holds {kind}, but an item has {error}") from None


def _cell(value: Any, kind: ColumnKind) -> Value:
    """The value as that kind; a ValueError that shows it where it is none."""
    if kind == "str":
        if len((text := str(value)).encode()) > _TEXT_BYTES:
            raise ValueError(f"a text of more than {_TEXT_BYTES:,} bytes")
        return text
    kinds: dict[str, Callable[[Any], Value]] = {"bool": bool, "int64": int, "float64": float}
    fits = {
        "bool": isinstance(value, bool),
        "int64": isinstance(value, int | float),
        "float64": not isinstance(value, str),
    }
    if not fits[kind] or not math.isfinite(value) or (kind == "int64" and value != int(value)):
        raise ValueError(repr(value))
    return kinds[kind](value)


def table_of(rows: Sequence[Mapping[str, Any]], columns: Columns) -> pd.DataFrame:
    """The item table, by id, of rows that Milvus gave."""
    ids = pd.Index([row["id"] for row in rows], dtype=np.int64, name="id")
    flat = [{**(row.get(OTHERS) or {}), **row} for row in rows]
    series = {name: _series([row.get(name) for row in flat], kind, ids) for name, kind in columns.items()}
    return pd.DataFrame(series, index=ids, columns=list(columns))


def _series(cells: list[Any], kind: ColumnKind, ids: pd.Index) -> pd.Series:
    """Integers with a gap become floats and truth values objects, as everywhere in pandas."""
    if kind in ("int64", "bool") and any(cell is None for cell in cells):
        return pd.Series(cells, ids, "float64" if kind == "int64" else "object")
    return pd.Series(cells, ids, kind)


def expression(where: Where, columns: Columns, fields: Sequence[str]) -> str:
    """A filter in Milvus's language; values can say nothing there but themselves.

    Raises:
        GalleryError: see filters.matches.
    """
    parts = []
    for column, values in where.items():
        check_column(column, list(columns))
        literals = _literals(column, alternatives(values), columns[column])
        if not literals:
            parts.append("id < 0")
        elif column in fields and columns[column] != "bool":
            parts.append(f"{column} in [{', '.join(literals)}]")
        else:  # milvus-lite knows no `in` here
            cell = column if column in fields else f"{OTHERS}[{quoted(column)}]"
            parts.append("(" + " or ".join(f"{cell} == {literal}" for literal in literals) + ")")
    return " and ".join(parts)


def _literals(column: str, wanted: Sequence[Value], kind: ColumnKind) -> list[str]:
    """Those of the values that the column can have at all, as Milvus writes them."""
    if kind == "bool":
        return [str(value).lower() for value in wanted if str(value) in ("True", "False")]
    if kind == "str":
        return [quoted(str(value)) for value in wanted]
    finite = [value for value in numbers(column, wanted) if math.isfinite(value)]
    if kind == "float64":
        return [repr(value) for value in finite]
    return [str(int(value)) for value in finite if value == int(value) and abs(value) < 2**63]


def quoted(text: str) -> str:
    """A text as a literal of Milvus's language."""
    return f'"{text.translate(_ESCAPES)}"'


def ids_in(ids: Sequence[int] | Rows) -> str:
    """The expression for these items."""
    return f"id in [{', '.join(map(str, ids))}]"
