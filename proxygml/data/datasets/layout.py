"""What the readers of data sets share: the class Dataset, and functions that find and read official files."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_args

from proxygml.data.archives.unpack import ARCHIVE_SUFFIXES
from proxygml.data.catalog.catalog import Count
from proxygml.data.catalog.class_names import class_named
from proxygml.data.images.files import SYSTEM_FILES, LeftOut
from proxygml.errors import DatasetError, counted, did_you_mean
from proxygml.files import check_local
from proxygml.remote import exists
from proxygml.urls import Place, Url, as_place


@dataclass(frozen=True)
class Dataset:
    """A kind of data that can be prepared."""

    name: str
    """The name on the command line."""
    read: Callable[..., Any]
    """Turns an unpacked folder, its first argument, into a Catalog; its other arguments are options with defaults."""
    published: Mapping[str, Count] | None = None
    """Images and classes of each split as published. A data set that has them is a benchmark: all its images
    are kept, duplicates too."""
    archives: Mapping[str, str] = field(default_factory=dict)
    """The archives that the official folder may hold, without suffix, and the folder that each unpacks to."""
    strays: Callable[[Place], list[tuple[str, str]]] | None = None
    """Lists the files that `read` leaves out: (path relative to the folder, why)."""
    hidden: Callable[[Place], LeftOut] | None = None
    """Names what is hidden from `read`, such as files that start with a dot."""
    has_vectors: bool = False
    """Whether the data are vectors and a table; then `read` gives a `vectors.VectorTable`, not a Catalog."""
    makes_images: bool = False
    """Whether `read` makes the images itself, in the folder that it is given."""

    @property
    def reads_urls(self) -> bool:
        """Whether what `read` is given may be a URL. An archive always may."""
        return _takes_urls(next(iter(signature(self.read).parameters.values())))

    def with_options(self, options: Mapping[str, object]) -> "Dataset":
        """The same data set with values for arguments of `read` other than the first.

        Raises:
            DatasetError: `read` has no such argument.
            UserError: a value is a URL, where the argument takes none.
        """
        known = dict(list(signature(self.read).parameters.items())[1:])
        values = dict(options)
        for name, value in options.items():
            if name not in known:
                raise DatasetError(f"{self.name} has no option {name!r}: {did_you_mean(name, known)}")
            if _takes_urls(known[name]) and isinstance(value, (str, os.PathLike)):
                values[name] = as_place(value, name)
            else:
                check_local(value, name)
        return replace(self, read=partial(self.read, **values))


def _takes_urls(parameter: Parameter) -> bool:
    return Url in get_args(parameter.annotation)


def find(root: Path, name: str) -> Path | None:
    """The file or folder of that name in `root` or up to two folders below, the shallowest; None if there is none.

    Folders that are hidden or were left by a file manager do not count: they hold files of the same names.
    """
    for depth in ("", "*/", "*/*/"):
        for found in sorted(root.glob(f"{depth}{name}")):
            folders = found.relative_to(root).parts[:-1]
            if not any(folder.startswith(".") or folder.lower() in SYSTEM_FILES for folder in folders):
                return found
    return None


def existing_path(root: Path, name: str, dataset: str) -> Path:
    """The file or folder of that name; DatasetError where there is none."""
    if not root.is_dir():
        raise DatasetError(
            f"{root} is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)}): expected {dataset}"
        )
    if (found := find(root, name)) is None:
        there = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        listing = ", ".join(there[:5]) + (" ..." if len(there) > 5 else "")
        raise DatasetError(f"{name} is not in {root} (which holds {listing or 'nothing'}): expected {dataset}")
    return found


def read_list(path: Path, fields: int, header: int = 0) -> list[list[str]]:
    """The lines of an official list, each split at white space into that many fields; empty lines are left out.

    Raises:
        DatasetError: A line has other than `fields` fields, or the file is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text file ({error}): download it again") from error
    rows = []
    for number, line in enumerate(lines[header:], start=header + 1):
        row = line.split()
        if len(row) not in (0, fields):
            raise DatasetError(
                f"{path}, line {number}, has {counted(len(row), 'field')} instead of {fields}: {line[:80]!r}"
            )
        if row:
            rows.append(row)
    if not rows:
        raise DatasetError(f"{path} lists nothing: is the download complete? Fetch it again")
    return rows


def read_numbered(path: Path, fields: int = 2) -> dict[int, list[str]]:
    """A list whose lines start with a number of their own: {number: the other fields}.

    Raises:
        DatasetError: As `read_list`; or a number is none, or is there twice.
    """
    numbered: dict[int, list[str]] = {}
    for number, *rest in read_list(path, fields):
        if not number.isdecimal() or int(number) in numbered:
            raise DatasetError(f"{path} numbers its lines, but {number!r} is no number or is there twice")
        numbered[int(number)] = rest
    return numbered


def read_number(text: str, path: Path) -> float:
    """A number in an official list; DatasetError where it is none."""
    try:
        return float(text)
    except ValueError as error:
        raise DatasetError(f"{path} holds {text!r} where a number was expected: fetch it again") from error


def choose_test_classes(classes: list[str], test_classes: str) -> set[str]:
    """The classes for testing, chosen from all classes in sorted order: `half`, a number, or a file of their names.

    Raises:
        DatasetError: it is none of these, or names no class or an unknown one.
    """
    if test_classes == "half":
        return set(classes[(len(classes) + 1) // 2 :])
    if test_classes.isdecimal():
        if not 0 < (number := int(test_classes)) < len(classes):
            raise DatasetError(
                f"--test_classes is {number}, but must be 1 to {len(classes) - 1} of the "
                f"{counted(len(classes), 'class')}"
            )
        return set(classes[-number:])
    file = Path(test_classes).expanduser()
    if not file.is_file():
        raise DatasetError(
            f"--test_classes is {test_classes!r}, but must be `half`, a number, or a file of class names"
        )
    try:
        names = {line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()}
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} is no text file: expected one class name per line") from error
    chosen = {name: class_named(name, classes) for name in names}
    if unknown := sorted(name for name, known in chosen.items() if known is None):
        raise DatasetError(f"{file} names {counted(len(unknown), 'unknown class')}, such as {unknown[0]!r}")
    if not names:
        raise DatasetError(f"{file} names no class: expected one class name per line")
    return {known for known in chosen.values() if known is not None}


ROOTS = {
    "folder": "the folder of your images, or an archive of it",
    "table": "the table of your images, a .csv or .parquet file",
    "vectors": "the .parquet file of your vectors, or the table of their labels",
}
"""What `--root` is, of the data sets that have no official download."""


def check_root(root: Place, dataset: str) -> Place:
    """Where a data set is, the user's home written out; DatasetError where there is nothing."""
    root = root.expanduser() if isinstance(root, Path) else root
    if not exists(root, DatasetError):
        kind = ROOTS.get(dataset, f"the archive or folder of {dataset}")
        raise DatasetError(f"there is no {root}: give --root {kind}")
    return root
