"""Images a second of PyTorch, ONNX Runtime and OpenVINO on a trained network, also with exports in fewer bits.

    python -m benchmarks.engines
    python -m benchmarks.engines --weights mobilenetv2_100.safetensors --size 224

MobileNetV2 from images in memory to unit vectors, on the CPU. All rows are measured in turns in one process, and
`times torch` is the median of the ratios of single turns.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from proxygml import Embedder
from proxygml.data.images.settings import ImageSettings
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.engines import openvino_compute
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.models.onnx_export import Precision, write_in_precision
from proxygml.models.onnx_graph import expected_embeddings, onnxruntime_compute

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
BATCHES = (1, 32)


def runners(embedder: Embedder, images: torch.Tensor, folder: Path) -> dict[str, Callable[[torch.Tensor], object]]:
    """Every engine with every precision, as a function of uint8 images (n, 3, S, S)."""
    found: dict[str, Callable[[torch.Tensor], object]] = {
        "torch, float32": lambda given: expected_embeddings(embedder, given)
    }
    for precision in PRECISIONS:
        path = folder / f"{precision}.onnx"
        write_in_precision(embedder, path, precision, images)
        for name, runtime in (("onnx", onnxruntime_compute), ("openvino", openvino_compute)):
            compute = runtime(path)
            found[f"{name}, {precision}"] = lambda given, compute=compute: compute(given.numpy())  # type: ignore[misc]
    return found


def seconds(function: Callable[[torch.Tensor], object], given: torch.Tensor, calls: int) -> float:
    """Of one call, the mean of some."""
    start = time.perf_counter()
    for _ in range(calls):
        function(given)
    return (time.perf_counter() - start) / calls


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="none", help="a file of weights; without, random ones")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    settings = EmbedderSettings("mobilenetv2_100", options.weights, embedding_size=512)
    embedder = ImageEmbedder(settings, ImageSettings(size=options.size, resize=options.size)).eval()
    images = torch.randint(256, (max(BATCHES), 3, options.size, options.size), dtype=torch.uint8)
    table = Table("engine", "MiB", *(f"batch {size}: images a second, times torch" for size in BATCHES))
    with tempfile.TemporaryDirectory() as folder:
        engines = runners(embedder, images, Path(folder))
        sizes = {p: (Path(folder) / f"{p}.onnx").stat().st_size / 2**20 for p in PRECISIONS}
        times: dict[tuple[str, int], list[float]] = {(name, size): [] for name in engines for size in BATCHES}
        for turn in range(options.turns + 1):
            for (name, size), measured in times.items():
                took = seconds(engines[name], images[:size], 1 if size > 1 else 8)
                if turn:  # the first one warms up
                    measured.append(took)
    for name in engines:
        cells = []
        for size in BATCHES:
            own, torchs = np.array(times[name, size]), np.array(times["torch, float32", size])
            cells.append(f"{size / np.median(own):.0f}, {np.median(torchs / own):.2f}")
        table.add_row(name, f"{sizes[name.partition(', ')[2]]:.1f}", *cells)  # type: ignore[index]
    Console(width=120).print(f"{options.size} pixels, {torch.get_num_threads()} threads, {options.turns} turns")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
