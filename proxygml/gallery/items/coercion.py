"""Items that are added to a gallery: checks, and tables of them converted to the gallery's types."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from proxygml.arrays import Rows
from proxygml.errors import GalleryError, counted
from proxygml.gallery.items.cells import converted
from proxygml.gallery.items.column_types import Schema, type_of

RESERVED = ("id", "removed", "query", "rank", "score", "embedding")
"""Names of columns that search results and the gallery's own files use."""


def check_items(items: Any, count: int) -> None:
    """Raise GalleryError where an item table does not fit `count` vectors, or its columns' names cannot be."""
    if not isinstance(items, pd.DataFrame):
        raise GalleryError(
            f"items is a {type(items).__name__}: give a pandas DataFrame with one row for each "
            'vector, such as DataFrame({"label": labels})'
        )
    if len(items) != count:
        raise GalleryError(
            f"got {counted(len(items), 'item')}, but {counted(count, 'embedding')}: give one row for each"
        )
    names = [str(name) for name in items.columns]
    taken = [name for name in names if name in RESERVED]
    if taken:
        raise GalleryError(f"the items have a column {taken[0]!r}, a name that search results use: rename it")
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise GalleryError(f"the items have two columns {twice[0]!r}: rename one")


def conformed(items: pd.DataFrame, schema: Schema) -> tuple[pd.DataFrame, Schema]:
    """The items with cells of the gallery's types, and the types, to which new columns are added.

    The columns of the other items are not changed: a cell that its column cannot hold is refused.

    Raises:
        GalleryError: such a cell, or a new column of several kinds of values.
    """
    types, columns = dict(schema), {}
    for name, cells in items.items():
        known = types.get(str(name))
        if known is None or known.name == "null":
            found = type_of(str(name), cells)
            if known is None or not known.listed or found.listed:
                types[str(name)] = found
        columns[str(name)] = converted(str(name), cells, types[str(name)])
    return pd.DataFrame(columns, index=items.index), types


def first_equal_ids(wanted: pd.DataFrame, items: pd.DataFrame, columns: Sequence[str]) -> Rows:
    """See Backend.ids_of; `items` are by id."""
    keys = list(columns)
    known = items.reindex(columns=keys).reset_index().drop_duplicates(keys)
    given = wanted.reindex(columns=keys)
    if empty := [key for key in keys if known[key].isna().all() or given[key].isna().all()]:
        known, given = (part.astype(dict.fromkeys(empty, object)) for part in (known, given))
    ids: Rows = given.merge(known, "left", on=keys)["id"].fillna(-1).to_numpy(dtype="int64")
    return ids
