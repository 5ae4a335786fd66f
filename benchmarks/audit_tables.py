"""The tables of `python -m benchmarks.audit`: how well each method finds wrong labels, how far ahead ours is."""

from __future__ import annotations

import math

import pandas as pd
from scipy import stats

from benchmarks.measure import console, table

OURS = "ours"
SETTING = ["noise", "share"]


def print_tables(rows: pd.DataFrame) -> None:
    """For each data set, average precision and precision; and the difference of ours to each, with its interval."""
    for data in dict.fromkeys(rows["data"]):
        here = rows[rows["data"] == data]
        for figure, words in (
            ("average_precision", "average precision, per cent"),
            ("precision", "precision among as many labels as are wrong, per cent"),
        ):
            console.print(_figures(here, str(data), figure, words))
        console.print(_shares(here[here["method"] == OURS], str(data)))


def _figures(rows: pd.DataFrame, data: str, figure: str, words: str) -> object:
    settings = list(rows.groupby(SETTING, sort=False).groups)
    settings.sort(key=lambda setting: (setting[0] != "random", setting[1]))
    heads = [f"{kind} {100 * share:.0f}%" for kind, share in settings]
    found = table(f"{data}: {words}", ["method", *heads, "mean", "ours is ahead by", "settings"])
    means = rows.groupby(["method", *SETTING])[figure].mean()
    for method in dict.fromkeys(rows["method"]):
        values = [100 * means[(method, *setting)] for setting in settings]
        ahead = ["", ""] if method == OURS else _ahead(rows, str(method), figure)
        found.add_row(str(method), *(f"{value:.1f}" for value in values), f"{sum(values) / len(values):.1f}", *ahead)
    return found


def _ahead(rows: pd.DataFrame, method: str, figure: str) -> list[str]:
    """The mean difference over the settings with its 95% interval, and in how many settings ours is ahead.

    The seeds of a setting are its repetitions: the interval is by Student's t, with their pooled variances.
    """
    wide = rows.pivot_table(index=[*SETTING, "seed"], columns="method", values=figure)
    difference = 100 * (wide[OURS] - wide[method])
    groups = difference.groupby(level=SETTING)
    means, counts = groups.mean(), groups.count()
    freedom = int((counts - 1).sum())
    if not freedom:
        return [f"{means.mean():+.1f}", f"{(means > 0).sum()} of {len(means)}"]
    error = math.sqrt(float((groups.var(ddof=1).fillna(0) / counts).sum())) / len(means)
    half = float(stats.t.ppf(0.975, freedom)) * error
    return [f"{means.mean():+.1f} ({means.mean() - half:+.1f} to {means.mean() + half:+.1f})", _won(means)]


def _won(means: pd.Series) -> str:
    return f"{int((means > 0).sum())} of {len(means)}"


def _shares(rows: pd.DataFrame, data: str) -> object:
    """The share of wrong labels that ours says, beside the one that was made."""
    found = table(f"{data}: share of wrong labels, per cent", ["noise", "made", "said, mean", "intervals that hold it"])
    for (kind, share), group in rows.groupby(SETTING, sort=False):
        inside = int(((group["low"] <= share) & (share <= group["high"])).sum())
        said = 100 * group["estimated_share"].mean()
        found.add_row(str(kind), f"{100 * share:.0f}", f"{said:.1f}", f"{inside} of {len(group)}")
    return found
