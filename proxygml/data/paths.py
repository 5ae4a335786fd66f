"""Where the files of items lie, and where they lie after they were moved."""

import os
from pathlib import Path

import pandas as pd

from proxygml.errors import GalleryError, UserError
from proxygml.urls import Place, absolute


def absolute_paths(paths: pd.Series, folder: Place) -> pd.Series:
    """Paths from the root; relative ones are relative to a folder. URLs and missing cells stay as they are."""
    return paths.map(lambda path: _absolute(path, folder) if isinstance(path, str) else path)


def _absolute(path: str, folder: Place) -> str:
    return path if "://" in path or Path(path).is_absolute() else absolute(folder / path)


def rebased_paths(paths: pd.Series, old: str, new: str, kind: type[UserError] = GalleryError) -> pd.Series:
    """The paths, those below one folder as paths below another one.

    Raises:
        UserError: of that kind, no path lies below it; a folder is an empty text.
    """
    target, moved = _target(old, new), paths.copy()
    for start in dict.fromkeys((old, os.path.abspath(old))):  # noqa: PTH100  (it may be gone, and so have no links)
        below, ends = _below(paths, start)
        if below.any():
            moved[below] = target + ends
            return moved
    present = paths.dropna()
    example = f"one is {present.iloc[0]}" if len(present) else "they have no paths"
    raise kind(f"no item lies below {old}: {example}")


def _below(paths: pd.Series, start: str) -> tuple[pd.Series, pd.Series]:
    """Which paths lie below a folder, and what follows the folder in those."""
    prefix = start.rstrip("/\\")
    below = paths.fillna("").map(lambda path: path.startswith((f"{prefix}/", f"{prefix}\\"))).astype(bool)
    ends = paths[below].str[len(prefix) :]
    return below, ends.str.replace("\\", "/") if os.sep == "/" and "\\" in prefix else ends


def _target(old: str, new: str) -> str:
    """The new folder as paths begin with it.

    Raises:
        UserError: a folder is an empty text.
    """
    if not old.strip("/\\") or not new:
        raise UserError(f"--rebase takes two folders, such as /photos /mnt/photos, but got {old!r} and {new!r}")
    return new.rstrip("/\\") if "://" in new else str(Path(new).resolve())
