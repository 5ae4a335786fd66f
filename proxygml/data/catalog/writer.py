"""A catalog written to a file, CSV or Parquet; table.py and parquet_table.py read one."""

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from proxygml.data.arrow import to_arrow
from proxygml.data.catalog.vectors import write_with_vectors
from proxygml.data.vectors.source import VectorSource
from proxygml.files import atomic_write
from proxygml.urls import Place, Url, place_in, url_of


def write_table(table: pd.DataFrame, folder: Place, vectors: VectorSource | None, path: Path) -> None:
    """Write the table of a catalog, whole or not at all, in place of what is there.

    Args:
        table: as a catalog has it.
        folder: what its relative paths are relative to; they are written relative to the folder of the file.
        vectors: those of its rows, where it has some.
        path: the file, whose name ends with .csv or .parquet.

    Raises:
        CatalogError: the catalog has vectors, which a .csv file cannot hold.
    """
    if "path" in table:
        table = table.assign(path=_rebased(table["path"], folder, path.parent))
    with atomic_write(path) as temporary:
        if vectors is not None:
            write_with_vectors(table, vectors, temporary, path)
        elif path.suffix.lower() == ".csv":
            table.to_csv(temporary, index=False)
        else:
            pq.write_table(to_arrow(table), temporary)


def _rebased(paths: Iterable[str], old: Place, new: Path) -> list[str]:
    """Relative paths, relative to another folder; absolute ones and URLs as they are.

    Other drives have no relative paths, and neither has a URL.
    """
    if isinstance(old, Url):
        return [str(place_in(old, path)) for path in paths]
    # Resolved on both sides, because `..` after a symbolic link goes somewhere else.
    try:
        prefix = Path(os.path.relpath(old.resolve(), new.resolve())).as_posix()
    except ValueError:
        prefix = old.resolve().as_posix()
    return [
        path if Path(path).is_absolute() or url_of(path) else posixpath.normpath(posixpath.join(prefix, path))
        for path in paths
    ]
