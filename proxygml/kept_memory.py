"""Memory that the C library keeps for the next tensor, in place of returning it to the system after each.

A network on a CPU allocates and frees blocks of tens of MiB in every step. glibc maps each block anew, and the system
clears its pages one by one: a third to a half of the time of a small network.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""The parameters of glibc's mallopt: how much free memory is returned, and what is mapped by itself."""

KEPT = {MMAP_THRESHOLD: 2**31 - 1, TRIM_THRESHOLD: 2**31 - 1}
USUAL = {MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}
"""Bytes; the usual ones are those that glibc comes to by itself after it has freed large blocks."""

CHOSEN = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
"""Where one of these variables of the environment is set, somebody has chosen already."""

_lock = threading.Lock()
_inside = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed inside the block for what is allocated next; return it to the system after the block.

    The peak of the process's memory rises, by up to a fifth. Blocks may lie in each other and in several threads. Does
    nothing where the C library is not glibc, or where the environment sets its thresholds.
    """
    library = None if any(name in os.environ for name in CHOSEN) else _glibc()
    if library is None:
        yield
        return
    _enter(library)
    try:
        yield
    finally:
        _leave(library)


def _glibc() -> Any:
    """The C library of this process; None where it is another than glibc."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


def _enter(library: Any) -> None:
    global _inside  # noqa: PLW0603  (of the process, as the thresholds are)
    with _lock:
        _inside += 1
        if _inside == 1:
            _set(library, KEPT)


def _leave(library: Any) -> None:
    global _inside  # noqa: PLW0603
    with _lock:
        _inside -= 1
        if _inside == 0:
            _set(library, USUAL)
            library.malloc_trim(0)


def _set(library: Any, thresholds: dict[int, int]) -> None:
    for parameter, value in thresholds.items():
        if not library.mallopt(parameter, value):  # an old glibc allows no more than its usual value
            library.mallopt(parameter, USUAL[parameter])
