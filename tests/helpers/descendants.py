"""The processes that another one has started (on Linux)."""

import time
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and those that they have started."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child} | descendants(child)
    return found


def wait_until_gone(pids: set[int], seconds: float = 60) -> set[int]:
    """Those that are still there after so many seconds; a zombie is gone."""
    deadline = time.monotonic() + seconds
    while (left := {pid for pid in pids if _is_alive(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
