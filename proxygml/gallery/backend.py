"""What a backend of galleries has to implement: the items' storage, and candidates for a query.

A new backend is a subclass of base.Gallery with these methods, in a file of its own, and a line in backends.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from proxygml.arrays import Block, Rows, Vectors
from proxygml.errors import GalleryError
from proxygml.gallery.filters.grammar import Condition
from proxygml.gallery.folder.manifest import Manifest
from proxygml.gallery.items.column_types import Schema, shown_columns
from proxygml.gallery.items.ids import Ids
from proxygml.gallery.kinds import Kind
from proxygml.gallery.vectors import VectorRows

Embeddings = Tensor | npt.NDArray[np.floating]


@dataclass(frozen=True)
class Addition:
    """An item to add: its vector, float32 (D,), and the cells of its row."""

    vector: Vectors
    row: Mapping[str, object]


Change = Addition | int
"""An item to add, or the id of one to remove."""

Finish = Callable[[Any], None]
"""What is done with a gallery that is built, before others see it; it is given the gallery."""


@dataclass(frozen=True)
class Candidates:
    """Items among which the nearest to one query are.

    Attributes:
        ids: int64 (c,), rising.
        vectors: where their vectors are.
        rows: int64 (c,), the rows of `vectors` that are theirs, rising.
        scores: float32 (c,), the similarities to go by; None where they are to be computed from the vectors.
    """

    ids: Rows
    vectors: VectorRows
    rows: Rows
    scores: Vectors | None = None


@dataclass(frozen=True)
class GalleryContent:
    """What a gallery is built from.

    Attributes:
        blocks: vectors (m, D) and m items each; at least one row in all.
        manifest: kind, model and run of the gallery; the backend fills in the rest.
        total: the number of rows in all, for the progress bar; None where it is not known.
        finish: is called with the gallery before it appears.
    """

    blocks: Iterable[Block]
    manifest: Manifest
    total: int | None = None
    finish: Finish | None = None


class Backend(ABC):
    """The storage of a gallery. Methods that take the ids of items raise GalleryError where there is no such item.

    Attributes:
        manifest: kind, model, threshold and the like.
    """

    refreshes_quickly: ClassVar[bool] = False
    """Whether `refreshed` is quick even where others have changed the gallery."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @abstractmethod
    def __len__(self) -> int:
        """How many items can be found."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the gallery is, as `load` takes it, without a password; empty where it was never saved."""

    @property
    @abstractmethod
    def keeps_images(self) -> Path | None:
        """The folder for images of added items that have no file of their own; None where the gallery keeps none."""

    @property
    def index_bytes(self) -> float | None:
        """Bytes of the approximate index for each of its vectors; None where there is none, or it is not known."""
        return None

    @property
    @abstractmethod
    def items(self) -> pd.DataFrame:
        """The item table, by id, without removed items. A gallery in Milvus fetches all of it."""

    @property
    def columns(self) -> list[str]:
        """The names of the item table's columns."""
        return shown_columns(self.manifest.schema)

    @property
    def schema(self) -> Schema:
        """The columns of the item table and their types."""
        return {name: kind for name, kind in self.manifest.schema.items() if name in self.columns}

    @abstractmethod
    def rows(self, ids: Ids) -> pd.DataFrame:
        """The rows of the item table for these items, by id, in the order of the ids."""

    @abstractmethod
    def vectors(self, ids: Ids) -> Vectors:
        """The vectors, float32 (n, D), of these items."""

    @abstractmethod
    def file_stamps(self, ids: Ids) -> Rows:
        """For each of these items which state of its file it was made from, int64 (n,); 0 where that is not known."""

    @abstractmethod
    def ids_of(self, items: pd.DataFrame, columns: Sequence[str]) -> Rows:
        """For each of the n rows the id, int64, of the first item with the same values in these columns; -1 for none.

        Args:
            items: the rows; a column that they or the gallery lack counts as empty, and empty equals empty.
            columns: `path` among them.
        """

    @abstractmethod
    def add(self, embeddings: Embeddings, items: pd.DataFrame) -> Rows:
        """Add items: this object finds them at once, others find them after `save`.

        Args:
            embeddings: (n, D) floats of any length.
            items: n rows; columns that are new to the gallery are empty in its older rows, and the other way round.

        Returns:
            int64 (n,): their ids, which no other item of the gallery has, had or will have.

        Raises:
            GalleryError: shapes that do not fit, a reserved column, or a cell that its column cannot hold.
        """

    @abstractmethod
    def change_at_once(self, changes: Sequence[Change]) -> tuple[Self, list[int | GalleryError]]:
        """Make changes to the gallery as it is saved now, which count at once: each is made whole, or refused.

        Other processes may do so at the same time. What this object has changed and not saved is not among them.

        Args:
            changes: one or more.

        Returns:
            The gallery with the changes; and for each of them the item's id, or why it was refused: EmptyGalleryError
            for a removal of the last item.

        Raises:
            OverwriteError: other processes were faster each time: try again later.
            GalleryServerError: the gallery's server failed or does not answer; the changes may have been made or not.
        """

    @abstractmethod
    def refreshed(self) -> Self:
        """The gallery as it is saved now, without what this object has not saved; itself where nothing has changed.

        Raises:
            GalleryError: it is not there any more, or damaged, or its server does not answer.
        """

    def prepare_searches(self, before: "Self | None" = None) -> None:  # noqa: B027  # most have nothing to prepare
        """Get ready for many searches of one query each, as a server has them: with more memory they are faster.

        Args:
            before: the gallery as it was before others, or this process, changed it; it was prepared.
        """

    @abstractmethod
    def check_writable(self) -> None:
        """Raise GalleryError where the gallery cannot be changed; called before there is anything to write."""

    @abstractmethod
    def verify(self) -> str:
        """Check what is stored, all of it.

        Returns:
            What is right, for a message.

        Raises:
            GalleryError: it is not what was saved.
        """

    @abstractmethod
    def remove(self, ids: Ids) -> None:
        """Remove items, by their ids or by a mask of truth values over the item table.

        This object no longer finds them; others no longer find them after `save`.
        """

    @abstractmethod
    def rebase(self, old: str, new: str) -> int:
        """Change where items' paths begin, because their files were moved; a gallery in a folder is then to be saved.

        Args:
            old: the folder that the paths lie below.
            new: the folder that takes its place.

        Returns:
            How many items have another path now.

        Raises:
            GalleryError: no item lies below the old folder.
        """

    @abstractmethod
    def save(self, place: str | Path | None = None) -> None:
        """Write what has changed, all of it or nothing.

        Args:
            place: a new folder, for a gallery in memory or a copy of one in a folder; else the gallery's own place.

        Raises:
            OverwriteError: another process is writing, or has written since this one loaded the gallery; or something
                else is in the folder.
            GalleryError: there is nothing to save, or no place is known or this backend cannot save there.
        """

    @classmethod
    @abstractmethod
    def _build(cls, place: str | Path, content: GalleryContent, force: bool) -> Self:
        """See Gallery.build."""

    @classmethod
    @abstractmethod
    def _load(cls, place: str | Path) -> Self:
        """See Gallery.load."""

    @staticmethod
    @abstractmethod
    def check_place(place: str | Path, kind: Kind, force: bool) -> None:
        """See backends.check_place."""

    @staticmethod
    @abstractmethod
    def work_place(place: str | Path, purpose: str) -> Path:
        """See backends.work_place."""

    @abstractmethod
    def _matching(self, conditions: Sequence[Condition]) -> Rows:
        """See Gallery.matching."""

    @abstractmethod
    def _candidates(self, queries: Vectors, wanted: int, conditions: Sequence[Condition]) -> list[Candidates]:
        """For each query (q, D) items that pass the filter, the `wanted` nearest (or all there are) among them."""

    @abstractmethod
    def _table_with(self, ids: Rows) -> pd.DataFrame:
        """A table by id that holds the rows of these items (q, k), and possibly others."""
