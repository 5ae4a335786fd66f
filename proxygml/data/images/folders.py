"""The folders of images that `prepare` makes beside a catalog: unpacked archives, images made here, smaller copies.

A folder that a catalog may point at is never changed. What is made from something else goes into a folder of its own
(birds, birds.2, birds.3, ...); the catalog, which is replaced in one step, then points there, and the folders that it
does not need any more are deleted last. A kill at any moment leaves a catalog with all of its images.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from proxygml.errors import OverwriteError
from proxygml.files import atomic_folder, atomic_write
from proxygml.urls import Place

STAMP = ".prepared.json"
"""A file in every folder that is made here: for which catalog, and from what."""


@dataclass(frozen=True)
class ImageFolders:
    """The folders of one kind that belong to a catalog.

    Attributes:
        base: the first of them, named after the catalog; the others have a number behind it.
    """

    base: Path

    def made_from(self, origin: str) -> Path | None:
        """The folder that was made from this; None where there is none."""
        return next((folder for folder in self._made() if _stamp(folder) == [self.base.name, origin]), None)

    def check_free(self, what: str, force: bool) -> None:
        """Raise OverwriteError where another folder may not be made.

        Args:
            what: what happens to the folder, such as `made` or `unpacked`, for the message.
            force: whether one that is made from something else may be replaced.
        """
        if self.base.exists() and _stamp(self.base) is None:
            raise OverwriteError(
                f"{self.base} is there already, but the images would be {what} there: choose another --out, or, if it "
                "holds them, give it as --root"
            )
        if (made := self._made()) and not force:
            raise OverwriteError(
                f"{made[-1]} was {what} for this catalog before: choose another --out, or give --force to replace it"
            )

    @contextmanager
    def new(self, origin: str) -> Iterator[tuple[Path, Path]]:
        """Hand out a temporary folder, and the path that it gets when the block ends without an error."""
        target = self._free()
        with atomic_folder(target, replace=False) as folder:
            yield folder, target
            self.mark(folder, origin)

    def started(self, origin: str) -> Path:
        """The folder that was made from this, or was started by a command that was stopped; else a new one."""
        if (folder := self.made_from(origin)) is None:
            folder = self._free()
            with atomic_folder(folder, replace=False) as temporary:
                self.mark(temporary, origin)
        return folder

    def mark(self, folder: Path, origin: str) -> None:
        """Write which catalog a folder belongs to, and from what it is made."""
        with atomic_write(folder / STAMP, tidy=False) as temporary:
            temporary.write_text(json.dumps([self.base.name, origin]), encoding="utf-8")

    def superseded(self, used: Place) -> list[Path]:
        """The other folders that were made for the catalog, where it uses one of them, or a folder inside of it."""
        made = self._made()
        kept = [folder for folder in made if isinstance(used, Path) and used.is_relative_to(folder)]
        return [folder for folder in made if folder not in kept] if kept else []

    def _made(self) -> list[Path]:
        """Those that exist, in the order of their numbers."""
        start, parent = f"{self.base.name}.", self.base.parent
        inside = list(parent.iterdir()) if parent.is_dir() else []
        numbers = [path.name.removeprefix(start) for path in inside if path.name.startswith(start)]
        numbered = [Path(f"{self.base}.{number}") for number in sorted(filter(str.isdecimal, numbers), key=int)]
        return [path for path in (self.base, *numbered) if (_stamp(path) or [""])[0] == self.base.name]

    def _free(self) -> Path:
        paths = (self.base if number == 1 else Path(f"{self.base}.{number}") for number in count(1))
        return next(path for path in paths if not path.exists() and not path.is_symlink())


def _stamp(folder: Path) -> list[str] | None:
    """The name of the first folder and the origin; None where the folder was not made here."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, list) and len(stamp) == 2 else None
