"""The table of a catalog: read from its file, checked column by column, its values brought to one type each.

What a catalog is for is in catalog.py; pandas is loaded here, so that a command's help does without it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from proxygml.data.arrow import to_pandas
from proxygml.data.columns import (
    BOX_COLUMNS,
    EMBEDDING_ROW,
    MARK_COLUMNS,
    ROLE_COLUMNS,
    RULE_COLUMNS,
    SPLIT_NAMES,
    TEXT_COLUMNS,
)
from proxygml.data.csv_form import CsvForm, not_text
from proxygml.data.vectors.source import VectorSource
from proxygml.errors import CatalogError, UserError, did_you_mean, first_few
from proxygml.urls import Place, Url, check_row

MAX_COORDINATE = 2**31 - 1


def load_table(path: Path, vectors: VectorSource | None = None) -> pd.DataFrame:
    """The table of a .csv or .parquet file, as the file has it; of its column of vectors, only the numbers of the rows.

    Raises:
        CatalogError: the file is missing or cannot be read.
    """
    if not path.is_file():
        raise CatalogError("there is no such file; `proxygml prepare` makes a catalog")
    kind = path.suffix.lower()[1:]
    try:
        table = _load_parquet(path, vectors) if kind == "parquet" else _load_csv(path)
    except UnicodeDecodeError as error:
        raise CatalogError(not_text(error)) from error
    except (ValueError, OSError) as error:  # pandas' and pyarrow's parsing errors are ValueErrors
        raise CatalogError(f"cannot be read as {kind}: {error}") from error
    return with_our_names(table)


def with_our_names(table: pd.DataFrame) -> pd.DataFrame:
    """The table with our columns' names without blanks around them."""
    ours = (*TEXT_COLUMNS, *BOX_COLUMNS, *RULE_COLUMNS)
    renamed = table.rename(columns=lambda name: str(name).strip() if str(name).strip() in ours else name)
    if (twice := renamed.columns[renamed.columns.duplicated()]).size:
        raise CatalogError(f"has two columns {str(twice[0])!r}, with and without blanks around: remove one")
    return renamed


def _load_parquet(path: Path, vectors: VectorSource | None) -> pd.DataFrame:
    """The table; in place of the vectors, the number of each row."""
    if vectors is None:
        return to_pandas(pq.read_table(path, partitioning=None))
    columns = [name for name in pq.read_schema(path).names if name != vectors.column]
    if EMBEDDING_ROW in columns:
        raise CatalogError(f"has a column {EMBEDDING_ROW!r}, a name that proxygml uses itself: rename it")
    table = to_pandas(pq.read_table(path, columns=columns, partitioning=None))
    return table.assign(**{EMBEDDING_ROW: np.arange(vectors.rows)})


def _load_csv(path: Path) -> pd.DataFrame:
    """Text stays text, in the user's own columns too: an article may be 00123, a class may be called NA."""
    form = CsvForm.of(path)
    columns = _read_csv(path, form, nrows=0).columns
    parsed = [column for column in columns if column.strip() in (*BOX_COLUMNS, *ROLE_COLUMNS, *MARK_COLUMNS)]
    return _read_csv(
        path,
        form,
        dtype={column: str for column in columns if column not in parsed},
        keep_default_na=False,
        na_values={column: ["", "None", "nan", "NaN", "NA", "<NA>"] for column in parsed},
        low_memory=False,
    )


def read_csv_as_text(path: Path, form: CsvForm) -> pd.DataFrame:
    """The whole table as the file has it, every cell text, empty ones too."""
    return _read_csv(path, form, dtype=str, keep_default_na=False)


def _read_csv(path: Path, form: CsvForm, **options: Any) -> pd.DataFrame:
    return pd.read_csv(
        path,
        encoding=form.encoding,
        sep=form.separator,
        skiprows=form.skipped_lines,
        skipinitialspace=form.padded,
        decimal="," if form.separator == ";" else ".",  # as spreadsheets write both, in the same countries
        **options,
    )


def normalised(table: pd.DataFrame, folder: Place) -> pd.DataFrame:
    """The table of a catalog in a folder, index 0..n-1, each of our columns in the one type that `Catalog` describes.

    Raises:
        CatalogError: a column is missing, or holds what it may not hold.
    """
    _check_columns(table)
    table = table.reset_index(drop=True)
    for column in _text_columns(table):
        table[column] = _as_text(table[column])
    if "path" in table:
        check_paths(table["path"], folder, CatalogError)
    table["split"] = as_splits(table["split"])
    if BOX_COLUMNS[0] in table:
        table[list(BOX_COLUMNS)] = _as_boxes(table[list(BOX_COLUMNS)])
    if ROLE_COLUMNS[0] in table:
        for role in ROLE_COLUMNS:
            table[role] = _as_flags(table[role], table["split"])
    for mark in MARK_COLUMNS:
        if mark in table:
            table[mark] = _as_flags(table[mark], table["split"])
            _check_marks(table[mark], table["split"])
    return table


def check_paths(paths: pd.Series, folder: Place, kind: type[UserError]) -> None:
    """Check the paths of a table that lies in a folder; see urls.check_row. Missing cells are left alone.

    Raises:
        UserError: of that kind; a path may not stand there.
    """
    texts = paths.dropna().astype("str")
    odd = texts if isinstance(folder, Url) else texts[texts.str.contains(":/", regex=False)]
    for row, path in odd.items():
        check_row(path, int(row), folder, kind)


def _check_marks(marks: pd.Series, splits: pd.Series) -> None:
    wrong = marks & (splits == "train")
    if wrong.any():
        raise CatalogError(
            f"has {marks.name} True in {_rows(wrong)} of the training split: junk and distractors are for evaluation; "
            "leave these rows out, or move them to test"
        )


def _check_columns(table: pd.DataFrame) -> None:
    columns = [str(column) for column in table.columns if column != EMBEDDING_ROW]
    for group in (BOX_COLUMNS, ROLE_COLUMNS):
        there = [column for column in group if column in columns]
        if there and len(there) < len(group):
            absent = ", ".join(column for column in group if column not in columns)
            raise CatalogError(
                f"has the column {', '.join(there)} but not {absent}: give all of {', '.join(group)}, or none"
            )
    for column in _text_columns(table):
        if column not in columns:
            also = {"path": " of images, and no 'embedding' of vectors", "split": " of train, val or test"}
            raise CatalogError(
                f"has no column {column!r}{also.get(column, '')}; add it, or rename the one that holds it: "
                f"{did_you_mean(column, columns)}"
            )


def _text_columns(table: pd.DataFrame) -> list[str]:
    """Those that must be there: vectors need no images."""
    optional = EMBEDDING_ROW in table and "path" not in table
    return [column for column in TEXT_COLUMNS if not (optional and column == "path")]


def _as_text(column: pd.Series) -> pd.Series:
    """A column of text in which every cell has some."""
    if isinstance(column.dtype, pd.StringDtype) and not (column.isna() | (column.str.strip() == "")).any():
        return column.astype("str")  # without an object for each cell: there may be a hundred million
    text = text_cells(column)
    empty = text.isna()
    if empty.any():
        raise CatalogError(f"has no {column.name} in {_rows(empty)}: every row needs one")
    return text.astype("str")


def text_cells(column: pd.Series) -> pd.Series:
    """Text as it is, None where there is none; whole numbers without a fraction, also where some are missing."""
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    text = column.astype("string").astype(object)
    return text.where(~(text.isna() | (text.str.strip() == "")), None)


def as_splits(column: pd.Series) -> pd.Series:
    """The splits under our names. `validation` means `test` where there is no other test split."""
    given = column.str.strip().str.lower()
    if not given.map(SPLIT_NAMES).eq("test").any():
        given = given.replace("validation", "test")
    splits = given.map(SPLIT_NAMES)
    if (unknown := splits.isna()).any():
        found = str(column[unknown].iloc[0])
        hint = did_you_mean(found.strip().lower(), SPLIT_NAMES)
        raise CatalogError(f"has the split {found!r} in {_rows(unknown)}, which is none that is known; {hint}")
    return splits.astype("str")


def _as_boxes(columns: pd.DataFrame) -> pd.DataFrame:
    """The boxes in whole pixels, rounded outwards, so that nothing of a box is lost."""
    try:
        boxes = columns.apply(pd.to_numeric).astype("Float64").astype("float64")
    except (ValueError, TypeError) as error:
        raise CatalogError(f"has a box ({', '.join(BOX_COLUMNS)}) that is no number: {error}") from error
    given = boxes.notna().sum(axis=1)
    if (partial := (given > 0) & (given < len(BOX_COLUMNS))).any():
        raise CatalogError(
            f"has only a part of a box in {_rows(partial)}: give all of {', '.join(BOX_COLUMNS)}, or none"
        )
    if (boundless := (boxes.abs() > MAX_COORDINATE).any(axis=1)).any():
        raise CatalogError(f"has a box beyond {MAX_COORDINATE} pixels in {_rows(boundless)}")
    lower, upper = list(BOX_COLUMNS[:2]), list(BOX_COLUMNS[2:])
    boxes[lower] = np.floor(boxes[lower])
    boxes[upper] = np.ceil(boxes[upper])
    return boxes.astype("Int64")


def _as_flags(column: pd.Series, splits: pd.Series) -> pd.Series:
    """True and False, however the file spells them; training rows may leave it empty, which means False."""
    spelled = column.astype(object).map(lambda value: value.strip().lower() if isinstance(value, str) else value)
    flags = spelled.map({True: True, False: False, "true": True, "false": False, "1": True, "0": False})
    wrong = flags.isna() & ~((splits == "train") & column.isna())
    if wrong.any():
        found = column[wrong].iloc[0]
        raise CatalogError(
            f"has {column.name} {str(found)!r} in {_rows(wrong)}, but must have True or False in every val and test row"
        )
    return flags.eq(True).astype(bool)


def check_box_areas(table: pd.DataFrame) -> None:
    """Raise CatalogError where a box of a normalised table has no area, or begins outside of its image."""
    if BOX_COLUMNS[0] not in table:
        return
    x_1, y_1, x_2, y_2 = (table[column] for column in BOX_COLUMNS)
    wrong = ((x_1 >= x_2) | (y_1 >= y_2) | (x_1 < 0) | (y_1 < 0)).fillna(False).astype(bool)
    if wrong.any():
        box = tuple(int(value) for value in table.loc[wrong, list(BOX_COLUMNS)].iloc[0])
        raise CatalogError(
            f"has the box {box} in {_rows(wrong)}: expected 0 <= x_1 < x_2 and 0 <= y_1 < y_2, in pixels"
        )


def _rows(mask: pd.Series) -> str:
    numbers = [str(row) for row in np.flatnonzero(mask)]
    return f"row{'s' if len(numbers) > 1 else ''} {first_few(numbers)}"
