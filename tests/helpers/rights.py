"""Folders that may not be read, also where the tests run with every right."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534
"""The user without any rights."""

LISTED = 0o555
"""Everybody may list a folder and what is in it."""


@contextmanager
def unreadable(folder: Path) -> Iterator[None]:
    """Let nobody list a folder for the length of the block, in which everybody may list its parents."""
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.parents)}
    closed = [parent for parent in folder.parents if modes[parent] & LISTED != LISTED]
    user = os.geteuid()
    try:
        for parent in closed:
            parent.chmod(modes[parent] | LISTED)
        folder.chmod(0)
        if user == 0:
            os.seteuid(NOBODY)
        yield
    finally:
        os.seteuid(user)
        for path in (folder, *closed):
            path.chmod(modes[path])
