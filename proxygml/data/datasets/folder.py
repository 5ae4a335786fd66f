"""Your own images in one folder per class, split here or already in root/train, root/val and root/test.

The images are not opened here.
"""

from collections.abc import Iterable
from pathlib import Path

from proxygml.data.catalog import Catalog
from proxygml.data.columns import SPLITS
from proxygml.errors import DatasetError

LITTER = {"thumbs.db", "desktop.ini", "__macosx"}
"""What file managers leave behind, beside names that start with a dot."""


def read(root: Path, *, test_classes: str | None = None) -> Catalog:
    """Your own images: root/class/image, or root/train/class/image and root/test/class/image (root/val too).

    Every file in a class folder counts as an image of that class.

    Args:
        root: The folder, or an archive of it.
        test_classes: Which classes of root/class/image are for testing: `half`, a number (the last ones by name), or a
            text file with one class name per line. Not for root/train and root/test.

    Raises:
        DatasetError: The folder is missing or has another layout, or `test_classes` is wrong.
    """
    if not root.is_dir():
        raise DatasetError(f"{root} is neither a folder nor an archive: expected root/class/image or root/train/...")
    top = _top(root)
    if parts := _parts(top):
        return _read_parts(top, parts, test_classes)
    classes = _classes(top)
    if test_classes is None:
        raise DatasetError(
            f"{top} holds {len(classes)} classes: say which are for testing: --test_classes half, NUMBER or FILE"
        )
    tested = _choose(list(classes), test_classes)
    return _catalog(top, [("test" if name in tested else "train", name, files) for name, files in classes.items()])


def strays(root: Path) -> list[tuple[str, str]]:
    """The files and folders that `read` leaves out: (path relative to root, why)."""
    top = _top(root)
    parts = [top / split for split in _parts(top)]
    found = [(path, "is in none of the split folders") for path in _visible(top) if parts and path not in parts]
    for part in parts or [top]:
        found += [(path, "lies outside of the class folders") for path in _visible(part) if path.is_file()]
        for name in _folders(part):
            inside = _visible(name)
            found += [(path, "is a folder inside of a class folder") for path in inside if path.is_dir()]
            if not inside:
                found.append((name, "is an empty class folder"))
    found += [(path, "has a name that is not UTF-8: rename it") for path in root.rglob("*") if not _is_text(path)]
    return [(_readable(path.relative_to(root)), reason) for path, reason in found]


def _top(root: Path) -> Path:
    """The folder that holds the classes or the splits; archives often hold one folder that holds all."""
    while len(inside := _visible(root)) == 1 and inside[0].name not in SPLITS and _folders(inside[0]):
        root = inside[0]
    return root


def _parts(top: Path) -> list[str]:
    """The split folders; a class may be called `train` too, but holds images and not folders."""
    return [split for split in SPLITS if (top / split).is_dir() and _folders(top / split)]


def _read_parts(top: Path, parts: list[str], test_classes: str | None) -> Catalog:
    if test_classes is not None:
        raise DatasetError(f"{top} has {', '.join(parts)} already: leave out --test_classes")
    return _catalog(top, [(part, name, files) for part in parts for name, files in _classes(top / part).items()])


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The files of each class, both sorted by name; classes without files are left out."""
    folders = _folders(folder)
    classes = {path.name: files for path in folders if (files := [file for file in _visible(path) if file.is_file()])}
    if not classes:
        deeper = f"folders such as {folders[0].name}, but no image directly in one" if folders else "no class folder"
        raise DatasetError(f"{folder} holds {deeper}: expected {folder}/class/image")
    return classes


def _choose(classes: list[str], test_classes: str) -> set[str]:
    """The classes for testing, chosen from all classes in sorted order."""
    if test_classes == "half":
        return set(classes[(len(classes) + 1) // 2 :])
    if test_classes.isdecimal():
        if not 0 < (number := int(test_classes)) < len(classes):
            raise DatasetError(
                f"--test_classes is {number}, but must be 1 to {len(classes) - 1} of the {len(classes)} classes"
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
    if unknown := sorted(names - set(classes)):
        raise DatasetError(f"{file} names {len(unknown)} classes that have no folder, such as {unknown[0]!r}")
    if not names:
        raise DatasetError(f"{file} names no class: expected one class name per line")
    return names


def _catalog(top: Path, classes: Iterable[tuple[str, str, list[Path]]]) -> Catalog:
    rows = [(path.relative_to(top).as_posix(), name, split) for split, name, files in classes for path in files]
    return Catalog.of_rows(rows, ["path", "label", "split"], top)


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()] if folder.is_dir() else []


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without what file managers leave behind."""
    inside = (path for path in folder.iterdir() if path.name[0] != "." and path.name.lower() not in LITTER)
    return sorted(path for path in inside if _is_text(path))


def _is_text(path: Path) -> bool:
    """Whether the name can be written into a table; file systems take any bytes."""
    return _readable(path) == path.as_posix()


def _readable(path: Path) -> str:
    return path.as_posix().encode(errors="backslashreplace").decode()
