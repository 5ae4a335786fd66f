"""Where the images of added items are kept: a folder, or a URL of an object store that every replica can read."""

import time
import uuid
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from proxygml.errors import ImageError, UserError
from proxygml.files import atomic_write


class ImageStore:
    """Writes, reads and deletes files of images, each under a name of its own.

    Args:
        place: a folder, which is made when it is needed; or a URL that fsspec can write to, such as
            s3://bucket/images, with the settings of its file system from the environment.

    Raises:
        UserError: there is no file system for such a URL.
    """

    def __init__(self, place: str | Path) -> None:
        text = str(place)
        self._remote = "://" in text and not text.startswith("file://")
        try:
            self._files: Any = url_to_fs(text)[0] if self._remote else None
        except (ValueError, ImportError) as error:
            raise UserError(f"--added_images is {text!r}, where images cannot be kept: {error}") from error
        self._root = text.rstrip("/") if self._remote else str(Path(text.removeprefix("file://")).resolve())

    def write(self, data: bytes, ending: str) -> str:
        """Keep a file, whole; the path that an item stores of it.

        Args:
            data: its bytes.
            ending: of its name, such as jpg.
        """
        path = f"{self._root}/{uuid.uuid4().hex}.{ending}"
        if self._remote:
            self._files.pipe_file(path, data)  # object stores show a file when it is whole
        else:
            with atomic_write(Path(path)) as temporary:
                temporary.write_bytes(data)
        return path

    def holds(self, path: str) -> bool:
        """Whether a path is that of a file in this place, which may be gone."""
        folder, _, name = path.replace("\\", "/").rpartition("/")
        return folder == self._root.replace("\\", "/") and bool(name)

    def read(self, path: str) -> bytes:
        """The bytes of a file in this place; ImageError where it cannot be read."""
        try:
            return bytes(self._files.cat_file(path)) if self._remote else Path(path).read_bytes()
        except Exception as error:  # each file system raises its own
            raise ImageError(f"{path} cannot be read: {error}") from error

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""
        if not self._remote:
            Path(path).unlink(missing_ok=True)
        elif self._files.exists(path):
            self._files.rm_file(path)

    def older_than(self, seconds: float) -> list[str]:
        """The paths of the files that were written so long ago."""
        end = time.time() - seconds
        if not self._remote:
            folder = Path(self._root)
            return [str(path) for path in folder.iterdir() if _modified(path) < end] if folder.is_dir() else []
        self._files.invalidate_cache()
        if not self._files.exists(self._root):
            return []
        names = (entry["name"].rpartition("/")[2] for entry in self._files.ls(self._root, detail=True))
        return [path for name in names if name and self._age_ends(path := f"{self._root}/{name}", end)]

    def _age_ends(self, path: str, end: float) -> bool:
        try:
            return bool(self._files.modified(path).timestamp() < end)
        except (FileNotFoundError, NotImplementedError):
            return False


def _modified(path: Path) -> float:
    """When a file was last changed, seconds since the epoch; never, if it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
