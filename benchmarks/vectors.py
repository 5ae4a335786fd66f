"""`python -m benchmarks.vectors`: an epoch of a head on vectors beside its floor; a million vectors, step by step.

The floor is what the exact computation needs, alone, at the same shapes: the matrix products of layer and loss, forward
and backward, into memory that is there already, and the optimiser's pass over all parameters. The epoch is the
product's own: reading the vectors, the batches, the loss, the monitoring, the progress bar.

`python -m benchmarks.vectors million` prepares, trains for an epoch, embeds and indexes 1,000,000 vectors, each step a
command in a process of its own, and prints its time and the peak of its memory.

`python -m benchmarks.vectors catalog` embeds and indexes a catalog of 5,000,000 vectors of 32 numbers, and a tenth of
it, with a model that nobody has trained: what of the memory grows with the rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.measure import Work, console, machine, mebibytes, milliseconds, side_by_side, table
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.vector_embedder import VectorEmbedder
from proxygml.training.loss_settings import LossSettings
from proxygml.training.processes import make_accelerator
from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import find_recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import Training


@dataclass(frozen=True)
class Case:
    """A table of vectors and a head on it."""

    name: str
    rows: int
    size: int
    embedding_size: int
    classes: int
    batch: int
    sparse: bool = False


CASES = (
    Case("384 to 384", 60_000, 384, 384, 11_318, 256),
    Case("384 to 128", 60_000, 384, 128, 11_318, 256),
    Case("384 to 384, sparse", 60_000, 384, 384, 11_318, 256, sparse=True),
)


def write_vectors(
    path: Path, rows: int, size: int, classes: int, rows_at_a_time: int = 50_000, splits: bool = False
) -> None:
    """Vectors around a centre for each class, with labels. With `splits`, half of the classes are for test."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(classes, size)).astype(np.float32)
    writer = None
    for start in range(0, rows, rows_at_a_time):
        labels = np.arange(start, min(start + rows_at_a_time, rows)) % classes
        vectors = centres[labels] + random.standard_normal((len(labels), size), np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), size)
        columns = {"label": labels, "embedding": lists}
        if splits:
            columns["split"] = np.where(labels < classes // 2, "train", "test")
        part = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, part.schema, use_dictionary=["label"], compression="NONE")
        writer.write_table(part)
    assert writer is not None
    writer.close()


def recipe_of(case: Case, catalog: Path) -> Recipe:
    """The recipe `vectors` at the shapes of a case, all classes training."""
    recipe = Recipe.read(find_recipe("vectors"))
    loss = LossSettings(proxies_per_class=1, neighbor_ratio=0.05, proxy_weight=0.0, scale=20.0, sparse=case.sparse)
    return replace(
        recipe,
        catalog=str(catalog),
        embedder=EmbedderSettings("vectors", "none", embedding_size=case.embedding_size, head="residual"),
        loss=loss,
        batch_size=case.batch,
        validation_classes=0.0,
        epochs=1000,
        tracker="none",
    )


def epoch_of(case: Case, folder: Path) -> Work:
    """An epoch of our training, each call the next one."""
    catalog = folder / f"{case.rows}x{case.size}.parquet"
    if not catalog.exists():
        write_vectors(folder / "raw.parquet", case.rows, case.size, case.classes)
        columns = pq.read_table(folder / "raw.parquet")
        pq.write_table(columns.append_column("split", pa.array(["train"] * case.rows)), catalog)
    recipe = recipe_of(case, catalog)
    training = Training(recipe, RunFolder(folder / "run"), make_accelerator(recipe))
    _, loader = training.open_data()
    done = 0

    def work() -> None:
        nonlocal done
        done += 1
        training.batches.set_epoch(done)
        training._train_epoch(done, loader)

    return work


def floor_of(case: Case) -> Work:
    """The products and the optimiser's pass of an epoch, at the same shapes."""
    size, classes = case.embedding_size, case.classes
    vectors, layer = torch.randn(case.batch, case.size), torch.randn(size, case.size)
    proxies, similarity = torch.randn(classes, size), torch.randn(case.batch, classes)
    embeddings, back = torch.randn(case.batch, size), torch.randn(case.batch, size)
    for parameter in (layer, proxies):
        parameter.requires_grad_(True)
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.Adam([layer, proxies], lr=1e-9, eps=1e-8, weight_decay=1e-4, fused=True)
    weight, rows = layer.detach(), proxies.detach()
    of_layer, of_proxies = layer.grad, proxies.grad
    assert of_layer is not None
    assert of_proxies is not None
    steps = -(-case.rows // case.batch)

    def work() -> None:
        for _ in range(steps):
            torch.mm(vectors, weight.T, out=embeddings)
            torch.mm(embeddings, rows.T, out=similarity)
            torch.mm(similarity, rows, out=back)
            torch.mm(similarity.T, embeddings, out=of_proxies)
            torch.mm(back.T, vectors, out=of_layer)
            optimizer.step()

    return work


def compare(rounds: int) -> None:
    """The epoch of each case beside its floor."""
    found = table(machine(torch.device("cpu")), ["vectors to embeddings", "epoch", "its floor", "ratio", "20 epochs"])
    for case in CASES:
        with TemporaryDirectory() as folder:
            contenders = {"epoch": epoch_of(case, Path(folder)), "floor": floor_of(case)}
            times = side_by_side(contenders, seconds=0, rounds=rounds)
        ratio = f"{times['epoch'] / times['floor']:.2f}x"
        minutes = f"{20 * times['epoch'] / 60:.1f} min"
        found.add_row(case.name, milliseconds(times["epoch"]), milliseconds(times["floor"]), ratio, minutes)
    case = CASES[0]
    console.print(found)
    console.print(f"{case.rows:,} vectors of {case.classes:,} classes, batch {case.batch}, one proxy a class, r 0.05")


def million(rows: int, size: int, classes: int, folder: Path) -> None:
    """Each step of the way with many vectors: seconds and peak memory."""
    folder.mkdir(parents=True, exist_ok=True)
    found = table(machine(torch.device("cpu")), [f"{rows:,} x {size}, {classes:,} classes", "time", "peak memory"])
    write_vectors(folder / "features.parquet", rows, size, classes)
    catalog, run = folder / "products.parquet", folder / "run"
    features, embedded = folder / "features.parquet", folder / "embedded.parquet"
    train = f"train --recipe vectors --catalog {catalog} --run {run} --epochs 1 --validation_classes 0.02"
    steps = {
        "prepare vectors": f"prepare vectors --root {features} --test_classes 10 --out {catalog}",
        "train, one epoch": f"{train} --loss.scale 20 --loss.degree_normalized false",
        "embed": f"embed {run} --vectors {features} --out {embedded}",
        "index": f"index {run} --vectors {embedded} --out {folder / 'gallery'}",
    }
    for name, command in steps.items():
        seconds, peak = run_measured(["proxygml", *command.split()])
        found.add_row(name, f"{seconds:,.0f} s", mebibytes(peak))
        console.print(f"{name}: {seconds:,.0f} s, {mebibytes(peak)}")
    console.print(found)


def catalogs(rows: int, size: int, classes: int, folder: Path) -> None:
    """Peak memory of `embed` and `index` on a catalog of vectors and on a tenth of it, and what a row adds."""
    title = f"catalog of vectors of {size}, {classes:,} classes"
    found = table(machine(torch.device("cpu")), [title, f"{rows // 10:,} rows", f"{rows:,} rows", "a row more", "time"])
    run = folder / "run"
    run.mkdir(parents=True, exist_ok=True)
    settings = EmbedderSettings("vectors", "none", embedding_size=size, head="residual")
    VectorEmbedder(settings, size).save(run)
    peaks: dict[str, list[int]] = {"embed": [], "index": []}
    times: dict[str, float] = {}
    for count in (rows // 10, rows):
        write_vectors(folder / "catalog.parquet", count, size, classes, splits=True)
        for name, out in (("embed", folder / f"{count}.parquet"), ("index", folder / f"{count}.gallery")):
            times[name], peak = run_measured(
                ["proxygml", name, str(run), "--catalog", str(folder / "catalog.parquet"), "--out", str(out)]
            )
            peaks[name].append(peak)
    for name, (small, large) in peaks.items():
        grown = f"{max(0, large - small) / (rows - rows // 10):.0f} bytes"
        found.add_row(name, mebibytes(small), mebibytes(large), grown, f"{times[name]:,.0f} s")
    console.print(found)


def run_measured(command: list[str]) -> tuple[float, int]:
    """Seconds, and peak bytes of a module's own memory: mapped files, which the system may drop, are not counted.

    Args:
        command: the words after `python -m`.

    Raises:
        SystemExit: it failed.
    """
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-m", *command], env=os.environ)
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:  # it has just ended, or not begun
            lines = []
        anonymous = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")]
        peak = max([peak, *anonymous])
        time.sleep(0.05)
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="epoch", choices=["epoch", "million", "catalog"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=None, help="1,000,000; of a catalog 5,000,000")
    parser.add_argument("--classes", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, default=None, help="where the vectors go; needs 6 GB")
    options = parser.parse_args()
    if options.what == "epoch":
        compare(options.rounds)
        return
    with nullcontext(options.folder) if options.folder is not None else TemporaryDirectory() as folder:
        if options.what == "million":
            million(options.rows or 1_000_000, 384, options.classes, Path(folder))
        else:
            catalogs(options.rows or 5_000_000, 32, options.classes, Path(folder))


if __name__ == "__main__":
    main()
