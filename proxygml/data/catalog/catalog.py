"""The catalog: one table of images, labels and splits that every command reads.

It checks and splits the table. table.py reads it, writer.py writes it, preparing/ opens the images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from proxygml.arguments import check_arguments
from proxygml.data.columns import (
    BOX_COLUMNS,
    EMBEDDING_ROW,
    GROUP_COLUMNS,
    MARK_COLUMNS,
    ROLE_COLUMNS,
    SPLITS,
)
from proxygml.data.lazy_list import LazyList
from proxygml.errors import CatalogError, UserError, counted, first_few
from proxygml.evaluation.rules import RuleColumns, group_codes, make_rules
from proxygml.files import check_local, check_overwrite
from proxygml.urls import Place, as_place, place_in

if TYPE_CHECKING:
    import pandas as pd

    from proxygml.data.vectors.source import VectorSource

SUFFIXES = (".csv", ".parquet")
READ_SUFFIXES = (*SUFFIXES, ".tsv")
"""Of the tables that are read: one whose columns are separated by tabs may be called so."""

_NO_IMAGES = (
    "the catalog has vectors but no images: train on them with --recipe vectors, or give a catalog with a column `path`"
)

_NO_VECTORS = (
    "the catalog has no vectors, a column `embedding` of lists of floats, which this model takes: make one with "
    "`proxygml prepare vectors`"
)

_ROWS_AT_A_TIME = 2**16


class Count(NamedTuple):
    """How many images and classes a part of a catalog has."""

    images: int
    classes: int


@dataclass(frozen=True, eq=False)
class Catalog:
    """Images with their labels and splits, in open-metric-learning's column names.

    Attributes:
        table: One row an image, index 0..n-1. `path` (str, relative to `folder` with forward slashes, absolute, or a
            URL; the table of a catalog at a URL names no file of this machine), `label` (str), `split` (one of SPLITS);
            optionally `x_1 y_1 x_2 y_2` (nullable integers, pixels of the upright image, the right and lower edge not
            included; all four or none), `is_query is_gallery` (bool, both or none), `sequence` and `camera` (integers
            or text; missing for none), `is_junk` and `is_distractor` (bool), `keep` (which rows train; kept_rows.py
            reads it). Other columns are kept as they are; those of a CSV file are text, exactly as the file has it. A
            catalog of vectors may do without `path`, and has `embedding_row`, the row of its vector in `vectors`.
        folder: The folder that the relative paths are relative to; or its URL.
        vectors: The file with the vectors, where the catalog has some: its column `embedding`.

    Raises:
        CatalogError: The table has other columns, values or types than these. Boxes without an area are accepted here:
            `Catalog.read` refuses them, `prepare` reports them.
    """

    table: "pd.DataFrame"
    folder: Place
    vectors: "VectorSource | None" = None

    def __post_init__(self) -> None:
        from proxygml.data.catalog.table import normalised  # noqa: PLC0415  # pandas loads when there is a table

        object.__setattr__(self, "table", normalised(self.table, self.folder))

    @classmethod
    def of_rows(cls, rows: Iterable[Sequence[object]], columns: Sequence[str], folder: Place) -> "Catalog":
        """A catalog of these rows, each with one value for each of the columns."""
        import pandas as pd  # noqa: PLC0415

        left = iter(rows)
        parts = iter(lambda: list(islice(left, _ROWS_AT_A_TIME)), [])  # a row of Python's values takes much memory
        first = pd.DataFrame(next(parts, []), columns=list(columns))
        others = [pd.DataFrame(part, columns=list(columns)) for part in parts]
        return cls(pd.concat([first, *others], ignore_index=True) if others else first, folder)

    @classmethod
    @check_arguments
    def read(cls, path: Path | str, check_boxes: bool = True, own: bool = True) -> "Catalog":
        """Read a CSV or Parquet table, ours or one made for open-metric-learning.

        A CSV may have commas, semicolons, tabs or vertical bars between its columns, and may be UTF-8 or UTF-16. Splits
        may be called as SPLIT_NAMES has them, in small or capital letters; `validation`, as open-metric-learning has
        it, becomes `test` where the table has no other test rows.

        Args:
            path: The table, or its URL; its relative paths are relative to its folder.
            check_boxes: False accepts boxes without an area, for a caller that reports them all.
            own: False leaves out the user's own columns of a Parquet file, which may be many.

        Raises:
            CatalogError: The file is missing or no table, or the table is wrong (see the class).
        """
        from proxygml.data.catalog.parquet_table import table_in_parts  # noqa: PLC0415
        from proxygml.data.catalog.table import check_box_areas, load_table  # noqa: PLC0415
        from proxygml.data.catalog.vectors import vectors_of  # noqa: PLC0415
        from proxygml.remote import local_file  # noqa: PLC0415

        place = as_place(path, "the catalog", CatalogError)
        _check_file(place)
        file = local_file(place, CatalogError)
        try:
            vectors = vectors_of(place, file)
            table = table_in_parts(file, place.parent, vectors, own=own)
            if table is None:
                catalog = cls(load_table(file, vectors), place.parent, vectors)
            else:
                catalog = cls._of_checked(table, place.parent, vectors)
            if check_boxes:
                check_box_areas(catalog.table)
        except CatalogError as error:
            raise CatalogError(f"{place}: {error}") from error
        return catalog

    @classmethod
    def _of_checked(cls, table: "pd.DataFrame", folder: Place, vectors: "VectorSource | None") -> "Catalog":
        """A catalog of a table that was checked already."""
        catalog = cls.__new__(cls)
        for name, value in (("table", table), ("folder", folder), ("vectors", vectors)):
            object.__setattr__(catalog, name, value)
        return catalog

    def write(self, path: Path | str, force: bool = False) -> None:
        """Write CSV or Parquet, by suffix, whole or not at all; relative paths become relative to its folder.

        Raises:
            OverwriteError: Something is at `path` already and `force` is False.
            CatalogError: The suffix is neither .csv nor .parquet.
        """
        from proxygml.data.catalog.writer import write_table  # noqa: PLC0415  # pyarrow loads when it is needed

        check_local(path, "the catalog", CatalogError)
        path = Path(path)
        check_suffix(path)
        check_overwrite(path, force)
        write_table(self.table, self.folder, self.vectors, path)

    def split(self, name: str) -> "Catalog":
        """The rows of one split.

        Raises:
            CatalogError: The catalog has no such rows.
        """
        rows = self.table[self.table["split"] == name]
        if rows.empty:
            there = ", ".join(split for split in SPLITS if (self.table["split"] == split).any()) or "none"
            raise CatalogError(f"the catalog has no split {name!r}; the splits that it has: {there}")
        return self._of_checked(rows.reset_index(drop=True), self.folder, self.vectors)

    def with_table(self, table: "pd.DataFrame") -> "Catalog":
        """The same folder and vectors with another table, such as some of its rows."""
        return replace(self, table=table)

    @property
    def has_images(self) -> bool:
        """Whether the rows have paths; those of vectors alone have none."""
        return "path" in self.table

    @property
    def paths(self) -> LazyList[Place]:
        """Where the images are, `folder` included; as a list that makes each when it is needed.

        Raises:
            CatalogError: The rows have no paths.
        """
        if not self.has_images:
            raise CatalogError(_NO_IMAGES)
        return LazyList(self.table["path"], partial(place_in, self.folder))

    @property
    def vector_source(self) -> "VectorSource":
        """`vectors`, for those who need some.

        Raises:
            CatalogError: The catalog has no vectors.
        """
        if self.vectors is None:
            raise CatalogError(_NO_VECTORS)
        return self.vectors

    @property
    def vector_rows(self) -> npt.NDArray[np.int64]:
        """(n,) int64, the row of its vector in `vectors`, for each row; of a catalog with vectors."""
        rows: npt.NDArray[np.int64] = self.table[EMBEDDING_ROW].to_numpy(dtype=np.int64)
        return rows

    @property
    def labels(self) -> list[str]:
        """The label of each row."""
        return [str(label) for label in self.table["label"]]

    @property
    def boxes(self) -> npt.NDArray[np.int64] | None:
        """(n, 4) int64, x_1 y_1 x_2 y_2 in pixels; zeros stand for the whole image. None without box columns."""
        return boxes_of(self.table)

    @property
    def is_query(self) -> npt.NDArray[np.bool_] | None:
        """(n,) bool, which images are queries; None where every image is one."""
        return self.table["is_query"].to_numpy(dtype=bool) if "is_query" in self.table else None

    @property
    def is_gallery(self) -> npt.NDArray[np.bool_] | None:
        """(n,) bool, which images are searched; None where every image is."""
        return self.table["is_gallery"].to_numpy(dtype=bool) if "is_gallery" in self.table else None

    @property
    def rules(self) -> RuleColumns:
        """Which images may answer for which query: what `proxygml.evaluate` takes as its arguments of these names."""
        return rules_of(self.table)

    @property
    def fingerprint(self) -> str:
        """A hash, 12 hex digits, of the rows in order: file names without folders, labels, splits, boxes, rules, kept;
        of a catalog with vectors, also of some of these."""
        from proxygml.data.catalog.fingerprints import catalog_fingerprint  # noqa: PLC0415

        return catalog_fingerprint(self.table, self.vectors)

    @property
    def classes(self) -> list[str]:
        """The labels that occur, sorted."""
        return sorted(self.table["label"].unique())

    @property
    def class_numbers(self) -> npt.NDArray[np.int64]:
        """(n,) int64, the class of each row: its place among `classes`."""
        return _places_of(self.table["label"], self.classes)

    @property
    def counts(self) -> dict[str, Count]:
        """Images and classes of each split that has rows; of `query` and `gallery` too where the catalog has them."""
        return _counts_of(self.table)

    def __len__(self) -> int:
        return len(self.table)


def _places_of(labels: "pd.Series", classes: Sequence[str]) -> npt.NDArray[np.int64]:
    import pandas as pd  # noqa: PLC0415  # loaded already: there is a table

    codes, found = pd.factorize(labels)
    places = {label: place for place, label in enumerate(classes)}
    numbers: npt.NDArray[np.int64] = np.array([places[label] for label in found], np.int64)[codes]
    return numbers


def _counts_of(table: "pd.DataFrame") -> dict[str, Count]:
    parts = {name: table["split"] == name for name in SPLITS}
    if ROLE_COLUMNS[0] in table:
        parts |= {role.removeprefix("is_"): table[role] & (table["split"] == "test") for role in ROLE_COLUMNS}
    return {
        name: Count(int(rows.sum()), int(table.loc[rows, "label"].nunique()))
        for name, rows in parts.items()
        if rows.any()
    }


def _check_file(place: Place) -> None:
    """Raise CatalogError for what can be no catalog by its name, or is a folder."""
    if isinstance(place, Path) and place.is_dir():
        raise CatalogError(
            f"{place} is a folder, but a catalog is a .csv or a .parquet file: `proxygml prepare folder` makes one "
            "from a folder of images"
        )
    check_suffix(place, READ_SUFFIXES)


def check_suffix(path: Place, known: Sequence[str] = SUFFIXES) -> None:
    """Raise CatalogError when the name does not end as that of a catalog."""
    if path.suffix.lower() not in known:
        raise CatalogError(f"{path} ends with {path.suffix or 'no suffix'}: a catalog is a .csv or a .parquet file")


def boxes_of(table: "pd.DataFrame") -> npt.NDArray[np.int64] | None:
    """The boxes of a table of images; see Catalog.boxes."""
    if BOX_COLUMNS[0] not in table:
        return None
    boxes: npt.NDArray[np.int64] = table[list(BOX_COLUMNS)].fillna(0).to_numpy(dtype=np.int64)
    return boxes


def rules_of(table: "pd.DataFrame") -> RuleColumns:
    """The columns of a table that say which images may answer for which query; see Catalog.rules."""
    rules = RuleColumns()
    for column in (*ROLE_COLUMNS, *MARK_COLUMNS):
        if column in table:
            rules[column] = table[column].to_numpy(dtype=bool)  # type: ignore[literal-required]
    for column in GROUP_COLUMNS:
        if column in table:
            values = table[column].astype(object)
            rules[column] = values.where(values.notna(), None).tolist()  # type: ignore[literal-required]
    return rules


def split_classes(catalog: Catalog) -> dict[str, set[str]]:
    """The classes of each split that has rows.

    Raises:
        CatalogError: There are no rows, or two splits share classes.
    """
    table = catalog.table
    found = {name: set(table.loc[table["split"] == name, "label"].unique()) for name in SPLITS}
    parts = {name: classes for name, classes in found.items() if classes}
    if not parts:
        raise CatalogError("the catalog has no rows")
    for (one, ones), (other, others) in combinations(parts.items(), 2):
        if shared := sorted(ones & others):
            raise CatalogError(
                f"{counted(len(shared), 'class')} in both {one} and {other} ({first_few(shared)}): retrieval "
                "is judged on classes never seen in training, so every class belongs whole to one split"
            )
    return parts


def check_splits(catalog: Catalog) -> list[str]:
    """Check that the splits are class-disjoint and that each serves its purpose.

    Returns:
        Warnings for the user; the catalog can be used all the same.

    Raises:
        CatalogError: Two splits share classes, the training split has one class only, or nothing can be retrieved
            in a validation or test split.
    """
    parts = split_classes(catalog)
    warnings = [
        f"the catalog has no {name} split: it can be {use}"
        for name, use in (("train", "evaluated, but not trained on"), ("test", "trained on, but not evaluated"))
        if name not in parts
    ]
    if len(classes := parts.get("train", ())) == 1:
        raise CatalogError(
            f"the train split has one class only ({next(iter(classes))!r}): at least 2 are needed, so label items of "
            "more classes, or let fewer classes test"
        )
    for name in ("val", "test"):
        if name in parts:
            warnings += _check_retrieval(catalog.split(name), name)
    return warnings


def _check_retrieval(part: Catalog, name: str) -> list[str]:
    """Warnings about one validation or test split; CatalogError when no query can find anything."""
    table = part.table
    given = part.rules
    try:
        groups = {name: group_codes(given[name], name) for name in GROUP_COLUMNS if name in given}  # type: ignore[literal-required]
    except UserError as error:
        raise CatalogError(f"the {name} split: {error}") from error
    masks = {name: given[name] for name in (*ROLE_COLUMNS, *MARK_COLUMNS) if name in given}  # type: ignore[literal-required]
    rules = make_rules(part.class_numbers, **masks, **groups)
    is_query = rules.is_query
    if not is_query.any() or not rules.is_gallery.any():
        raise CatalogError(
            f"the {name} split has {counted(is_query.sum(), 'query')} and "
            f"{counted(rules.is_gallery.sum(), 'gallery image')}, but needs both"
        )
    has_positive = rules.num_matches > 0
    if not has_positive[is_query].any():
        other = "image" if part.has_images else "vector"
        raise CatalogError(f"no query of the {name} split has another {other} of its class: nothing can be retrieved")
    findable = set(table.loc[is_query & has_positive, "label"].unique())
    lost = sorted(set(table.loc[is_query, "label"].unique()) - findable)
    if not lost:
        return []
    reason = "a query but no gallery image" if "is_query" in table else "one image"
    if rules.groups:
        reason = f"no other image that counts, given the column {' and '.join(groups)},"
    if len(lost) == 1:
        return [f"{name} class {lost[0]!r} has {reason} and cannot be retrieved"]
    return [f"{len(lost)} {name} classes have {reason} each and cannot be retrieved: {first_few(lost)}"]
