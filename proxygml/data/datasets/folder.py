"""Your own images in one folder per class, split here or already in root/train, root/val and root/test.

The images are not opened here.
"""

from collections.abc import Iterable
from pathlib import Path

from proxygml.data.catalog import Catalog
from proxygml.data.columns import SPLITS, split_of
from proxygml.data.datasets.layout import choose_test_classes
from proxygml.data.images.files import Entry, Kind, LeftOut, entries, readable
from proxygml.errors import DatasetError, counted
from proxygml.urls import Place, absolute

AS_IMAGES = (Kind.FILE, Kind.DANGLING, Kind.SPECIAL)
"""What counts as an image where it lies in a class folder; whether it is one shows when it is opened."""

WHY = {
    Kind.DANGLING: "is a link to nothing",
    Kind.SPECIAL: "is neither a file nor a folder",
    Kind.UNREADABLE: "cannot be read",
    Kind.NOT_UTF8: "has a name that is not UTF-8: rename it",
}
"""Why something is left out, for a person."""


def read(root: Place, *, test_classes: str | None = None) -> Catalog:
    """Your own images: root/class/image, or root/train/class/image and root/test/class/image (root/val too).

    Every file in a class folder counts as an image of that class. The folders of the splits may also be called
    training, valid, validation and testing, in small or capital letters.

    Args:
        root: The folder, or its URL, or an archive of it.
        test_classes: Which classes of root/class/image are for testing: `half`, a number (the last ones by name), or a
            text file with one class name per line. Not for root/train and root/test.

    Raises:
        DatasetError: The folder is missing or has another layout, or `test_classes` is wrong.
    """
    if isinstance(root, Path) and not root.is_dir():
        raise DatasetError(f"{root} is neither a folder nor an archive: expected root/class/image or root/train/...")
    if [entry.kind for entry in entries(root)] == [Kind.UNREADABLE]:
        raise DatasetError(f"{root} cannot be read: ask for the right to list it, or give another folder")
    top = _top(root)
    if parts := _parts(top):
        return _read_parts(top, parts, test_classes)
    classes = _classes(top)
    if test_classes is None:
        raise DatasetError(
            f"{top} holds {counted(len(classes), 'class')}: say which are for testing: --test_classes half, NUMBER or "
            "FILE"
        )
    tested = choose_test_classes(list(classes), test_classes)
    return _catalog(top, [("test" if name in tested else "train", name, files) for name, files in classes.items()])


def strays(root: Place) -> list[tuple[str, str]]:
    """The files and folders that `read` leaves out, but hidden ones: (path relative to root, why)."""
    top = _top(root)
    parts = [top / name for name in _parts(top)]
    beside = [path for path, _, _ in _shown(top) if parts and path not in parts]
    found = [(path, "is in none of the split folders") for path in beside]
    for part in parts or [top]:
        loose = [(path, kind) for path, kind, _ in _shown(part) if kind != Kind.FOLDER]
        found += [(path, WHY.get(kind, "lies outside of the class folders")) for path, kind in loose]
        found += [stray for folder in _folders(part) for stray in _strays_in(folder)]
    return [(readable(path.relative_to(root)), reason) for path, reason in found]


def hidden(root: Place) -> LeftOut:
    """What is hidden, or was left by a file manager, where `read` looks."""
    top, left_out = _top(root), LeftOut()
    parts = [top / name for name in _parts(top)]
    for folder in (*_ways(root, top), *parts, *(inside for part in parts or [top] for inside in _folders(part))):
        for path, kind, _ in entries(folder):
            if kind in (Kind.HIDDEN, Kind.SYSTEM):
                left_out.add(kind, path.relative_to(root))
    return left_out


def _strays_in(folder: Place) -> list[tuple[Place, str]]:
    """The same for a class folder. What cannot be opened in it counts as an image that is bad."""
    inside = _shown(folder)
    if not inside:
        return [(folder, "is an empty class folder")]
    reasons = {Kind.FOLDER: "is a folder inside of a class folder"} | WHY
    return [(path, reasons[kind]) for path, kind, _ in inside if kind in reasons and kind not in AS_IMAGES]


def _top(root: Place) -> Place:
    """The folder that holds the classes or the splits; archives often hold one folder that holds all."""
    seen: set[str] = set()  # a folder may hold a link to itself
    while (real := absolute(root)) not in seen and len(inside := _shown(root)) == 1:
        seen.add(real)
        only = inside[0]
        if only.kind != Kind.FOLDER or split_of(only.path.name) or not _folders(only.path):
            break
        root = only.path
    return root


def _ways(root: Place, top: Place) -> list[Place]:
    """The folders from `root` down to `top`."""
    ways = [root]
    for name in top.relative_to(root).parts:
        ways.append(ways[-1] / name)
    return ways


def _parts(top: Place) -> dict[str, str]:
    """The split folders, and the split that each is; a class may be called `train` too, but holds no folders."""
    parts: dict[str, str] = {}
    for folder in _folders(top):
        if (split := split_of(folder.name)) is not None and _folders(folder):
            if split in parts.values():
                other = next(name for name, taken in parts.items() if taken == split)
                raise DatasetError(f"{top} holds {other} and {folder.name}, which both mean {split}: keep one of them")
            parts[folder.name] = split
    return dict(sorted(parts.items(), key=lambda part: SPLITS.index(part[1])))


def _read_parts(top: Place, parts: dict[str, str], test_classes: str | None) -> Catalog:
    if test_classes is not None:
        raise DatasetError(f"{top} has {', '.join(parts)} already: leave out --test_classes")
    return _catalog(
        top, [(split, name, files) for part, split in parts.items() for name, files in _classes(top / part).items()]
    )


def _classes(folder: Place) -> dict[str, list[Place]]:
    """The files of each class, both sorted by name; classes without files are left out."""
    folders = _folders(folder)
    images = {path: [entry.path for entry in _shown(path) if entry.kind in AS_IMAGES] for path in folders}
    classes = {path.name: files for path, files in images.items() if files}
    if not classes:
        deeper = f"folders such as {folders[0].name}, but no image directly in one" if folders else "no class folder"
        raise DatasetError(f"{folder} holds {deeper}: expected {folder}/class/image")
    return classes


def _catalog(top: Place, classes: Iterable[tuple[str, str, list[Place]]]) -> Catalog:
    rows = ((path.relative_to(top).as_posix(), name, split) for split, name, files in classes for path in files)
    return Catalog.of_rows(rows, ["path", "label", "split"], top)


def _folders(folder: Place) -> list[Place]:
    return [path for path, kind, _ in entries(folder) if kind == Kind.FOLDER]


def _shown(folder: Place) -> list[Entry]:
    """What is in a folder, sorted, but not what is hidden or was left by a file manager."""
    return [entry for entry in entries(folder) if entry.kind not in (Kind.HIDDEN, Kind.SYSTEM)]
