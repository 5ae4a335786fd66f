"""`python -m benchmarks.continuing`: a run continued with more classes beside runs trained anew, of kept rows.

    python -m benchmarks.continuing measure --data glyphs --catalog glyphs.parquet --recipe glyphs --seed 0
    python -m benchmarks.continuing

`measure` trains on half of the training classes, which the seed draws; then on all of them: from that run
(`train --from`) and anew, with the same recipe and the same number of epochs, and anew for the whole cost of both runs.
All are evaluated on the catalog's test classes, which no run has seen. It adds a row for each to the kept ones, and
skips what is there already. Continued runs with another `--warmup_epochs` need another `--data`. Without `measure` it
prints the table of the kept rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from benchmarks.measure import console
from proxygml import evaluate_run, train
from proxygml.errors import UserError
from proxygml.files import atomic_write
from proxygml.training.continuation import continuing
from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import find_recipe, read_yaml
from proxygml.training.run_folder import RunFolder

ROWS = Path("docs/results/continuing.csv")
KEY = ["data", "seed", "start", "epochs"]
FIGURES = {"recall_at_1": "Recall@1", "map_at_r": "MAP@R"}


@dataclass(frozen=True)
class Row:
    """A run and what it reached on the test classes.

    Attributes:
        start: half: on half of the classes; continued: from that run; anew: as the recipe starts.
        epochs: its passes over its training images.
        images: how many training images it has looked at, those of the run that it starts from not counted.
        before: the same of the run that it starts from.
        warmup_epochs: of a continued run; None for the others, which have that of the recipe.
    """

    data: str
    seed: int
    start: str
    epochs: int
    images: int
    before: int
    warmup_epochs: int | None
    recall_at_1: float
    map_at_r: float


@dataclass(frozen=True)
class Trial:
    """The runs of one seed: their catalog, their recipe and where they are kept."""

    data: str
    catalog: Path
    recipe: Recipe
    folder: Path
    seed: int
    warmup_epochs: int = 0  # of continued runs

    def rows(self, kept: pd.DataFrame, epochs: Sequence[int]) -> Iterator[Row]:
        """Train and evaluate what is not among the kept rows.

        Args:
            kept: the rows that are there.
            epochs: how long to go on; each is also a length of training anew.

        Raises:
            UserError: there are continued runs of the same data with another warm-up.
        """
        of_data = kept[(kept["data"] == self.data) & (kept["start"] == "continued")]
        for warmup in of_data["warmup_epochs"]:
            self._check_warmup(warmup, "the kept rows")
        items = pd.read_parquet(self.catalog)
        training = items["split"] == "train"
        classes = np.unique(items.loc[training, "label"])
        half = np.random.default_rng(self.seed).permutation(classes)[: len(classes) // 2]
        few = items[~training | items["label"].isin(half)]
        path = self.catalog.with_name(f"{self.catalog.stem}-half-{self.seed}.parquet")  # paths are relative to it
        few.to_parquet(path)
        whole, part = int(training.sum()), int((few["split"] == "train").sum())
        first = self.recipe.epochs
        old = self.run("half", first)
        plan = [("half", first, path, part, 0)]
        for count in epochs:
            plan.append(("continued", count, self.catalog, whole, first * part))
            plan.append(("anew", count, self.catalog, whole, 0))
            plan.append(("anew", count + round(first * part / whole), self.catalog, whole, 0))
        for start, count, catalog, images, before in dict.fromkeys(plan):
            if not (kept[KEY] == [self.data, self.seed, start, count]).all(axis=1).any():
                continued = start == "continued"
                warmup = self.warmup_epochs if continued else None
                values = self.trained(start, count, catalog, old if continued else None)
                yield Row(self.data, self.seed, start, count, count * images, before, warmup, *values)

    def run(self, start: str, epochs: int) -> Path:
        """The folder of a run."""
        return self.folder / f"{self.data}-{start}-{epochs}-{self.seed}"

    def trained(self, start: str, epochs: int, catalog: Path, old: Path | None) -> tuple[float, float]:
        """Recall@1 and MAP@R of a run, which is trained where it is not there yet."""
        place = self.run(start, epochs)
        if not (place / "model.json").exists():
            fall = max(1, min(round(0.8 * epochs), epochs - 1))  # of the learning rates: late, as in the recipe
            recipe = replace(self.recipe, seed=self.seed, epochs=epochs, milestones=(fall,))
            if old is not None:
                recipe = replace(continuing(recipe, old), warmup_epochs=self.warmup_epochs)
            stopped = place.exists()
            train(None if stopped else recipe, place, catalog=None if stopped else catalog)
        if old is not None:
            self._check_warmup(RunFolder(place).read_recipe().warmup_epochs, f"the run {place}")
        found = evaluate_run(RunFolder(place), report=False)
        assert found is not None  # this is the main process
        return found.recall[1].value, found.map_at_r.value

    def _check_warmup(self, found: int, where: str) -> None:
        """Raise UserError for continued runs with another warm-up than this trial's: one table row would hold both."""
        if found != self.warmup_epochs:
            raise UserError(
                f"{where}: continued runs of {self.data!r} have warmup_epochs {found}, but --warmup_epochs "
                f"is {self.warmup_epochs}: give this trial another --data"
            )


def read_rows(path: Path) -> pd.DataFrame:
    """The kept rows, none where there is no file."""
    if not path.exists():
        return pd.DataFrame(columns=list(Row.__dataclass_fields__))
    return pd.read_csv(path, dtype={"warmup_epochs": "Int64"})


def measure(trial: Trial, epochs: Sequence[int], path: Path) -> None:
    """Add the rows of a trial that are missing, each as soon as it is known."""
    for row in trial.rows(read_rows(path), epochs):
        found = pd.DataFrame([*read_rows(path).to_dict("records"), asdict(row)])
        with atomic_write(path) as temporary:
            found.sort_values(KEY, kind="stable").round(5).to_csv(temporary, index=False)
        console.print(row)


def table(rows: pd.DataFrame) -> str:
    """As Markdown: how far continued runs are ahead of runs anew, of the same epochs and of the same whole cost."""
    heads = ["continued", "ahead of anew, same epochs", "ahead of anew, same whole cost"]
    names = [f"{name}: {head}" for name in FIGURES.values() for head in heads]
    lines = ["| data | epochs | seeds | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for (data, epochs), continued in _beside_anew(rows).groupby(["data", "epochs"], sort=False):
        cells = [str(data), str(epochs), str(len(continued))]
        for figure in FIGURES:
            cells.append(f"{100 * continued[figure].mean():.1f}")
            gaps = (100 * (continued[figure] - continued[f"{figure}_{anew}"]) for anew in ("anew", "anew_whole"))
            cells += map(_mean_and_interval, gaps)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _beside_anew(rows: pd.DataFrame) -> pd.DataFrame:
    """The continued runs beside the figures of the two runs anew; without those whose measuring was stopped between."""
    continued = rows[rows["start"] == "continued"]
    more = (continued["before"] * continued["epochs"] / continued["images"]).astype(float).round().astype(int)
    continued = continued.assign(whole_epochs=continued["epochs"] + more)
    anew = rows[rows["start"] == "anew"][["data", "seed", "epochs", *FIGURES]]
    whole = anew.rename(columns={"epochs": "whole_epochs"})
    continued = continued.merge(anew, on=["data", "seed", "epochs"], suffixes=("", "_anew"))
    return continued.merge(whole, on=["data", "seed", "whole_epochs"], suffixes=("", "_anew_whole"))


def _mean_and_interval(points: pd.Series) -> str:
    """The mean over seeds, and half of its 95% t interval where there are several."""
    mean = f"{points.mean():+.1f}"
    if len(points) < 2:
        return mean
    return f"{mean} ± {stats.t.ppf(0.975, len(points) - 1) * stats.sem(points):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="show", choices=["show", "measure"])
    parser.add_argument("--data", default="", help="what the table calls it")
    parser.add_argument("--catalog", type=Path)
    parser.add_argument("--recipe", default="glyphs")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other values of the recipe")
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 5], help="how long to go on")
    parser.add_argument("--warmup_epochs", type=int, default=0, help="of the continued runs")
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, default=ROWS)
    options = parser.parse_args()
    if options.what == "measure":
        content = read_yaml(find_recipe(options.recipe))
        for pair in options.set:
            key, _, value = pair.partition("=")
            section, _, inner = key.rpartition(".")
            (content.setdefault(section, {}) if section else content)[inner] = yaml.safe_load(value)
        options.folder.mkdir(parents=True, exist_ok=True)
        recipe = Recipe.of(content, options.recipe)
        trial = Trial(options.data, options.catalog, recipe, options.folder, options.seed, options.warmup_epochs)
        try:
            measure(trial, options.epochs, options.rows)
        except UserError as error:
            sys.exit(str(error))
        return
    print(table(read_rows(options.rows)))


if __name__ == "__main__":
    main()
