"""Folders that may not be read, also where the tests run with every right."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534
"""The user without any rights."""


@contextmanager
def unreadable(folder: Path) -> Iterator[None]:
    """Let nobody list a folder for the length of the block. Its parents must be readable for everybody."""
    for parent in list(folder.parents)[: len(folder.parts) - 2]:
        if parent.stat().st_uid == os.geteuid():
            parent.chmod(0o755)
    mode = folder.stat().st_mode
    folder.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(NOBODY)
        yield
    finally:
        os.seteuid(user)
        folder.chmod(mode)
