"""`python -m benchmarks.kept_memory`: a network on a CPU that keeps the memory it frees, and one that returns it.

MobileNetV2, 32 images at a time: milliseconds of processor time for an image, in training (forward, backward, Adam) and
in embedding, and the peak of the process's memory. Each figure is of a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from statistics import median

import torch

from benchmarks.measure import console, machine, table
from proxygml.data.images.settings import ImageSettings
from proxygml.kept_memory import freed_memory_kept
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder

SIZES = (96, 160, 224)
BATCH, STEPS = 32, 8  # the first step is left out


def measured(work: str, size: int, kept: bool) -> tuple[float, float]:
    """Milliseconds for an image, and the peak of this process's memory in MiB."""
    settings = EmbedderSettings("mobilenetv2_100", "none", "max", 512)
    embedder = ImageEmbedder(settings, ImageSettings(size=size, resize=size)).train(work == "training")
    optimizer = torch.optim.Adam(embedder.parameters(), lr=1e-4, fused=True)
    images = torch.randint(256, (BATCH, 3, size, size), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    taken = []
    with freed_memory_kept() if kept else nullcontext(), torch.set_grad_enabled(work == "training"):
        for _ in range(STEPS):
            start = time.process_time()
            embeddings = embedder(images)
            if work == "training":
                (embeddings @ embeddings.T).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            taken.append(1000 * (time.process_time() - start) / BATCH)
    return median(taken[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare() -> None:
    """Every figure, each by a process of its own."""
    found = table(machine(torch.device("cpu")), ["", "pixels", "returned", "kept", "times faster"])
    for work in ("training", "embedding"):
        for size in SIZES:
            (before, most), (after, more) = (_in_process(work, size, kept) for kept in (False, True))
            cells = [f"{ms:.1f} ms, {mib:,.0f} MiB" for ms, mib in ((before, most), (after, more))]
            found.add_row(work, str(size), *cells, f"{before / after:.2f}")
    console.print(found)


def _in_process(work: str, size: int, kept: bool) -> tuple[float, float]:
    arguments = [sys.executable, "-m", "benchmarks.kept_memory", "--one", work, str(size), str(int(kept))]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    milliseconds, mebibytes = map(float, printed.split())
    return milliseconds, mebibytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=3, metavar=("WORK", "SIZE", "KEPT"), help="a single figure, in this process")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        work, size, kept = options.one
        print(*measured(work, int(size), bool(int(kept))))
    else:
        compare()


if __name__ == "__main__":
    main()
