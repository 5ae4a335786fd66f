"""A catalog of vectors in blocks, for work that passes over it once: it may have any length."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from proxygml.data.arrow import to_pandas
from proxygml.data.catalog import Catalog
from proxygml.data.catalog.parquet_table import splits_of
from proxygml.data.catalog.table import check_box_areas, normalised, with_our_names
from proxygml.data.catalog.vectors import vectors_of
from proxygml.data.columns import EMBEDDING_ROW
from proxygml.data.vectors.checks import Floats
from proxygml.data.vectors.source import VectorSource, checked_lists, read_batches
from proxygml.errors import CatalogError
from proxygml.remote import local_file
from proxygml.urls import Place


@dataclass(frozen=True)
class CatalogBlocks:
    """The rows of a catalog of vectors, as `Catalog.read` and `Catalog.split` give them, in blocks.

    Attributes:
        place: the catalog.
        vectors: its vectors.
        split: train, val, test, or all.
        total: how many rows the blocks have together.
    """

    place: Place
    vectors: VectorSource
    split: str
    total: int
    _names: dict[str, str]
    """What each split is called in the file, in our words."""

    @classmethod
    def of(cls, place: Place, split: str) -> "CatalogBlocks | None":
        """The blocks of a catalog; None where it has no vectors, or says more as a whole than its blocks would.

        Raises:
            CatalogError: there is no such file, or it has no such split; or one of the errors of `Catalog.read`.
        """
        file = local_file(place, CatalogError)
        vectors = vectors_of(place, file)
        if vectors is None or (splits := splits_of(file)) is None:
            return None
        counts, names = splits
        found = sum(number for text, number in counts.items() if split in ("all", names[text]))
        if not found:
            return None
        return cls(place, vectors, split, found, names)

    def blocks(self) -> Iterator[tuple[Floats, pd.DataFrame]]:
        """Up to 16,384 rows at a time: vectors (m, F), and a table of m rows without them, index 0..m-1.

        Raises:
            CatalogError: see Catalog.read.
        """
        first = 0
        for batch in read_batches(self.vectors.file):
            try:
                vectors, table = self._block(batch, first)
            except CatalogError:
                Catalog.read(self.place)  # which names the rows as they are counted in the whole table
                raise
            first += len(batch)
            chosen = slice(None) if self.split == "all" else table["split"].eq(self.split).to_numpy()
            if len(part := table[chosen]):
                yield vectors[chosen], part.reset_index(drop=True)

    def _block(self, batch: Any, first: int) -> tuple[Floats, pd.DataFrame]:
        vectors, problems = checked_lists(batch.column(self.vectors.column), self.vectors.size)
        self.vectors.check_rows({first + row: problem for row, problem in problems.items()})
        table = with_our_names(to_pandas(batch.drop_columns([self.vectors.column])))
        table["split"] = table["split"].astype("str").map(self._names)
        table = normalised(table.assign(**{EMBEDDING_ROW: range(first, first + len(table))}), self.place.parent)
        check_box_areas(table)
        return vectors, table.drop(columns=EMBEDDING_ROW)
