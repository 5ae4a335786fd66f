"""`embed --ray` with two workers, one of which is killed at a random moment: every vector once, and as of one process.

    python -m benchmarks.kills --ray                            # ten kills
    python -m benchmarks.kills --ray --kills 0 --images 10000   # nobody is killed: the memory alone

The worker dies when a random number of parts are there, from none to all but one. The last line gives the most memory
that Ray's processes held together while all images were embedded once, and the most that its object store held.
"""

import os
import random
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from rich.table import Table

from benchmarks.measure import console
from proxygml.cli.main import main as proxygml
from proxygml.data.images.settings import ImageSettings
from proxygml.data.vectors.file import VectorFile
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.ray_session import OBJECT_STORE_BYTES, ray_session

WORKERS = 2
PART_ROWS = 32
IMAGES = 480
ALONE = ["embed", "run", "--images", "photos", "--batch_size", "16"]
WORDS = [*ALONE, "--ray", "--part_rows", str(PART_ROWS), "--workers", "1"]
LOOK_SECONDS = 0.01
MEMORY_SECONDS = 0.5


@dataclass
class Memory:
    """The most that was held, in bytes."""

    processes: int = 0
    """Of main memory by all of Ray's processes together, what they share counted once (PSS)."""
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
    """Note the memory of Ray's processes and of its object store twice a second."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(MEMORY_SECONDS):
            held = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    held += process.memory_full_info().pss
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


@contextmanager
def killing(out: Path, parts: int, chosen: random.Random) -> Iterator[list[int]]:
    """Kill a worker once so many parts are there; the list then holds its process number."""
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        while not killed and not ended.wait(LOOK_SECONDS):
            if len(list(out.glob("part-*"))) >= parts and (there := workers()):
                process = chosen.choice(there)
                process.kill()
                killed.append(process.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def make_inputs(images: int) -> None:
    """A folder of images, and the run folder of a small network that was not trained."""
    draw, folder = np.random.default_rng(0), Path("photos")
    folder.mkdir()
    for number in range(images):
        coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize((320, 240)).save(folder / f"{number:06d}.jpg")
    Path("run").mkdir()
    embedder = EmbedderSettings(backbone="conv4_small", weights="none", embedding_size=64)
    ImageEmbedder(embedder, ImageSettings(size=64, resize=72)).save(Path("run"))


def kill_workers(kills: int, images: int) -> int:
    """Kill a worker of each of so many runs, print what came of it, and return the number of faults."""
    chosen, faults, memory = random.Random(0), 0, Memory()
    table = Table("run", "parts there", "a worker was killed", "vectors", "each once, equal to the bit")
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        make_inputs(images)
        proxygml([*ALONE, "--out", "alone.parquet"])
        paths, expected = vectors(Path("alone.parquet"))
        with ray_session("local", WORKERS) as ray:
            with watching(ray, memory):
                proxygml([*WORDS, "--out", "whole"])
            for number in range(kills):
                out, parts = Path(f"out{number}"), chosen.randrange(-(-images // PART_ROWS))
                with killing(out, parts, chosen) as killed:
                    proxygml([*WORDS, "--out", str(out)])
                found, found_vectors = vectors(out)
                same = found == paths and np.array_equal(found_vectors, expected)
                faults += not (same and killed)
                table.add_row(str(number), str(parts), str(bool(killed)), str(len(found)), str(same))
    if kills:
        console.print(table)
    console.print(
        f"{images:,} images: at most {memory.processes / 2**20:,.0f} MiB in Ray's processes, "
        f"{memory.objects / 2**20:.1f} of {OBJECT_STORE_BYTES / 2**20:.0f} MiB in its objects"
    )
    return faults
