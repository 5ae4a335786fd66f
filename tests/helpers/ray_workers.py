"""Processes of Ray that are killed, as a machine that is taken away kills them."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

NOT_OURS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


def works_for_us(process: psutil.Process) -> bool:
    """Whether a process works for us now."""
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return title.startswith("ray::") and not title.startswith(NOT_OURS)


def workers() -> list[psutil.Process]:
    """The processes that work for us now."""
    return [process for process in psutil.process_iter() if works_for_us(process)]


@contextmanager
def killing_one(ready: Callable[[], bool], seed: int = 0) -> Iterator[list[int]]:
    """Kill one of the processes at random as soon as something is ready; the list then holds its number.

    They are looked for before that: to look takes long enough for small work to end.
    """
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        chosen = random.Random(seed)
        there: list[psutil.Process] = []
        while not ended.is_set() and not killed:
            there = there or workers()
            if there and ready():
                process = chosen.choice(there)
                if works_for_us(process):
                    process.kill()
                    killed.append(process.pid)
                there = []
            time.sleep(0.001)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()
