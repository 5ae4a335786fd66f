"""The table of a Parquet catalog, checked in parts: checks and conversions need no memory beyond that of a part.

table.py has the checks, and reads what only the whole table can say.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proxygml.data.arrow import to_pandas
from proxygml.data.catalog.table import as_splits, normalised, with_our_names
from proxygml.data.columns import (
    BOX_COLUMNS,
    EMBEDDING_ROW,
    KEEP,
    MARK_COLUMNS,
    ROLE_COLUMNS,
    RULE_COLUMNS,
    TEXT_COLUMNS,
)
from proxygml.data.vectors.source import VectorSource, read_batches
from proxygml.errors import CatalogError
from proxygml.urls import Place

CHECKED_COLUMNS = (*TEXT_COLUMNS, *BOX_COLUMNS, *ROLE_COLUMNS, *MARK_COLUMNS)
"""Those whose every cell is checked, and brought to one type."""

KNOWN_COLUMNS = (*TEXT_COLUMNS, *BOX_COLUMNS, *RULE_COLUMNS)

READ_COLUMNS = (*KNOWN_COLUMNS, KEEP, "id")
"""Those that training reads; all others are the user's own."""

CHECKED_AT_A_TIME = 2**17


def table_in_parts(file: Path, folder: Place, vectors: VectorSource | None, *, own: bool) -> pd.DataFrame | None:
    """The table of a Parquet catalog, checked; None where only the whole table can be checked, or something is wrong.

    Args:
        file: the catalog.
        folder: what its paths are relative to.
        vectors: its column of vectors, whose rows are numbered in place of it.
        own: read the user's own columns too.
    """
    if file.suffix.lower() != ".parquet" or not file.is_file():
        return None
    try:
        schema = pq.read_schema(file)
        if splits_of(file) is None:
            return None
        kept = [name for name in schema.names if vectors is None or name != vectors.column]
        ours = [name for name in kept if name.strip() in CHECKED_COLUMNS]
        others = [name for name in kept if name not in ours and (own or name.strip() in READ_COLUMNS)]
        table = pd.concat(_checked_parts(file, folder, vectors, ours), ignore_index=True)
        if others:  # as they are in the file, whose columns keep their order
            beside = with_our_names(to_pandas(pq.read_table(file, columns=others, partitioning=None)))
            names = [name.strip() if name.strip() in KNOWN_COLUMNS else name for name in kept]
            table = pd.concat([table, beside], axis=1)
            table = table[[name for name in (*names, EMBEDDING_ROW) if name in table]]
    except (CatalogError, pa.ArrowException, OSError, ValueError):
        return None
    return table


def _checked_parts(
    file: Path, folder: Place, vectors: VectorSource | None, columns: Sequence[str]
) -> Iterator[pd.DataFrame]:
    """The columns that are checked, in parts; with the number of its vector for each row, where there are vectors."""
    splits = splits_of(file)
    assert splits is not None  # looked at before
    first = 0
    for batch in read_batches(file, list(columns), rows=CHECKED_AT_A_TIME):
        table = with_our_names(to_pandas(batch))
        table["split"] = table["split"].astype("str").map(splits.names)
        numbers = {EMBEDDING_ROW: np.arange(first, first + len(table))} if vectors is not None else {}
        first += len(table)
        yield normalised(table.assign(**numbers), folder)


class Splits(NamedTuple):
    """The column `split` of a file."""

    counts: dict[str, int]
    """How many rows each of its values has."""
    names: dict[str, str]
    """What each is called by us."""


def splits_of(file: Path) -> Splits | None:
    """The splits of a catalog; None where it says more as a whole than its parts would, or is wrong."""
    schema = pq.read_schema(file)
    columns = {name.strip(): name for name in schema.names}
    # Numbers with a fraction are text as a whole; a name that is missing or comes twice, the whole table says.
    if not {"label", "split"} <= columns.keys() or EMBEDDING_ROW in columns or len(columns) < len(schema.names):
        return None
    if any(pa.types.is_floating(schema.field(columns[name]).type) for name in ("path", "label") if name in columns):
        return None
    counts = _counts(file, columns["split"])
    try:
        texts = pd.Series(list(counts), dtype="str")
        return Splits(counts, dict(zip(texts, as_splits(texts), strict=True)))
    except (CatalogError, TypeError, ValueError):
        return None


def _counts(file: Path, column: str) -> dict[str, int]:
    """How often each value of a column of text comes."""
    found: dict[str, int] = {}
    for batch in read_batches(file, [column]):
        for entry in pc.value_counts(batch.column(0)).to_pylist():
            text = str(entry["values"])
            found[text] = found.get(text, 0) + int(entry["counts"])
    return found
