"""The tables of a comparison: means over seeds, their intervals, and a paired test against the first method.

They are made of rows alone; nothing here looks at a run folder.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from proxygml.comparison.row import RECALL, Cost, Row, recall_k
from proxygml.comparison.settings import described, short_key
from proxygml.errors import UserError

NAMES = {"map_at_r": "MAP@R", "r_precision": "R-precision", "nmi": "NMI"}
IN_PER_CENT = ("mean", "low", "high", "difference", "difference_low", "difference_high")  # columns of the table
DASH = "\N{EN DASH}"

Sample = npt.NDArray[np.float64]  # (n,), one value a seed


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
    """The figures of a comparison, by method.

    Args:
        rows: of one protocol and data set.
        planned: the methods and seeds that there should be; those of the rows themselves if left out.

    Raises:
        UserError: no rows, rows of different protocols, or two of the same method and seed.
    """

    def __init__(self, rows: Sequence[Row], planned: Sequence[tuple[str, int]] = ()) -> None:
        if not rows:
            raise UserError("no cell of the comparison has finished: there is nothing to make a table of")
        _check_same_origin(rows)
        self.data, self.protocol = rows[0].data, rows[0].protocol
        self.cells = [row for row in rows if row.trial is None]
        self.trials = [row for row in rows if row.trial is not None]
        self.methods = list(dict.fromkeys([*(name for name, _ in planned), *(row.method for row in rows)]))
        seeds = sorted({row.seed for row in rows})
        self.planned = list(planned) or [(method, seed) for method in self.methods for seed in seeds]
        names = {name for row in rows for name in row.metrics if RECALL.fullmatch(name)}
        self.metrics = [*sorted(names, key=recall_k), *NAMES]

    def cells_of(self, method: str) -> list[Row]:
        """The cells of a method."""
        return [row for row in self.cells if row.method == method]

    def values(self, method: str, metric: str) -> dict[int, float]:
        """A figure of a method's cells by seed, in 0..1, without those that have none."""
        return {row.seed: row.metrics[metric] for row in self.cells_of(method) if metric in row.metrics}

    def curves(self, method: str) -> Iterator[list[float]]:
        """Recall@1 on validation classes by epoch, in per cent, for each of a method's cells that has them."""
        for row in self.cells_of(method):
            if row.val_recall_at_1:
                yield [100 * value for value in row.val_recall_at_1]

    def mean(self, method: str, metric: str) -> Mean:
        """The mean of a figure over a method's seeds, in per cent; its interval ends at 0 and 100."""
        value, low, high, count = _mean(100 * np.array(list(self.values(method, metric).values())))
        return Mean(value, float(np.clip(low, 0, 100)), float(np.clip(high, 0, 100)), count)

    def difference(self, method: str, metric: str) -> Difference:
        """How far a method lies above the first one, in points, over the seeds that both have."""
        own, first = self.values(method, metric), self.values(self.methods[0], metric)
        gaps = 100 * np.array([value - first[seed] for seed, value in own.items() if seed in first])
        # Without any spread, but for rounding, there is nothing to test by: both methods may not depend on the seed.
        varied = len(gaps) > 1 and np.ptp(gaps) > 1e-9
        return Difference(*_mean(gaps), p=float(stats.ttest_1samp(gaps, 0).pvalue) if varied else math.nan)

    def missing(self) -> list[str]:
        """The cells that are planned and have no figures, a text for each method, and which of them diverged."""
        notes = {(row.method, row.seed): row.note for row in self.cells}
        found = []
        for method in self.methods:
            planned = [seed for name, seed in self.planned if name == method]
            seeds = [
                f"{seed} (diverged)" if (method, seed) in notes else str(seed)
                for seed in planned
                if notes.get((method, seed), "not finished") is not None
            ]
            if seeds:
                found.append(f"{method}, seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}")
        return found

    def sweeps(self) -> list[Sweep]:
        """Every key that is varied in numbers; a line for each family and each combination of its other varied keys.

        Methods of which no cell has figures are left out.
        """
        found: dict[str, dict[str, dict[float, str]]] = {}
        first_cells = {row.method: row for row in reversed(self.cells)}
        for method in dict.fromkeys(row.method for row in self.cells):
            if not self.mean(method, "map_at_r").count:
                continue
            varied = first_cells[method].varied
            for key, value in varied.items():
                if type(value) in (int, float) and math.isfinite(value):
                    others = [f"{short_key(name)} {other}" for name, other in varied.items() if name != key]
                    name = ", ".join([first_cells[method].family or method, *others])
                    found.setdefault(key, {}).setdefault(name, {})[float(value)] = method
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
        tables = [_figures(self), _differences(self), _costs(self)]
        return [*tables, _tuning(self)] if self.trials else tables


def _figures(summary: Summary) -> Table:
    missing = summary.missing()
    note = f"Data: {summary.data}. All methods share: {described(summary.protocol) or 'the defaults of a recipe'}. "
    note += "In per cent: the mean over seeds and its 95% t interval. "
    note += "Each run looked at the test classes once, when its settings and its epoch stood. "
    if summary.trials:
        note += "Hyper-parameters were chosen on validation classes; see the trials below. "
    if missing:
        note += f"Missing: {'; '.join(missing)}."
    head = ["method", "seeds", *map(metric_name, summary.metrics)]
    rows = []
    for method in summary.methods:
        means = [summary.mean(method, metric) for metric in summary.metrics]
        rows.append([method, str(means[0].count), *map(str, means)])
    return Table("Figures", note.strip(), head, rows)


def _differences(summary: Summary) -> Table:
    note = "In points: the mean over the seeds that both have, its 95% t interval, and the p value of the paired t "
    note += "test, two-sided and not corrected for the number of methods."
    rows = [
        [method, str(summary.difference(method, summary.metrics[0]).count)]
        + [str(summary.difference(method, metric)) for metric in summary.metrics]
        for method in summary.methods[1:]
    ]
    head = ["method", "pairs", *map(metric_name, summary.metrics)]
    return Table(f"Difference from {summary.methods[0]}", note, head, rows)


def _costs(summary: Summary) -> Table:
    note = "Medians over the cells. Memory is that of the training process at its peak, without the workers that "
    note += "decode images. Settings are those that differ from what all share."
    head = ["method", "seconds per epoch", "peak memory, MiB", "GPU memory, MiB", "numbers learned by the loss"]
    rows = []
    for method in summary.methods:
        cells = summary.cells_of(method)
        costs = [row.cost for row in cells if row.cost is not None]
        medians = [_median(costs, of) for of in _COSTS]
        devices = ", ".join(sorted({cost.device for cost in costs}))
        settings = next((described(row.settings) for row in cells if row.settings is not None), "")
        rows.append([method, *medians, devices or DASH, settings or DASH])
    return Table("Costs and settings", note, [*head, "device", "settings"], rows)


_COSTS: tuple[Callable[[Cost], float | None], ...] = (
    lambda cost: cost.seconds_per_epoch,
    lambda cost: cost.peak_memory_mib,
    lambda cost: cost.gpu_memory_mib,
    lambda cost: cost.loss_parameters,
)


def _median(costs: Iterable[Cost], of: Callable[[Cost], float | None]) -> str:
    values = [value for value in map(of, costs) if value is not None]
    if not values:
        return DASH
    value = float(median(values))
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def _tuning(summary: Summary) -> Table:
    note = "Every setting that was tried, judged by MAP@R on validation classes. "
    tried = [row.method for row in summary.trials]
    counts = {method: tried.count(method) for method in dict.fromkeys(tried)}
    note += "Tried: " + ", ".join(f"{method} {count}" for method, count in counts.items()) + ". "
    trained = {row.method for row in summary.cells}
    as_given = [method for method in summary.methods if method in trained and method not in counts]
    note += f"Taken as given: {', '.join(as_given)}." if as_given else ""
    rows = []
    for row in summary.trials:
        score = "diverged" if row.val_map_at_r is None else f"{100 * row.val_map_at_r:.1f}"
        rows.append([row.method, described(row.tried or {}) or "as given", score, "chosen" if row.chosen else ""])
    return Table("Trials", note.strip(), ["method", "settings", "MAP@R on validation classes", ""], rows)


def _check_same_origin(rows: Sequence[Row]) -> None:
    """Raise UserError for rows of different data or protocols, and for two rows of one cell."""
    prints = [row.data_fingerprint for row in rows]
    # A catalog is known by its content; where a row lacks the fingerprint, by its name alone.
    names = [row.data for row in rows] if None in prints else []
    for what, values in (
        ("data", names),
        ("data_fingerprint", [text for text in prints if text is not None]),
        ("protocol", [described(row.protocol) for row in rows]),
    ):
        found = list(dict.fromkeys(values))
        if len(found) > 1:
            raise UserError(f"the rows are of different {what}, {found[0]!r} and {found[1]!r}: one table each")
    seen = set()
    for row in rows:
        if row.key in seen:
            raise UserError(f"{row.method}, seed {row.seed}, comes twice: give each row once")
        seen.add(row.key)


def metric_name(column: str) -> str:
    """recall_at_1 -> Recall@1, map_at_r -> MAP@R."""
    return NAMES.get(column, column.replace("recall_at_", "Recall@"))


def _mean(values: Sample) -> tuple[float, float, float, int]:
    """Mean, both ends of its 95% t interval, and the number of values."""
    count = len(values)
    if count == 0:
        return math.nan, math.nan, math.nan, 0
    mean = float(values.mean())
    if count == 1:
        return mean, math.nan, math.nan, 1
    error = float(stats.sem(values))
    low, high = stats.t.interval(0.95, count - 1, mean, error) if error else (mean, mean)
    return mean, float(low), float(high), count
