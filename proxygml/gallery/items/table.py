"""The item table of a gallery in memory or in a folder: which row is which item, and which rows may be found."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from proxygml.arrays import Rows
from proxygml.data.images.image_list import FILE_STAMP
from proxygml.data.paths import rebased_paths
from proxygml.errors import GalleryError
from proxygml.gallery.filters.grammar import Condition
from proxygml.gallery.filters.matching import matches
from proxygml.gallery.items.cells import joined
from proxygml.gallery.items.column_types import Schema, shown_columns

Mask = npt.NDArray[np.bool_]


class ItemTable:
    """One row for each vector, removed items included. A change makes a new table.

    Everything that a search needs is computed here once, so that searching touches no pandas object.

    Attributes:
        stored: by id, with the column `removed`; as it is written.
        schema: the types of the other columns.
        shown: the columns that users see.
        ids: int64 (n,), rising.
        alive: bool (n,), the rows that were not removed.
    """

    def __init__(self, stored: pd.DataFrame, schema: Schema) -> None:
        self.stored = stored
        self.schema = schema
        self.shown = stored[shown_columns(schema)]
        self.ids: Rows = stored.index.to_numpy(dtype=np.int64)
        removed: Mask = stored["removed"].to_numpy(dtype=bool)
        self.alive: Mask = ~removed
        self._all_alive = not removed.any()

    @classmethod
    def of(cls, items: pd.DataFrame, schema: Schema) -> "ItemTable":
        """A new table of n items of these types with the ids 0 to n - 1."""
        return cls(items.set_axis(pd.Index(np.arange(len(items)), name="id")).assign(removed=False), schema)

    def __len__(self) -> int:
        """How many rows, removed ones included."""
        return len(self.ids)

    @property
    def items(self) -> pd.DataFrame:
        """The rows that were not removed, by id."""
        return self.shown[self.alive]

    def with_items(self, ids: Rows, items: pd.DataFrame, schema: Schema) -> "ItemTable":
        """The table with further rows at its end, of these types, among which are those of the table."""
        whole = joined([self.stored, items.set_axis(pd.Index(ids, name="id"))], schema)
        return ItemTable(whole.assign(removed=np.concatenate([~self.alive, np.zeros(len(ids), dtype=bool)])), schema)

    def without(self, rows: Rows) -> "ItemTable":
        """The table with these rows marked as removed."""
        removed = ~self.alive
        removed[rows] = True
        return ItemTable(self.stored.assign(removed=removed), self.schema)

    def only_alive(self) -> "ItemTable":
        """The table without the rows of removed items."""
        return self if self._all_alive else ItemTable(self.stored[self.alive], self.schema)

    def file_stamps(self, rows: Rows) -> Rows:
        """What each row's image file was known by, int64; 0 where that is not known."""
        if FILE_STAMP not in self.stored:
            return np.zeros(len(rows), np.int64)
        return np.asarray(self.stored[FILE_STAMP].iloc[rows].fillna(0).to_numpy(dtype=np.int64))

    def rebased(self, old: str, new: str) -> tuple["ItemTable", int]:
        """The table with paths below `new` instead of `old`, and how many items that can be found have changed."""
        paths = rebased_paths(self.stored["path"] if "path" in self.stored else pd.Series(dtype=object), old, new)
        changed = int((paths.notna() & (paths != self.stored["path"]))[self.alive].sum())
        return ItemTable(self.stored.assign(path=paths), self.schema), changed

    def rows_of(self, ids: Rows) -> Rows:
        """The rows, int64 (n,), of these items.

        Raises:
            GalleryError: there is no such item.
        """
        rows = np.asarray(self.stored.index.get_indexer(ids), dtype=np.int64)
        gone = (rows < 0) | ~self.alive[rows]
        if gone.any():
            raise GalleryError(f"the gallery has no item {ids[gone][0]}: it was removed, or never was")
        return rows

    def allowed(self, conditions: Sequence[Condition]) -> Mask | None:
        """Which rows may be found under these conditions, bool (n,); None for all."""
        if not conditions:
            return None if self._all_alive else self.alive
        allowed = self.alive.copy()
        for condition in conditions:
            name = condition.column
            allowed &= matches(pd.Series(self.ids) if name == "id" else self.shown[name], condition)
        return allowed
