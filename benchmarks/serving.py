"""A server under load: answers a second, p50 and p99 of their time, failures, and the server's memory as it goes on.

    python -m benchmarks.serving                  # half a minute for each number of clients
    python -m benchmarks.serving --minutes 10     # one number of clients, long enough to see memory grow
    python -m benchmarks.serving --parts          # one client's search beside its parts, in turns

The server is the command itself, in a process of its own, on a gallery of random vectors; the clients are threads here,
each sending the next request when the last is answered. They share the machine's cores with the server.
"""

import argparse
import io
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from proxygml import Gallery
from proxygml.data.images.settings import ImageSettings
from proxygml.data.images.tensors import decode_image
from proxygml.data.images.transforms import test_transform as square_transform
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.engines import Engine, load_embedder
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.models.model_files import fingerprint
from proxygml.serving.server import limit_network_threads

ITEMS, SIZE = 100_000, 512
BLOCKS, IN_BLOCK = 10, 10


def photo(seed: int) -> bytes:
    """A JPEG of 500 x 375 pixels."""
    pixels = np.random.default_rng(seed).integers(256, size=(12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def prepare(folder: Path, count: int = ITEMS) -> Path:
    """A gallery of `count` random vectors and the run folder of a MobileNetV2 that nobody has trained."""
    run = folder / "run"
    run.mkdir()
    torch.manual_seed(0)
    settings = EmbedderSettings("mobilenetv2_100", "none", embedding_size=SIZE)
    ImageEmbedder(settings, ImageSettings(size=128, resize=146)).save(run)
    items = pd.DataFrame(
        {"path": [f"{n}.jpg" for n in range(count)], "label": [f"class {n % 500}" for n in range(count)]}
    )
    vectors = np.random.default_rng(0).standard_normal((count, SIZE), dtype=np.float32)
    Gallery.create(vectors, items, model=fingerprint(run), run=str(run)).save(folder / "gallery")
    return folder / "gallery"


def memory(process: int) -> float:
    """MiB that a process holds now (Linux)."""
    found = re.search(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def load(address: str, clients: int, seconds: float) -> tuple[list[float], int]:
    """Seconds of each answer, and how many requests failed."""
    times: list[float] = []
    failures: list[str] = []
    end = time.perf_counter() + seconds

    def ask(seed: int) -> None:
        data = photo(seed)
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            while (start := time.perf_counter()) < end:
                answer = client.post("/search", files={"image": data}, data={"k": 10})
                times.append(time.perf_counter() - start)
                if answer.status_code != 200:
                    failures.append(answer.text)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, len(failures)


def part_seconds(run: Path, engine: Engine, gallery: Path, data: bytes) -> Callable[[], list[float]]:
    """A function that times, in this process, decoding an image to its square, the server's network, and one pass."""
    embedder, vectors = load_embedder(run, engine), Gallery.load(gallery).vectors(np.arange(ITEMS))
    transform = square_transform(embedder.images)

    @torch.inference_mode()
    def measured() -> list[float]:
        times = [time.perf_counter()]
        square = transform(decode_image(data))
        times.append(time.perf_counter())
        query = embedder(square[None])[0].numpy()
        times.append(time.perf_counter())
        vectors @ query
        return [float(seconds) for seconds in np.diff([*times, time.perf_counter()])]

    return measured


def compare_parts(address: str, parts: Callable[[], list[float]], data: bytes) -> None:
    """Print the time of a search and of its parts, one client, blocks of each in turns."""
    ratios, searches, sums = [], [], []
    form = httpx.Request("POST", address, files={"image": data}, data={"k": 10})  # as a browser sends it, made once
    body, kind = form.read(), {"Content-Type": form.headers["Content-Type"]}
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        for _ in range(BLOCKS):
            own = np.array([parts() for _ in range(IN_BLOCK)])
            times = []
            for _ in range(IN_BLOCK):
                start = time.perf_counter()
                client.post("/search", content=body, headers=kind).raise_for_status()
                times.append(time.perf_counter() - start)
            ratios.append(np.median(times) / np.median(own.sum(axis=1)))
            searches += times
            sums += own.tolist()
    table = Table("", "decode, ms", "network, ms", "pass, ms", "sum, ms", "a search, ms", "ratio")
    for name, percent in (("median", 50), ("10th percentile", 10)):
        each = np.percentile(sums, percent, axis=0) * 1000
        whole = np.percentile(np.sum(sums, axis=1), percent) * 1000
        search = np.percentile(searches, percent) * 1000
        table.add_row(name, *(f"{value:.1f}" for value in (*each, whole, search)), f"{search / whole:.2f}")
    Console(width=120).print(table, f"median ratio of {BLOCKS} blocks: {np.median(ratios):.2f}")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--engine", default="torch", help="what runs the network, in the server and among the parts")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    table = Table(
        "clients", "seconds", "answers", "a second", "p50, ms", "p99, ms", "failed", "MiB before", "MiB after"
    )
    with tempfile.TemporaryDirectory() as folder:
        gallery, port = prepare(Path(folder)), free_port()
        command = [sys.executable, "-m", "proxygml", "serve", str(gallery), "--port", str(port), "--page", "false"]
        command += ["--engine", options.engine]
        with subprocess.Popen(command) as server:
            address = f"http://127.0.0.1:{port}"
            while True:
                try:
                    httpx.get(f"{address}/health", trust_env=False)
                    break
                except httpx.HTTPError:
                    time.sleep(0.2)
            if options.parts:
                load(address, 1, 2)
                limit_network_threads()  # as the server does, and the same for the pass
                with threadpool_limits(max(1, (os.cpu_count() or 1) // 4), user_api="blas"):
                    compare_parts(
                        address, part_seconds(Path(folder) / "run", options.engine, gallery, photo(0)), photo(0)
                    )
                server.terminate()
                return
            load(address, max(options.clients), 5)  # until everything has been used once
            for clients in options.clients[-1:] if options.minutes else options.clients:
                before = memory(server.pid)
                times, failed = load(address, clients, 60 * options.minutes or 30)
                p50, p99 = np.percentile(times, [50, 99]) * 1000
                seconds = 60 * options.minutes or 30
                figures = (
                    f"{seconds:.0f}",
                    f"{len(times):,}",
                    f"{len(times) / seconds:.1f}",
                    f"{p50:.0f}",
                    f"{p99:.0f}",
                )
                table.add_row(str(clients), *figures, str(failed), f"{before:.0f}", f"{memory(server.pid):.0f}")
            server.terminate()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
