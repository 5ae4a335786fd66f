"""`embed --ray` with two workers, one of which is killed at a random moment: every vector once, and as of one process.

    python -m benchmarks.kills --ray              # ten kills
    python -m benchmarks.kills --ray --kills 30

The moment is drawn evenly over the time that the command takes when nobody is killed. The last line gives the most
memory that Ray's processes held together meanwhile, and the most that its object store held.
"""

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.table import Table

from benchmarks.measure import console
from proxygml.cli.main import main as proxygml
from proxygml.data.vector_file import VectorFile
from proxygml.ray_session import OBJECT_STORE_BYTES, ray_session

WORDS = ["embed", "run", "--images", "photos", "--ray", "--part_rows", "8", "--batch_size", "8", "--workers", "1"]


@dataclass
class Memory:
    """The most that was held, in bytes."""

    processes: int = 0
    """Of main memory by all of Ray's processes together, what they share counted once each (USS)."""
    objects: int = 0
    """Of Ray's object store."""


def vectors(place: Path) -> tuple[list[str], np.ndarray]:
    """The paths and the vectors of a file or folder."""
    blocks = list(VectorFile(place).blocks())
    paths = [path for _, table in blocks for path in table["path"]]
    return paths, np.concatenate([block for block, _ in blocks])


def workers() -> list[psutil.Process]:
    """The actors that embed."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if "ray::_Actor" in " ".join(_words(process))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@contextmanager
def watching(ray: Any, memory: Memory) -> Iterator[None]:
    """Note the memory of Ray's processes and of its object store four times a second."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.25):
            held = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    held += process.memory_full_info().uss
                except psutil.Error:
                    continue
            memory.processes = max(memory.processes, held)
            free = ray.available_resources().get("object_store_memory", OBJECT_STORE_BYTES)
            memory.objects = max(memory.objects, OBJECT_STORE_BYTES - int(free))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def killed_after(seconds: float, chosen: random.Random, work: Callable[[], None]) -> bool:
    """Whether a worker was there to be killed after so many seconds of the work."""
    killed: list[int] = []

    def kill() -> None:
        time.sleep(seconds)
        if there := workers():
            process = chosen.choice(there)
            process.kill()
            killed.append(process.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    work()
    thread.join()
    return bool(killed)


def kill_workers(kills: int, make_template: Callable[[Path], None]) -> int:
    """Kill a worker of each of so many runs, print what came of it, and return the number of faults."""
    chosen, faults, memory = random.Random(0), 0, Memory()
    table = Table("run", "killed after", "a worker was killed", "vectors", "each once, equal to the bit")
    with tempfile.TemporaryDirectory() as place:
        template = Path(place).resolve()
        make_template(template)
        os.chdir(template)
        proxygml([*WORDS[:4], "--out", "alone.parquet", "--batch_size", "8"])
        paths, expected = vectors(Path("alone.parquet"))
        with ray_session("local") as ray, watching(ray, memory):
            proxygml([*WORDS, "--out", "warm"])  # the first processes load their modules
            start = time.monotonic()
            proxygml([*WORDS, "--out", "whole"])
            whole = time.monotonic() - start
            for number in range(kills):
                out, seconds = Path(f"out{number}"), chosen.uniform(0, whole)
                killed = killed_after(seconds, chosen, lambda out=out: proxygml([*WORDS, "--out", str(out)]))  # type: ignore[misc]
                found, found_vectors = vectors(out)
                same = found == paths and np.array_equal(found_vectors, expected)
                faults += not same
                table.add_row(str(number), f"{seconds:.1f} s", str(killed), str(len(found)), str(same))
    console.print(table)
    megabytes = memory.processes / 2**20, memory.objects / 2**20, OBJECT_STORE_BYTES / 2**20
    console.print("most memory: {:,.0f} MiB in Ray's processes, {:.1f} of {:.0f} MiB in its objects".format(*megabytes))
    return faults
