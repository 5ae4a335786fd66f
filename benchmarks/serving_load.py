"""A server under mixed load that is killed again and again: nothing may be lost, nothing added twice.

    python -m benchmarks.serving_load                 # one minute
    python -m benchmarks.serving_load --minutes 10
    python -m benchmarks.serving_load --milvus http://127.0.0.1:19530 --replicas 2 --additions 100

Clients add items, remove some of them again and search; every so often a server gets SIGKILL and is started anew on
the same gallery. With --additions it ends when so many were answered and every server was killed twice. At the end the
gallery must hold every item whose addition was answered and whose removal was not begun, each once and with its image,
and none whose removal was answered; and every server must answer what the others do. It exits with 1 otherwise.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.serving import free_port, memory, photo, prepare
from proxygml import Gallery

TOKEN = "benchmark"
MARK = "load"  # the labels of added items begin so


@dataclass
class Record:
    """What the clients were answered."""

    added: dict[str, int] = field(default_factory=dict)  # label to id
    begun: set[str] = field(default_factory=set)  # labels whose addition was sent
    removing: set[str] = field(default_factory=set)  # labels whose removal was sent
    removed: set[str] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)  # of each search
    statuses: dict[int, int] = field(default_factory=dict)
    broken: int = 0  # requests that a kill left without an answer
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, status: int) -> None:
        """Count an answer."""
        with self.lock:
            self.statuses[status] = self.statuses.get(status, 0) + 1


class Client(threading.Thread):
    """One client: three searches to one addition, and a removal of one addition in three."""

    def __init__(self, number: int, address: str, stop: threading.Event, record: Record) -> None:
        super().__init__()
        self.number, self.address, self.stop, self.record = number, address, stop, record

    def run(self) -> None:
        """Send requests until the end, and begin again where a kill has broken one."""
        step = 0
        while not self.stop.is_set():
            with httpx.Client(base_url=self.address, timeout=60, trust_env=False) as client:
                try:
                    while not self.stop.is_set():
                        step += 1
                        self._step(client, step)
                except httpx.HTTPError:
                    with self.record.lock:
                        self.record.broken += 1
                    time.sleep(0.2)

    def _step(self, client: httpx.Client, step: int) -> None:
        image = {"image": photo(1000 * self.number + step % 50)}
        if step % 4:
            start = time.perf_counter()
            answer = client.post("/search", files=image, data={"k": 10})
            if answer.status_code == 200:
                self.record.seconds.append(time.perf_counter() - start)
            self.record.count(answer.status_code)
            return
        label = f"{MARK} {self.number} {step}"
        token = {"Authorization": f"Bearer {TOKEN}"}
        self.record.begun.add(label)
        answer = client.post("/items", files=image, data={"column": f"label={label}"}, headers=token)
        self.record.count(answer.status_code)
        if answer.status_code != 201:
            return
        item = self.record.added[label] = answer.json()["id"]
        if step % 3 == 0:
            self.record.removing.add(label)
            answer = client.delete(f"/items/{item}", headers=token)
            self.record.count(answer.status_code)
            if answer.status_code == 204:
                self.record.removed.add(label)


@dataclass
class Replica:
    """One server of several on the same gallery."""

    gallery: str
    images: Path
    port: int
    kills: int = 0
    sizes: list[float] = field(default_factory=list)  # MiB, before each kill
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and return once it answers."""
        command = [sys.executable, "-m", "proxygml", "serve", self.gallery, "--port", str(self.port), "--page", "false"]
        command += ["--added_images", str(self.images)]
        environment = {**os.environ, "PROXYGML_TOKEN": TOKEN}
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        while self.process.poll() is None:
            try:
                httpx.get(f"{self.address}/health", trust_env=False, timeout=5)
                return
            except httpx.HTTPError:
                time.sleep(0.2)
        raise SystemExit("the server did not start")

    def kill(self) -> None:
        """End it without warning, in the middle of whatever it does, and start it again."""
        assert self.process is not None
        self.sizes.append(memory(self.process.pid))
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.kills += 1
        self.start()

    def end(self) -> int:
        """End it as an operator does; its exit status."""
        assert self.process is not None
        self.sizes.append(memory(self.process.pid))
        self.process.terminate()
        return self.process.wait()


def faults(gallery: str, images: Path, record: Record) -> dict[str, list[str]]:
    """What the gallery lacks, or holds that it should not; by kind."""
    items = Gallery.load(gallery).items
    ours = items[items["label"].astype(str).str.startswith(f"{MARK} ")]
    labels = ours["label"].tolist()
    kept = set(record.added) - record.removing
    ids = dict(zip(labels, ours.index, strict=True))
    pictures = {path.name for path in images.iterdir()}
    return {
        "lost": sorted(kept - set(labels)),
        "under another id": sorted(label for label in kept & set(labels) if ids[label] != record.added[label]),
        "twice": sorted({label for label in labels if labels.count(label) > 1}),
        "removed, but there": sorted(record.removed & set(labels)),
        "never sent": sorted(set(labels) - record.begun),
        "without its image": [
            label for label, path in zip(labels, ours["path"], strict=True) if Path(path).name not in pictures
        ],
    }


def differences(replicas: Sequence[Replica], record: Record) -> list[str]:
    """Items that one server does not find as the others do, of those that were added last."""
    kept = [item for label, item in record.added.items() if label not in record.removing][-20:]
    wrong = []
    for item in kept:
        answers = {httpx.get(f"{one.address}/items/{item}/neighbors", trust_env=False).text for one in replicas}
        pictures = {httpx.get(f"{one.address}/items/{item}/image", trust_env=False).content for one in replicas}
        if len(answers) != 1 or len(pictures) != 1:
            wrong.append(str(item))
    return wrong


def placed(folder: Path, items: int, milvus: str) -> tuple[str, Path]:
    """A gallery, in Milvus if an address is given, and the folder for the images of added items."""
    made = prepare(folder, items)
    images = folder / "added"
    images.mkdir()
    if not milvus:
        return str(made), images
    place = milvus if "#" in milvus else f"{milvus}#load_{uuid.uuid4().hex[:8]}"
    from_folder = Gallery.load(made)
    ids = from_folder.items.index.to_numpy()
    table = from_folder.items.reset_index(drop=True)
    run = from_folder.manifest
    Gallery.build(place, [(from_folder.vectors(ids), table)], model=run.model, run=run.run)
    return place, images


def under_load(replicas: Sequence[Replica], options: argparse.Namespace, record: Record) -> None:
    """Let the clients work, and kill the servers in turn until the end."""
    stop, end = threading.Event(), time.monotonic() + 60 * options.minutes
    clients = [
        Client(number, replicas[number % len(replicas)].address, stop, record) for number in range(options.clients)
    ]
    for client in clients:
        client.start()
    try:
        for number in range(10**9):
            enough = len(record.added) >= options.additions and all(one.kills >= options.kills for one in replicas)
            if time.monotonic() >= end or (options.additions and enough):
                break
            time.sleep(min(random.uniform(0.5, 1.5) * options.kill_every, max(0.1, end - time.monotonic())))
            one = replicas[number % len(replicas)]
            if time.monotonic() < end and not (options.additions and one.kills >= options.kills):
                one.kill()
    finally:
        stop.set()
        for client in clients:
            client.join()


def main(arguments: Sequence[str] | None = None) -> Record:
    """Print the table and what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="at most")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--items", type=int, default=10_000, help="in the gallery at first")
    parser.add_argument("--kill_every", type=float, default=30.0, help="seconds, on average, between two kills")
    parser.add_argument("--milvus", default="", help="a server to keep the gallery in; by default it is in a folder")
    parser.add_argument("--replicas", type=int, default=1, help="servers on the gallery")
    parser.add_argument("--additions", type=int, default=0, help="end after so many, and --kills of each server")
    parser.add_argument("--kills", type=int, default=2, help="of each server; only with --additions")
    options = parser.parse_args(arguments)
    random.seed(0)
    record = Record()
    with tempfile.TemporaryDirectory() as folder:
        gallery, images = placed(Path(folder), options.items, options.milvus)
        replicas = [Replica(gallery, images, free_port()) for _ in range(options.replicas)]
        for one in replicas:
            one.start()
        under_load(replicas, options, record)
        different = differences(replicas, record)
        stopped = [one.end() for one in replicas]
        wrong = {kind: labels for kind, labels in faults(gallery, images, record).items() if labels}
    print_result(record, replicas)
    for kind, labels in (wrong | ({"different": different} if different else {})).items():
        print(f"{kind}: {len(labels)}, such as {labels[0]}")
    missed = options.additions and len(record.added) < options.additions
    if wrong or different or any(stopped) or 500 in record.statuses or missed:
        raise SystemExit(1)
    print("nothing lost, nothing twice")
    return record


def print_result(record: Record, replicas: Sequence[Replica]) -> None:
    """Print the table."""
    kills, sizes = sum(one.kills for one in replicas), [size for one in replicas for size in one.sizes]
    table = Table("kills", "searches", "p50, ms", "p99, ms", "added", "removed", "broken", "MiB, least", "MiB, most")
    p50, p99 = np.percentile(record.seconds, [50, 99]) * 1000
    counts = (
        f"{len(record.seconds):,}",
        f"{p50:.0f}",
        f"{p99:.0f}",
        f"{len(record.added):,}",
        f"{len(record.removed):,}",
    )
    table.add_row(str(kills), *counts, str(record.broken), f"{min(sizes):.0f}", f"{max(sizes):.0f}")
    Console(width=120).print(table)
    print("answers by status:", dict(sorted(record.statuses.items())))


if __name__ == "__main__":
    main()
