"""The table of a comparison: means over seeds, their intervals, and a paired test against the first method.

It takes the rows that cells.py gathers, or CSV files of them; it looks at no run folder.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_numeric_dtype
from scipy import stats

from proxygml.comparison.plan import short_key
from proxygml.errors import UserError

NAMES = {"map_at_r": "MAP@R", "r_precision": "R-precision", "nmi": "NMI"}
# Columns whose values are never numbers, nor missing.
TEXTS = ("method", "family", "varied", "data", "protocol", "settings", "run_settings", "data_fingerprint")
COSTS = ("seconds_per_epoch", "peak_memory_mib", "gpu_memory_mib", "loss_parameters")
NEEDED = ("method", "seed", "trial", "data", "protocol", "settings", "note")
IN_PER_CENT = ("mean", "low", "high", "difference", "difference_low", "difference_high")  # columns of the table
DASH = "\N{EN DASH}"

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, in per cent, and its 95% t interval; the interval is NaN where there is one seed."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if self.count == 0:
            return DASH
        interval = f" ({self.low:.1f} {DASH} {self.high:.1f})" if self.count > 1 else ""
        return f"{self.value:.1f}{interval}"


@dataclass(frozen=True)
class Difference(Mean):
    """A mean difference of two methods over the seeds that both have, and the p value of the paired t test."""

    p: float

    def __str__(self) -> str:
        if self.count == 0:
            return DASH
        tested = "" if math.isnan(self.p) else f", p {self.p:.3f}" if self.p >= 0.001 else ", p < 0.001"
        interval = f" ({self.low:+.1f} {DASH} {self.high:+.1f})" if self.count > 1 else ""
        return f"{self.value:+.1f}{interval}{tested}"


@dataclass(frozen=True)
class Table:
    """A table as text, for Markdown and HTML alike."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"## {self.title}\n\n{self.note}\n\n{body}\n"


@dataclass(frozen=True)
class Sweep:
    """A key that methods vary in numbers: for each line its methods, by the value of the key, rising."""

    key: str  # dotted
    lines: dict[str, dict[float, str]]


class Summary:
    """What the rows of a comparison say.

    Args:
        rows: as `Cells.gather` gives them; of one protocol and data set.
        planned: the methods and seeds that there should be; those of the rows themselves if left out.

    Raises:
        UserError: no rows, rows of different protocols, or two of the same method and seed.
    """

    def __init__(self, rows: pd.DataFrame, planned: Sequence[tuple[str, int]] = ()) -> None:
        if rows.empty:
            raise UserError("no cell of the comparison has finished: there is nothing to make a table of")
        prints = fingerprints(rows)
        # A catalog is known by what it holds; rows from before there was a fingerprint, by its name alone.
        named = rows["data"] if prints.isna().any() else rows["data"].iloc[:0]
        for what, values in (("data", named), ("data_fingerprint", prints.dropna()), ("protocol", rows["protocol"])):
            found = values.dropna().unique()
            if len(found) > 1:
                raise UserError(f"the rows are of different {what}, {found[0]!r} and {found[1]!r}: one table each")
        twice = rows[rows.duplicated(["method", "seed", "trial"])]
        if len(twice):
            raise UserError(f"{twice['method'].iloc[0]}, seed {twice['seed'].iloc[0]}, comes twice: give each row once")
        self.data, self.protocol = (str(rows[column].iloc[0]) for column in ("data", "protocol"))
        rows = _with_families(rows)
        self.cells = rows[rows["trial"].isna()]
        self.trials = rows[rows["trial"].notna()]
        self.methods = list(dict.fromkeys([*(name for name, _ in planned), *rows["method"]]))
        seeds = sorted(set(rows["seed"]))
        self.planned = list(planned) or [(method, seed) for method in self.methods for seed in seeds]
        recalls = [str(name) for name in rows if _is_recall(str(name))]
        self.metrics = [*sorted(recalls, key=lambda name: int(name.rsplit("_", 1)[1])), *NAMES]

    def values(self, method: str, column: str) -> pd.Series:
        """A column of a method's cells, by seed, without those that have no figures."""
        cells = self.cells[self.cells["method"] == method].set_index("seed")
        return cells[column].dropna() if column in cells else pd.Series(dtype=float)

    def curves(self, method: str) -> Iterator[list[float]]:
        """Recall@1 on validation classes by epoch, in per cent, for each of a method's cells that has them."""
        for text in self.values(method, "val_recall_at_1"):
            yield [100 * float(value) for value in str(text).split()]

    def mean(self, method: str, metric: str) -> Mean:
        """The mean of a figure over a method's seeds, in per cent."""
        return Mean(*_mean(100 * self.values(method, metric).to_numpy(dtype=float)))

    def difference(self, method: str, metric: str) -> Difference:
        """How far a method lies above the first one, in points, over the seeds that both have."""
        both = pd.concat([self.values(method, metric), self.values(self.methods[0], metric)], axis=1).dropna()
        gaps = 100 * (both.iloc[:, 0] - both.iloc[:, 1]).to_numpy(dtype=float)
        # Without any spread, but for rounding, there is nothing to test by: both methods may not depend on the seed.
        varied = len(gaps) > 1 and np.ptp(gaps) > 1e-9
        return Difference(*_mean(gaps), p=float(stats.ttest_1samp(gaps, 0).pvalue) if varied else math.nan)

    def missing(self) -> list[str]:
        """The cells that are planned and have no figures, a text for each method, and which of them diverged."""
        notes = dict(zip(zip(self.cells["method"], self.cells["seed"], strict=True), self.cells["note"], strict=True))
        found = []
        for method in self.methods:
            planned = [seed for name, seed in self.planned if name == method]
            seeds = [
                f"{seed} (diverged)" if (method, seed) in notes else str(seed)
                for seed in planned
                if pd.notna(notes.get((method, seed), "not finished"))
            ]
            if seeds:
                found.append(f"{method}, seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}")
        return found

    def sweeps(self) -> list[Sweep]:
        """Every key that is varied in numbers; a line for each family and each combination of its other varied keys.

        Methods of which no cell has figures are left out.
        """
        found: dict[str, dict[str, dict[float, str]]] = {}
        methods = self.cells.drop_duplicates("method")
        for method, family, text in zip(methods["method"], methods["family"], methods["varied"], strict=True):
            if not self.mean(method, "map_at_r").count:
                continue
            varied = dict(part.partition("=")[::2] for part in text.split("; ") if part)
            for key, value in varied.items():
                if _is_number(value):
                    others = [f"{short_key(name)} {other}" for name, other in varied.items() if name != key]
                    line = found.setdefault(key, {}).setdefault(", ".join([family, *others]), {})
                    line[float(value)] = method
        return [
            Sweep(key, {name: dict(sorted(line.items())) for name, line in lines.items()})
            for key, lines in found.items()
            if max(map(len, lines.values())) > 1
        ]

    def table(self) -> pd.DataFrame:
        """A row a method and figure: n, mean, low, high; difference, its low and high, its n and p. In per cent."""
        rows = []
        for method in self.methods:
            for metric in self.metrics:
                mean, gap = self.mean(method, metric), self.difference(method, metric)
                row = {"method": method, "figure": metric_name(metric), "n": mean.count}
                row |= {"mean": mean.value, "low": mean.low, "high": mean.high, "difference": gap.value}
                rows.append(
                    row | {"difference_low": gap.low, "difference_high": gap.high, "pairs": gap.count, "p": gap.p}
                )
        return pd.DataFrame(rows).round(dict.fromkeys(IN_PER_CENT, 4))

    def tables(self) -> list[Table]:
        """Everything that a reader is shown: figures, differences, costs and settings, trials."""
        tables = [self._figures(), self._differences(), self._costs()]
        return [*tables, self._tuning()] if len(self.trials) else tables

    def _figures(self) -> Table:
        missing = self.missing()
        note = f"Data: {self.data}. All methods share: {self.protocol or 'the defaults of a recipe'}. In per cent: "
        note += "the mean over seeds and its 95% t interval. "
        note += "Each run looked at the test classes once, when its settings and its epoch stood. "
        if len(self.trials):
            note += "Hyper-parameters were chosen on validation classes; see the trials below. "
        if missing:
            note += f"Missing: {'; '.join(missing)}."
        head = ["method", "seeds", *map(metric_name, self.metrics)]
        rows = []
        for method in self.methods:
            means = [self.mean(method, metric) for metric in self.metrics]
            rows.append([method, str(means[0].count), *map(str, means)])
        return Table("Figures", note.strip(), head, rows)

    def _differences(self) -> Table:
        note = "In points: the mean over the seeds that both have, its 95% t interval, and the p value of the paired t "
        note += "test, two-sided and not corrected for the number of methods."
        rows = [
            [method, str(self.difference(method, self.metrics[0]).count)]
            + [str(self.difference(method, metric)) for metric in self.metrics]
            for method in self.methods[1:]
        ]
        head = ["method", "pairs", *map(metric_name, self.metrics)]
        return Table(f"Difference from {self.methods[0]}", note, head, rows)

    def _costs(self) -> Table:
        note = "Medians over the cells. Memory is that of the training process at its peak, without the workers that "
        note += "decode images. Settings are those that differ from what all share."
        head = ["method", "seconds per epoch", "peak memory, MiB", "GPU memory, MiB", "numbers learned by the loss"]
        rows = []
        for method in self.methods:
            medians = [self.values(method, column).median() for column in COSTS]
            shown = [
                DASH if math.isnan(value) else f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in medians
            ]
            settings = self.values(method, "settings")
            devices = self.values(method, "device")
            rows.append([method, *shown, ", ".join(sorted(set(devices))) or DASH, next(iter(settings), "") or DASH])
        return Table("Costs and settings", note, [*head, "device", "settings"], rows)

    def _tuning(self) -> Table:
        note = "Every setting that was tried, judged by MAP@R on validation classes. "
        counts = self.trials.groupby("method", sort=False).size()
        note += "Tried: " + ", ".join(f"{method} {count}" for method, count in counts.items()) + ". "
        as_given = [method for method in self.methods if method in set(self.cells["method"]) - set(counts.index)]
        note += f"Taken as given: {', '.join(as_given)}." if as_given else ""
        rows = []
        for row in self.trials.itertuples():
            score = f"{100 * row.val_map_at_r:.1f}" if pd.notna(row.val_map_at_r) else "diverged"
            rows.append([row.method, row.settings, score, "chosen" if str(row.chosen) == "True" else ""])
        return Table("Trials", note.strip(), ["method", "settings", "MAP@R on validation classes", ""], rows)


def fingerprints(rows: pd.DataFrame) -> pd.Series:
    """Which catalog each row is of, by what it holds; missing in rows from before that was told."""
    told = rows["data_fingerprint"] if "data_fingerprint" in rows else pd.Series(index=rows.index, dtype=str)
    return told.where(told != "")


def read_rows(paths: Sequence[Path]) -> pd.DataFrame:
    """The rows of CSV files that a comparison has written, one after the other.

    Raises:
        UserError: a file is missing or holds no such rows.
    """
    return pd.concat([_read_rows(path) for path in paths], ignore_index=True)


def _read_rows(path: Path) -> pd.DataFrame:
    try:
        columns = pd.read_csv(path, nrows=0).columns
        missing = {name: [""] for name in columns if name not in TEXTS}
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False, na_values=missing)
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read ({error}): give the cells.csv that a comparison has written"
        raise UserError(message) from error
    needed = (*NEEDED, "val_map_at_r", "chosen") if "trial" in table and table["trial"].notna().any() else NEEDED
    absent = [name for name in needed if name not in table]
    if absent:
        raise UserError(f"{path} has no column {absent[0]!r}: give the cells.csv that a comparison has written")
    for name, values in (("seed", table["seed"]), ("trial", table["trial"].dropna())):
        numbers = pd.to_numeric(values, errors="coerce")
        if not (numbers >= 0).all() or (numbers % 1).any():
            raise UserError(f"{path}: a {name} is no whole number: give the cells.csv that a comparison has written")
    for name in table if len(table) else ():  # a column without values has no kind
        if (name in (*NAMES, "val_map_at_r", *COSTS) or _is_recall(name)) and not is_numeric_dtype(table[name]):
            raise UserError(f"{path}: a {name} is no number: give the cells.csv that a comparison has written")
    return table


def _with_families(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, each with its family and what it varies, which older files do not have."""
    family = rows["family"].fillna(rows["method"]) if "family" in rows else rows["method"]
    varied = rows["varied"].fillna("") if "varied" in rows else ""
    return rows.assign(family=family, varied=varied)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_recall(column: str) -> bool:
    """Whether it is recall_at_K."""
    return re.fullmatch(r"recall_at_\d+", column) is not None


def metric_name(column: str) -> str:
    """recall_at_1 -> Recall@1, map_at_r -> MAP@R."""
    return NAMES.get(column, column.replace("recall_at_", "Recall@"))


def _mean(values: Values) -> tuple[float, float, float, int]:
    """Mean, both ends of its 95% t interval, and the number of values."""
    count = len(values)
    if count == 0:
        return math.nan, math.nan, math.nan, 0
    mean = float(values.mean())
    if count == 1:
        return mean, math.nan, math.nan, 1
    half = float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count))
    return mean, mean - half, mean + half, count
