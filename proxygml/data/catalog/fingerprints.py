"""Digests of catalogs, by which files that were made from one know it again; a part at a time."""

import hashlib
import posixpath
from collections.abc import Iterator

import pandas as pd

from proxygml.data.catalog.vectors import sample_of
from proxygml.data.columns import BOX_COLUMNS, EMBEDDING_ROW, KEEP, RULE_COLUMNS
from proxygml.data.vectors.source import VectorSource

_ROWS_AT_A_TIME = 2**16


def catalog_fingerprint(table: pd.DataFrame, vectors: VectorSource | None) -> str:
    """See Catalog.fingerprint."""
    names = ("path", "label", "split", *BOX_COLUMNS, *RULE_COLUMNS, KEEP)
    digest = hashlib.sha256()
    for text in csv_parts(table[[name for name in names if name in table]], bare_names=True):
        digest.update(text)
    if vectors is not None:
        digest.update(sample_of(vectors, table[EMBEDDING_ROW].to_numpy()))
    return digest.hexdigest()[:12]


def csv_parts(table: pd.DataFrame, bare_names: bool = False) -> Iterator[bytes]:
    """A table as a .csv file, in parts, for digests of tables of any length.

    Args:
        table: with a column `path`, or without.
        bare_names: write paths without their folders.
    """
    for start in range(0, max(1, len(table)), _ROWS_AT_A_TIME):
        part = table.iloc[start : start + _ROWS_AT_A_TIME]
        if bare_names and "path" in part:
            part = part.assign(path=part["path"].map(posixpath.basename))
        yield part.to_csv(index=False, header=start == 0, lineterminator="\n").encode()
