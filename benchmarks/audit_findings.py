"""How well an audit finds other mistakes than wrong labels: `python -m benchmarks.audit_findings rows`, then `table`.

`rows` puts pairs of classes under one label, splits other classes in two at random, and adds vectors of another catalog
under labels drawn at random, all at once; then it counts what the audit names of these, and what else it names.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.audit import read_vectors
from benchmarks.audit_rankings import rows_of
from benchmarks.measure import console, table
from proxygml.arrays import Rows, Vectors
from proxygml.auditing.alike import alike_classes
from proxygml.auditing.evidence import Evidence
from proxygml.auditing.mixed import mixed_classes
from proxygml.auditing.outliers import class_distances
from proxygml.auditing.table import LIKELY

EACH, STRANGERS = 10, 30


def findings(vectors: Vectors, labels: Rows, strangers: Vectors, seed: int) -> Iterator[dict[str, object]]:
    """A row for each kind of mistake: how many were made, how many of them are named, and how many others."""
    random = np.random.default_rng(seed)
    classes = random.permutation(labels.max() + 1)
    merged, gone, halved = classes[:EACH], classes[EACH : 2 * EACH], classes[2 * EACH : 3 * EACH]
    changed, halves = labels.copy(), {int(label): int(labels.max()) + 1 + place for place, label in enumerate(halved)}
    for kept, other in zip(merged, gone, strict=True):
        changed[labels == other] = kept
    for label, half in halves.items():
        changed[(labels == label) & (random.random(len(labels)) < 0.5)] = half
    chosen = strangers[random.permutation(len(strangers))[:STRANGERS]]
    given = random.choice(np.unique(changed), STRANGERS)
    vectors, changed = np.concatenate([vectors, chosen]), np.concatenate([changed, given])
    rows = rows_of(vectors)
    evidence = Evidence.of(rows, changed, int(changed.max()) + 1, seed)
    doubtful = np.nan_to_num(evidence.probability) >= LIKELY
    two = {mixed.label for mixed in mixed_classes(rows, changed, evidence.groups, doubtful, seed)}
    one = {(pair.one, pair.other) for pair in alike_classes(evidence)}
    found = evidence.found
    distances = class_distances(rows, changed, found.classes, found.kept_scores, evidence.groups, seed)
    far = distances.outliers >= len(labels)
    for what, made, named, others in (
        ("classes that are two", EACH, len(two & set(merged)), len(two - set(merged))),
        ("classes that are one", EACH, len(one & set(halves.items())), len(one - set(halves.items()))),
        ("images of no class", STRANGERS, int(far.sum()), int((~far).sum())),
    ):
        yield {"what": what, "made": made, "named": named, "others_named": others}


def add_rows(catalog: Path, strangers: Path, name: str, out: Path, seed: int) -> None:
    """Keep a row for each kind of mistake."""
    vectors, labels, _ = read_vectors(catalog)
    found = pd.DataFrame(list(findings(vectors, labels, read_vectors(strangers)[0], seed))).assign(data=name, seed=seed)
    found = found[["data", "seed", "what", "made", "named", "others_named"]]
    (pd.concat([pd.read_csv(out), found]) if out.exists() else found).to_csv(out, index=False)


def print_table(rows: pd.DataFrame) -> None:
    """The sums over the seeds."""
    found = table("what an audit names", ["data", "what", "made", "named", "others named", "seeds"])
    for (data, what), here in rows.groupby(["data", "what"], sort=False):
        sums = here[["made", "named", "others_named"]].sum()
        found.add_row(str(data), str(what), *(f"{value:,}" for value in sums), str(len(here)))
    console.print(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("rows", help="make mistakes in a catalog of vectors, and count what is named")
    adding.add_argument("--catalog", type=Path, required=True)
    adding.add_argument("--strangers", type=Path, required=True, help="a catalog of vectors that belong to none")
    adding.add_argument("--name", required=True, help="what the table calls it")
    adding.add_argument("--out", type=Path, required=True, help="the CSV file that rows are added to")
    adding.add_argument("--seed", type=int, default=0)
    printing = commands.add_parser("table", help="the table of a file of rows")
    printing.add_argument("file", type=Path)
    options = parser.parse_args()
    if options.command == "rows":
        add_rows(options.catalog, options.strangers, options.name, options.out, options.seed)
    else:
        print_table(pd.read_csv(options.file))


if __name__ == "__main__":
    main()
