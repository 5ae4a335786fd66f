"""Searching a gallery: exact beside one pass over its vectors, HNSW and IVF-PQ beside exact.

`python -m benchmarks.gallery` prints the tables. Uniform noise has no near neighbours worth finding, so the vectors are
made like embeddings of many small classes: classes of ten items gather around coarser groups. The cosine between two
items is about 0.75 in a class, 0.5 in a group and 0 elsewhere; the queries are further items of the same classes.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from benchmarks.measure import console, default_device, machine, milliseconds, side_by_side, table
from proxygml.gallery import Gallery
from proxygml.nearest_neighbors import Kind, recall_against_exact

Vectors = npt.NDArray[np.float32]

PER_CLASS, CLASSES_PER_GROUP, SPREAD, QUERIES, K = 10, 30, 0.7, 200, 10
KINDS: tuple[Kind, ...] = ("hnsw", "ivfpq")


def clustered(count: int, size: int, seed: int) -> tuple[Vectors, Vectors]:
    """(count, size) items and (QUERIES, size) queries of length 1, of the same classes."""
    random = np.random.default_rng(seed)

    def normal(number: int) -> Vectors:
        return random.standard_normal((number, size), np.float32) / np.float32(size**0.5)

    num_classes = max(1, count // PER_CLASS)
    groups = normal(max(1, num_classes // CLASSES_PER_GROUP))
    classes = groups[random.integers(len(groups), size=num_classes)] + SPREAD * normal(num_classes)

    def draw(number: int) -> Vectors:
        vectors = classes[random.integers(num_classes, size=number)] + SPREAD * normal(number)
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    return draw(count), draw(QUERIES)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=5.0, help="for each table")
    options = parser.parse_args()
    vectors, queries = clustered(options.items, options.size, 0)
    items = pd.DataFrame({"label": np.arange(options.items) // PER_CLASS})
    exact = Gallery.create(vectors, items)
    console.print(machine(default_device()))
    turn = iter(range(10**9))

    def query() -> Vectors:
        place = next(turn) % QUERIES
        return queries[place : place + 1]

    times = side_by_side(
        {
            "pass": lambda: vectors @ query()[0],
            "pass, torch": lambda: torch.mv(torch.from_numpy(vectors), torch.from_numpy(query()[0])),
            "exact": lambda: exact.search(query(), K),
        },
        options.seconds,
    )
    floor = min(times["pass"], times["pass, torch"])
    result = table(
        f"One query, {options.items:,} items of {options.size}, k {K}", ["", "time", "to one pass", "recall"]
    )
    result.add_row("one pass over the vectors (product alone)", milliseconds(floor), "1.00", "")
    result.add_row("exact", milliseconds(times["exact"]), f"{times['exact'] / floor:.2f}", "1.000")
    console.print(result)
    truth = exact.search(queries, K).ids
    result = table("Approximate indexes", ["", "build", "one query", "faster than exact", f"recall@{K}", "stated"])
    for kind in options.kinds:
        start = time.perf_counter()
        gallery = Gallery.create(vectors, items, kind)
        built = time.perf_counter() - start
        times = side_by_side(
            {
                "exact": lambda: exact.search(query(), K),
                kind: lambda gallery=gallery: gallery.search(query(), K),  # type: ignore[misc]
            },
            options.seconds,
        )
        recall = recall_against_exact(gallery.search(queries, K).ids, truth)
        faster = f"{times['exact'] / times[kind]:.1f}"
        stated = f"{gallery.facts.recall:.3f}"
        result.add_row(kind, f"{built:,.0f} s", milliseconds(times[kind]), faster, f"{recall:.3f}", stated)
    console.print(result)


if __name__ == "__main__":
    main()
