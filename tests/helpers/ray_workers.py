"""Processes of Ray that are killed, as a machine that is taken away kills them."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

NOT_OURS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


def workers() -> list[psutil.Process]:
    """The processes that work for us now."""
    found = []
    for process in psutil.process_iter():
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and not title.startswith(NOT_OURS):
            found.append(process)
    return found


@contextmanager
def killing_one(ready: Callable[[], bool], seed: int = 0) -> Iterator[list[int]]:
    """Kill one of the processes at random as soon as something is ready; the list then holds its number."""
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        chosen = random.Random(seed)
        while not ended.is_set() and not killed:
            if ready() and (there := workers()):
                process = chosen.choice(there)
                process.kill()
                killed.append(process.pid)
            time.sleep(0.005)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()
