"""Commands that are killed at random moments: what is left must be whole, and repeating the command must finish it.

    python -m benchmarks.kills                # 20 kills of each command
    python -m benchmarks.kills --kills 100
    python -m benchmarks.kills --ray          # ten kills of a worker of `embed --ray`; see ray_kills.py

Each command runs in a process of its own on small images, and gets SIGKILL at a moment drawn evenly over the time that
it takes. Then the files must be as they were before the command or as they are after it, and the same command (for
training, `train --resume`) must end with the result of a command that nobody killed. It exits with 1 otherwise.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from rich.table import Table

from benchmarks.measure import console
from benchmarks.ray_kills import IMAGES as RAY_IMAGES
from benchmarks.ray_kills import kill_workers
from proxygml import Catalog, Gallery
from proxygml.cli.main import main as proxygml
from proxygml.data.vectors.file import VectorFile

CLASSES, IMAGES = 6, 12
PRELOADED = [
    *("proxygml.data.preparing.prepare", "proxygml.gallery.build", "proxygml.gallery.clusters.cluster"),
    *("proxygml.training.train", "proxygml.training.evaluate_run", "proxygml.training.trainer", "faiss"),
]
RECIPE = """
embedder: {backbone: conv4_small, weights: none, embedding_size: 16}
images: {size: 16, resize: 16, horizontal_flip: false}
loss: {proxies_per_class: 2, neighbor_ratio: 0.5}
epochs: 3
batch_size: 16
batch_norm: trained
workers: 0
tracker: none
"""

Words = list[str]
State = object
"""What the files of a command say, so that two of them can be compared."""


@dataclass(frozen=True)
class Case:
    """A command, the words that finish it after a kill, and how its files are read (in the folder where it runs)."""

    name: str
    words: Words
    state: Callable[[], State]
    again: Words | None = None


def catalog_state() -> State:
    """The rows of the catalog, whose images must all be there; None without one."""
    if not Path("new.parquet").exists():
        return None
    catalog = Catalog.read(Path("new.parquet"))
    missing = [path for path in catalog.paths if not Path(path).exists()]
    if missing:
        raise ValueError(f"the catalog names {missing[0]}, which is not there")
    return len(catalog), tuple(Image.open(path).size for path in catalog.paths[:1])


def gallery_state(name: str = "gallery") -> State:
    """The paths of the items of a gallery whose every file is as it was written; None without one."""
    if not Path(name, "gallery.json").exists():
        return None
    gallery = Gallery.load(name)
    gallery.verify()
    return tuple(sorted(map(str, gallery.items["path"])))


def vectors_state() -> State:
    """The number of vectors in the file that `embed` writes."""
    return VectorFile(Path("vectors.parquet")).rows if Path("vectors.parquet").exists() else None


def clusters_state() -> State:
    """The clusters, and the links to their images."""
    if not Path("clusters").exists():
        return None
    table = pd.read_csv("clusters/clusters.csv")
    return len(table), sum(path.is_symlink() for path in Path("clusters").rglob("*"))


def run_state() -> State:
    """The trained model, to the bit."""
    model = Path("trained/model.safetensors")
    return model.read_bytes() if model.exists() and Path("trained/model.json").exists() else None


ALONE = ["--workers", "0"]  # no processes that decode images: each would have to load its modules
TRAIN = ["train", "--recipe", "small.yaml", "--catalog", "photos.parquet", "--run", "trained"]
CASES = (
    Case("prepare", ["prepare", "folder", "--root", "photos", "--out", "new.parquet", "--test_classes", "half",
                     "--resize", "20", "--force"], catalog_state),
    Case("embed", ["embed", "run", "--images", "photos", "--out", "vectors.parquet", *ALONE], vectors_state),
    Case("index", ["index", "run", "--images", "photos", "--out", "fresh", *ALONE], lambda: gallery_state("fresh")),
    Case("index --add", ["index", "--add", "--images", "more", "--out", "gallery", *ALONE], gallery_state),
    Case("index --remove", ["index", "--remove", "label=c1", "--out", "gallery"], gallery_state),
    Case("index --rebase", ["index", "--rebase", "{here}/photos", "{here}/moved", "--out", "gallery"], gallery_state),
    Case("cluster", ["cluster", "run", "--images", "photos", "--out", "clusters", "--num_clusters", "4", *ALONE],
         clusters_state),
    Case("train", TRAIN, run_state, ["train", "--resume", "trained"]),
)  # fmt: skip


def images(folder: Path, first: int, seed: int) -> None:
    """A folder of small random JPEG files for each class."""
    draw = np.random.default_rng(seed)
    for number in range(CLASSES):
        (folder / f"c{number}").mkdir(parents=True)
        for image in range(first, first + IMAGES):
            pixels = draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"c{number}" / f"{image}.jpg")


def make_template(folder: Path) -> None:
    """What every command starts from: photos, their catalog, a model and a gallery."""
    images(folder / "photos", 0, 0)
    images(folder / "more", 100, 1)
    (folder / "small.yaml").write_text(RECIPE)
    paths = sorted(path.relative_to(folder) for path in (folder / "photos").rglob("*.jpg"))
    rows = pd.DataFrame([(str(path), path.parent.name, "train") for path in paths], columns=["path", "label", "split"])
    Catalog(rows, folder).write(folder / "photos.parquet")  # without test classes: training alone, without a report
    for words in (
        ["train", "--recipe", "small.yaml", "--catalog", "photos.parquet", "--run", "run", "--epochs", "0"],
        ["index", "run", "--catalog", "photos.parquet", "--out", "gallery", *ALONE],
    ):
        if command(words, folder).code:
            raise RuntimeError(f"proxygml {' '.join(words)} failed")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None
    seconds: float


def command(words: Words, folder: Path, kill_after: float | None = None) -> Ended:
    """Run a command in a process of its own in a folder, killed after so many seconds where that is given."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_work, args=([word.format(here=folder) for word in words], folder))
    started = time.perf_counter()
    process.start()
    process.join(kill_after)
    if process.is_alive():
        process.kill()
        process.join()
    return Ended(process.exitcode, time.perf_counter() - started)


def _work(words: Words, folder: Path) -> None:
    os.chdir(folder)
    log = os.open("log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    proxygml(words)


def read(case: Case, folder: Path) -> State:
    """The state of a case's files in a folder."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        return case.state()
    finally:
        os.chdir(here)


@dataclass
class Count:
    """What became of the kills of one command."""

    killed: int = 0
    before: int = 0
    after: int = 0
    faults: int = 0


def try_case(case: Case, template: Path, work: Path, kills: int, chosen: random.Random) -> Count:
    """Kill a command again and again, each time in a fresh folder, and check what is left."""
    count = Count()
    whole = copied(template, work / "whole")
    before = read(case, whole)
    ended = command(case.words, whole)
    after = relative(read(case, whole), whole)
    for number in range(kills):
        folder = copied(template, work / str(number))
        stopped = command(case.words, folder, chosen.uniform(0, ended.seconds))
        count.killed += stopped.code == -9
        try:
            left = relative(read(case, folder), folder)
            if left not in (relative(before, whole), after):
                raise ValueError("the files are neither as before nor as after")
            count.before, count.after = count.before + (left != after), count.after + (left == after)
            finish(case, folder, done=left == after)
            if relative(read(case, folder), folder) != after:
                raise ValueError("the repeated command ended with another result")
            shutil.rmtree(folder)
        except Exception as error:  # whatever a reader or a check raises is what is counted here
            count.faults += 1
            console.print(f"{case.name}, kill {number} after {stopped.seconds:.2f} s: {error} ({folder})", style="red")
    return count


def finish(case: Case, folder: Path, done: bool) -> None:
    """Repeat the command where it is not done.

    Raises:
        ValueError: it fails.
    """
    if done:
        return
    words = case.words
    if case.again is not None and (folder / "trained" / "recipe.yaml").exists():
        words = case.again
    if command(words, folder).code:
        raise ValueError("the repeated command failed: see log.txt")


def copied(template: Path, folder: Path) -> Path:
    """A copy of the template, whose gallery names its own photos."""
    shutil.copytree(template, folder, symlinks=True)
    gallery = Gallery.load(folder / "gallery")
    gallery.rebase(str(template), str(folder))
    gallery.save()
    return folder


def relative(state: State, folder: Path) -> State:
    """Paths without the folder that differs between copies."""
    if isinstance(state, tuple):
        return tuple(part.replace(str(folder), "") if isinstance(part, str) else part for part in state)
    return state


def main() -> int:
    """Kill each command, and print what was left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help="kills of each command (default: 20; with --ray, 10)")
    parser.add_argument("--ray", action="store_true", help="kill workers of `embed --ray` instead")
    parser.add_argument("--images", type=int, default=RAY_IMAGES, help="with --ray: how many")
    parser.add_argument("--only", nargs="*", default=[case.name for case in CASES], help="names of commands")
    options = parser.parse_args()
    if options.ray:
        return int(kill_workers(10 if options.kills is None else options.kills, options.images) > 0)
    chosen, faults = random.Random(0), 0
    kills = options.kills or 20
    table = Table("command", "started", "killed before its end", "files as before", "files as after", "faults")
    with tempfile.TemporaryDirectory() as place:
        template = Path(place).resolve() / "template"
        make_template(template)
        for case in (case for case in CASES if case.name in options.only):
            count = try_case(case, template, Path(place).resolve() / case.name, kills, chosen)
            numbers = kills, count.killed, count.before, count.after, count.faults
            table.add_row(case.name, *map(str, numbers))
            faults += count.faults
            console.print(f"{case.name}: {count}")
    console.print(table)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
