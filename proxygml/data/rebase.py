"""Changing where the images of a catalog, or of a file of vectors, lie, because they were moved.

Everything else of the file stays as it is. Galleries do the same by themselves.
"""

import os
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from proxygml.data.catalog import READ_SUFFIXES, check_suffix
from proxygml.data.catalog_table import read_csv_as_text
from proxygml.data.csv_form import CsvForm
from proxygml.data.paths import rebased_paths
from proxygml.errors import CatalogError
from proxygml.files import PathLike, atomic_write


class Rebased(NamedTuple):
    """What changing the paths of a table has done."""

    rows: int
    """Of the table."""
    changed: int
    """Rows whose path has changed."""
    missing: list[str]
    """Changed paths at which there is no file."""


def rebase_catalog(catalog: PathLike, old: str, new: str) -> Rebased:
    """Change where the paths of a catalog, or of a file that `embed` wrote, begin.

    A relative path stays relative where its image lies below the catalog's folder; else it is written from the root.

    Args:
        catalog: the .parquet or .csv file; replaced in one step.
        old: the folder in which the images were: from the root, from the working folder, or as the catalog has it.
        new: the folder in which they are, or a URL.

    Raises:
        CatalogError: the file is missing, is no table or has no paths, or none lies below `old`.
    """
    path = Path(catalog)
    check_suffix(path, READ_SUFFIXES)
    if not path.is_file():
        raise CatalogError(f"there is no {path}: give --out the catalog whose images were moved")
    try:
        written = _read_paths(path)
    except (ValueError, OSError) as error:  # of pandas and pyarrow; a CatalogError is a ValueError too
        raise CatalogError(f"{path}: {error}") from error
    moved = _moved(written, path, old, new)
    changed = (moved != written) & written.notna()
    _write_paths(path, moved)
    places = moved[changed & ~moved.str.contains("://", regex=False).fillna(False).astype(bool)]
    missing = [place for place in places if not (path.parent / place).exists()]
    return Rebased(len(written), int(changed.sum()), missing)


def _moved(written: pd.Series, path: Path, old: str, new: str) -> pd.Series:
    """The paths as the table will have them."""
    folders = (os.path.abspath(path.parent), os.path.realpath(path.parent), "")  # noqa: PTH100  (`old` may be any)
    forms = [written.map(lambda text, folder=folder: _within(text, folder)) for folder in folders]
    for number, form in enumerate(forms, start=1):
        try:
            moved = rebased_paths(form, old, new, CatalogError)
        except CatalogError as error:
            if number < len(forms):
                continue
            raise CatalogError(f"{path}: {error}") from error
        unchanged = (moved == form) | written.isna()
        folder = Path(folders[1])
        shown = [
            _as_written(before, after, folder) if isinstance(before, str) else before
            for before, after in zip(written, moved, strict=True)
        ]
        return written.where(unchanged, pd.Series(shown, written.index, dtype=object))
    raise AssertionError


def _within(text: object, folder: str) -> object:
    """A relative path, taken as one within a folder."""
    if not isinstance(text, str) or not text or "://" in text or Path(text).is_absolute():
        return text
    return os.path.normpath(Path(folder, text))


def _as_written(before: str, after: str, folder: Path) -> str:
    """The new path: relative to the folder where the old one was relative and the new one lies below it."""
    if "://" in before or "://" in after or Path(before).is_absolute() or not Path(after).is_relative_to(folder):
        return after
    return Path(after).relative_to(folder).as_posix()


def _read_paths(path: Path) -> pd.Series:
    """The column of paths, text or missing."""
    if path.suffix.lower() == ".parquet":
        table = pq.read_table(path, partitioning=None)
        return pd.Series(table.column(_column(table.column_names, path)).to_pylist(), dtype=object)
    table = read_csv_as_text(path, CsvForm.of(path))
    return table[_column(list(table.columns), path)].astype(object)


def _write_paths(path: Path, moved: pd.Series) -> None:
    if path.suffix.lower() == ".parquet":
        table = pq.read_table(path, partitioning=None)
        number = table.column_names.index(_column(table.column_names, path))
        field = table.schema.field(number)
        column = pa.array([text if isinstance(text, str) else None for text in moved], pa.string()).cast(field.type)
        with atomic_write(path) as temporary:
            pq.write_table(table.set_column(number, field, column), temporary)
        return
    form = CsvForm.of(path)
    table = read_csv_as_text(path, form)
    table[_column(list(table.columns), path)] = moved
    encoding = "utf-8" if form.encoding == "utf-8-sig" else form.encoding
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, sep=form.separator, encoding=encoding)


def _column(names: list[str], path: Path) -> str:
    """The name of the column of paths, which may have blanks around it."""
    found = next((name for name in names if name.strip() == "path"), None)
    if found is None:
        raise CatalogError(f"has no column 'path', but {', '.join(names)}")
    return found
