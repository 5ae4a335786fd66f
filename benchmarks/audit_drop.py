"""What training without doubtful labels is worth: `python -m benchmarks.audit_drop rows`, then `tables`.

`rows` changes training labels of a catalog of vectors, audits the training split, trains the recipe `vectors` on all
labels, without those that the audit says not to keep, and without those that were changed, and adds a row for each to a
CSV file. Test labels stay right. Rows that are there are not computed again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from scipy import stats

import proxygml
from benchmarks.audit_rankings import with_noise
from benchmarks.measure import console, table
from proxygml.auditing.feature_rows import FeatureRows
from proxygml.data.catalog import Catalog
from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import find_recipe

SETTINGS = (("none", 0.0), ("random", 0.1), ("random", 0.2), ("nearest", 0.1), ("nearest", 0.2))
SEEDS = (1, 2, 3)
ALL, AUDITED, RIGHT = "all labels", "without those the audit drops", "without those that are wrong"
KEY = ["data", "noise", "share", "seed"]


def add_rows(path: Path, name: str, out: Path, seeds: list[int]) -> None:
    """Train with every kind and share of noise, and keep a row for each way of training."""
    for seed in seeds:
        for noise, share in SETTINGS:
            kept = pd.read_csv(out, keep_default_na=False) if out.exists() else pd.DataFrame(columns=KEY)
            if (kept[KEY] == [name, noise, share, seed]).all(axis=1).any():
                continue
            with TemporaryDirectory() as folder:
                found = pd.DataFrame(list(_trained(path, Path(folder), noise, share, seed)))
            found = found.assign(data=name, noise=noise, share=share, seed=seed)
            found = found[[*KEY, "trained", "left_out", "wrong_left", "recall_at_1", "map_at_r"]]
            (pd.concat([kept, found]) if len(kept) else found).to_csv(out, index=False)
            console.print(f"{name} {noise} {share} seed {seed}: " + ", ".join(f"{v:.4f}" for v in found["map_at_r"]))


def _trained(path: Path, folder: Path, noise: str, share: float, seed: int) -> Iterator[dict[str, object]]:
    """A row for each way of training."""
    whole = Catalog.read(path)
    training = np.flatnonzero(whole.table["split"] == "train")
    names, right = np.unique(whole.table["label"].to_numpy()[training].astype(str), return_inverse=True)
    wrong = np.zeros(len(training), bool)
    labels = right
    if share:
        assert whole.vectors is not None
        vectors = FeatureRows(whole.vectors.mapped(), whole.vector_rows).take(training)
        labels, wrong = with_noise(vectors, right.astype(np.int64), len(names), noise, share, seed)
    changed = whole.table.copy()
    changed.loc[training, "label"] = names[labels]
    catalog = folder / "noisy.parquet"
    whole.with_table(changed).write(catalog)
    proxygml.audit(None, catalog, folder / "audit", split="train", seed=seed)
    pd.DataFrame({"row": training, "keep": ~wrong}).to_csv(folder / "right.csv", index=False)
    ways = {ALL: "", AUDITED: str(folder / "audit" / "audit.csv"), RIGHT: str(folder / "right.csv")}
    for number, (way, drop) in enumerate(ways.items()):
        if way == RIGHT and not share:
            continue
        audited = pd.read_csv(drop) if drop else pd.DataFrame({"row": [], "keep": []})
        dropped = audited["row"][~audited["keep"].astype(bool)].to_numpy(np.int64)
        left = np.setdiff1d(training[wrong], dropped)
        result = _quality(catalog, drop, folder / f"run{number}", seed)
        yield {"trained": way, "left_out": len(dropped), "wrong_left": len(left)} | result


def _quality(catalog: Path, drop: str, run: Path, seed: int) -> dict[str, float]:
    """Recall@1 and MAP@R of the test split, by the recipe `vectors` on all training classes."""
    recipe = replace(Recipe.read(find_recipe("vectors")), catalog=str(catalog), drop=drop, seed=seed)
    model = proxygml.Embedder.load(proxygml.train(replace(recipe, validation_classes=0.0), run).path)
    test = Catalog.read(catalog).split("test")
    assert test.vectors is not None
    vectors = test.vectors.mapped()[test.vector_rows]
    embeddings = model.embed(vectors, progress=False)
    found = proxygml.evaluate(embeddings, test.labels, recall_at=(1,), nmi=False)
    return {"recall_at_1": round(found.recall[1].value, 5), "map_at_r": round(found.map_at_r.value, 5)}


def print_tables(rows: pd.DataFrame) -> None:
    """For each data set the means over the seeds, and what the audit gains over all labels, with its 95% interval."""
    for data in dict.fromkeys(rows["data"]):
        for figure, words in (("recall_at_1", "Recall@1, per cent"), ("map_at_r", "MAP@R, per cent")):
            heads = ["wrong labels", ALL, AUDITED, RIGHT, "gain of the audit", "left out", "wrong ones left"]
            found = table(f"{data}: {words}", heads)
            for noise, share in dict.fromkeys(zip(rows["noise"], rows["share"], strict=True)):
                here = rows[(rows["data"] == data) & (rows["noise"] == noise) & (rows["share"] == share)]
                if len(here):
                    found.add_row(*_row(here, noise, share, figure))
            console.print(found)


def _row(rows: pd.DataFrame, noise: str, share: float, figure: str) -> list[str]:
    wide = rows.pivot_table(index="seed", columns="trained", values=figure) * 100
    gain = wide[AUDITED] - wide[ALL]
    half = float(stats.t.ppf(0.975, len(gain) - 1)) * float(gain.std(ddof=1)) / math.sqrt(len(gain))
    audited = rows[rows["trained"] == AUDITED]
    return [
        f"{noise} {100 * share:.0f}%" if share else "none",
        *(f"{wide[way].mean():.1f}" if way in wide else "" for way in (ALL, AUDITED, RIGHT)),
        f"{gain.mean():+.1f} ({gain.mean() - half:+.1f} to {gain.mean() + half:+.1f})",
        f"{audited['left_out'].mean():.0f}",
        f"{audited['wrong_left'].mean():.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("rows", help="train on a catalog of vectors with a train and a test split")
    adding.add_argument("--catalog", type=Path, required=True)
    adding.add_argument("--name", required=True, help="what the table calls it")
    adding.add_argument("--out", type=Path, required=True, help="the CSV file that rows are added to")
    adding.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    printing = commands.add_parser("tables", help="the tables of files of rows")
    printing.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "rows":
        add_rows(options.catalog, options.name, options.out, options.seeds)
    else:
        print_tables(pd.concat([pd.read_csv(file, keep_default_na=False) for file in options.files]))


if __name__ == "__main__":
    main()
