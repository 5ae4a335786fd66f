"""A server under mixed load that is killed again and again: nothing may be lost, nothing added twice.

    python -m benchmarks.serving_load                 # one minute
    python -m benchmarks.serving_load --minutes 10

Clients add items, remove some of them again and search; every so often the server gets SIGKILL and is started anew on
the same gallery. At the end the gallery on disk must hold every item whose addition was answered and whose removal was
not begun, each once, and none whose removal was answered. It exits with 1 otherwise.
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

    def __init__(self, number: int, address: str, end: float, record: Record) -> None:
        super().__init__()
        self.number, self.address, self.end, self.record = number, address, end, record

    def run(self) -> None:
        """Send requests until the end, and begin again where a kill has broken one."""
        step = 0
        while time.monotonic() < self.end:
            with httpx.Client(base_url=self.address, timeout=60, trust_env=False) as client:
                try:
                    while time.monotonic() < self.end:
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


def start(gallery: Path, port: int) -> "subprocess.Popen[bytes]":
    """The server, once it answers."""
    command = [sys.executable, "-m", "proxygml", "serve", str(gallery), "--port", str(port), "--page", "false"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PROXYGML_TOKEN": TOKEN})
    while server.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=5)
            return server
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit("the server did not start")


def faults(gallery: Path, record: Record) -> dict[str, list[str]]:
    """What the gallery on disk lacks, or holds that it should not; by kind."""
    items = Gallery.load(gallery).items
    ours = items[items["label"].astype(str).str.startswith(f"{MARK} ")]
    labels = ours["label"].tolist()
    kept = set(record.added) - record.removing
    ids = dict(zip(labels, ours.index, strict=True))
    pictures = {path.name for path in (gallery / "images").iterdir()}
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


def main() -> None:
    """Print the table and what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--items", type=int, default=10_000, help="in the gallery at first")
    parser.add_argument("--kill_every", type=float, default=30.0, help="seconds, on average, between two kills")
    options = parser.parse_args()
    random.seed(0)
    record, sizes = Record(), []
    with tempfile.TemporaryDirectory() as folder:
        gallery, port = prepare(Path(folder), options.items), free_port()
        server = start(gallery, port)
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + 60 * options.minutes
        clients = [Client(number, address, end, record) for number in range(options.clients)]
        for client in clients:
            client.start()
        kills = 0
        while time.monotonic() < end:
            time.sleep(min(random.uniform(0.5, 1.5) * options.kill_every, max(0.1, end - time.monotonic())))
            sizes.append(memory(server.pid))
            if time.monotonic() < end:
                server.send_signal(signal.SIGKILL)
                server.wait()
                kills += 1
                server = start(gallery, port)
        for client in clients:
            client.join()
        server.terminate()
        stopped = server.wait()
        wrong = {kind: labels for kind, labels in faults(gallery, record).items() if labels}
    print_result(record, kills, sizes)
    for kind, labels in wrong.items():
        print(f"{kind}: {len(labels)}, such as {labels[0]}")
    if wrong or stopped or 500 in record.statuses:
        raise SystemExit(1)
    print("nothing lost, nothing twice")


def print_result(record: Record, kills: int, sizes: list[float]) -> None:
    """Print the table."""
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
