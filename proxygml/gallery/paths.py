"""Where the files of items lie, and where they lie after they were moved."""

import os
from pathlib import Path

import pandas as pd

from proxygml.errors import GalleryError, UserError


def absolute_paths(paths: pd.Series, folder: Path) -> pd.Series:
    """Paths from the root; relative ones are relative to a folder. URLs and missing cells stay as they are."""
    return paths.map(lambda path: _absolute(path, folder) if isinstance(path, str) else path)


def _absolute(path: str, folder: Path) -> str:
    return path if "://" in path or Path(path).is_absolute() else str((folder / path).resolve())


def rebased_paths(paths: pd.Series, old: str, new: str) -> pd.Series:
    """The paths, those below one folder as paths below another one.

    Raises:
        GalleryError: no path lies below it.
        UserError: a folder is an empty text.
    """
    if not old.strip("/\\") or not new:
        raise UserError(f"--rebase takes two folders, such as /photos /mnt/photos, but got {old!r} and {new!r}")
    target = new.rstrip("/\\") if "://" in new else str(Path(new).resolve())
    for start in (old, os.path.abspath(old)):  # noqa: PTH100  (it may be gone, and so have no links to resolve)
        prefix = start.rstrip("/\\")
        below = (
            paths.fillna("").map(lambda path, first=prefix: path.startswith((f"{first}/", f"{first}\\"))).astype(bool)
        )
        if below.any():
            ends = paths[below].str[len(prefix) :]
            moved = paths.copy()
            moved[below] = target + (ends.str.replace("\\", "/") if os.sep == "/" and "\\" in prefix else ends)
            return moved
    present = paths.dropna()
    example = f"one is {present.iloc[0]}" if len(present) else "they have no paths"
    raise GalleryError(f"no item lies below {old}: {example}")
