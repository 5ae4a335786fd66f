"""Changing where the images of a catalog, or of a file of vectors, lie, because they were moved.

Everything else of the file stays as it is. Galleries do the same by themselves.
"""

import os
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from proxygml.data.catalog.catalog import READ_SUFFIXES, check_suffix
from proxygml.data.catalog.table import read_csv_as_text
from proxygml.data.csv_form import CsvForm
from proxygml.data.images.packed import file_behind
from proxygml.data.parquet import open_parquet
from proxygml.data.paths import rebased_paths
from proxygml.errors import CatalogError
from proxygml.files import PathLike, atomic_write, check_local, local_path


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
        new: the folder in which they are.

    Raises:
        CatalogError: the file is missing, is no table or has no paths, or none lies below `old`.
        UserError: a folder is an empty text, or `new` is a URL.
    """
    check_local(new, "NEW of --rebase")
    path = local_path(catalog, "the catalog")
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
    missing = [place for place in moved[changed] if not file_behind(path.parent / place).exists()]
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
    if "://" in before or Path(before).is_absolute() or not Path(after).is_relative_to(folder):
        return after
    return Path(after).relative_to(folder).as_posix()


def _read_paths(path: Path) -> pd.Series:
    """The column of paths, text or missing."""
    if path.suffix.lower() == ".parquet":
        name = _column(pq.read_schema(path).names)
        return pd.Series(pq.read_table(path, columns=[name], partitioning=None).column(name).to_pylist(), dtype=object)
    table = read_csv_as_text(path, CsvForm.of(path))
    return table[_column(list(table.columns))].astype(object)


def _write_paths(path: Path, moved: pd.Series) -> None:
    with atomic_write(path) as temporary:
        if path.suffix.lower() == ".parquet":
            _write_parquet(path, temporary, [text if isinstance(text, str) else None for text in moved])
            return
        form = CsvForm.of(path)
        table = read_csv_as_text(path, form)
        table[_column(list(table.columns))] = moved
        encoding = "utf-8" if form.encoding == "utf-8-sig" else form.encoding
        table.to_csv(temporary, index=False, sep=form.separator, encoding=encoding)


def _write_parquet(path: Path, target: Path, paths: list[str | None]) -> None:
    """Copy a file of any size, a row group at a time, with other paths."""
    with open_parquet(path, CatalogError) as file:
        number = file.schema_arrow.names.index(_column(file.schema_arrow.names))
        field = file.schema_arrow.field(number)
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
        stored = [groups[0].column(column) for column in range(groups[0].num_columns)] if groups else []
        compression = {column.path_in_schema: column.compression.replace("UNCOMPRESSED", "NONE") for column in stored}
        first = 0
        with pq.ParquetWriter(target, file.schema_arrow, compression=compression or "snappy") as writer:
            for group in range(file.num_row_groups):
                part = file.read_row_group(group)
                column = pa.array(paths[first : first + len(part)], pa.string()).cast(field.type)
                writer.write_table(part.set_column(number, field, column), row_group_size=max(1, len(part)))
                first += len(part)


def _column(names: list[str]) -> str:
    """The name of the column of paths, which may have blanks around it."""
    found = next((name for name in names if name.strip() == "path"), None)
    if found is None:
        raise CatalogError(f"has no column 'path', but {', '.join(names)}")
    return found
