"""The tables that training writes into a run folder: metrics.csv and proxies.csv."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from proxygml.arrays import Rows
from proxygml.errors import RunError
from proxygml.files import atomic_write, check_size

LARGEST_TABLE = 2**30
"""Bytes of metrics.csv or proxies.csv: the latter has a row for each proxy."""


def write_history(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write metrics.csv, a row per epoch; epoch 0 is the start, where it was judged: it has validation figures only."""
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[-1]), restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_history(path: Path, needed: Sequence[str] = ()) -> pd.DataFrame:
    """metrics.csv, a row per epoch; an empty table where nothing was trained or judged.

    The start, where it was judged, is epoch 0: it has validation figures, and NaN elsewhere.

    Args:
        path: the file.
        needed: columns that it must have where it has rows, beside those of every run.

    Raises:
        RunError: it cannot be read, lacks a column, or holds something that is no number.
    """
    if not path.exists():
        return pd.DataFrame()
    table = _numbers(path, ("epoch", *needed), start=True)
    for name in ("loss", "seconds") if (table["epoch"] != 0).any() else ():
        _check_column(path, table, name)
    return table


def trained_epochs(history: pd.DataFrame) -> pd.DataFrame:
    """The rows of `read_history` without that of the start."""
    return history if history.empty else history[history["epoch"] > 0]


def read_kept_counts(path: Path, per_class: int) -> Rows | None:
    """proxies.csv: how often each proxy was kept, (C, N) int64; None where there is no such file.

    Args:
        path: the file.
        per_class: N, the proxies of a class.

    Raises:
        RunError: it cannot be read, or does not hold N whole numbers for each class.
    """
    if not path.exists():
        return None
    kept = _numbers(path, ("kept",), only=("kept",))["kept"].to_numpy()
    if kept.dtype.kind not in "iu" or len(kept) % per_class or (kept < 0).any():
        raise RunError(f"{path} does not count how often each of {per_class} proxies a class was kept: {_ADVICE}")
    counts: Rows = kept.astype(np.int64).reshape(-1, per_class)
    return counts


_ADVICE = "put the file back as training wrote it, or train the run again"


def _check_column(path: Path, table: pd.DataFrame, name: str) -> None:
    if name not in table:
        raise RunError(f"{path} has no column {name!r}: {_ADVICE}")


def _numbers(path: Path, needed: Sequence[str], only: Sequence[str] | None = None, start: bool = False) -> pd.DataFrame:
    """A table of finite numbers; the row of epoch 0, where `start` allows one, may leave some out."""
    check_size(path, LARGEST_TABLE, RunError)
    try:
        table = pd.read_csv(path, usecols=None if only is None else lambda name: name in only)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise RunError(f"{path} cannot be read ({str(error).strip()}): {_ADVICE}") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise RunError(f"{path} has a row with more values than columns: {_ADVICE}")
    for name in needed:
        _check_column(path, table, name)
    for name in table:
        numbers = table[name].dtype.kind in "iuf"
        values = table[name][table["epoch"] != 0] if numbers and start and name not in needed else table[name]
        if not numbers or not np.isfinite(values).all():
            raise RunError(f"{path}: the column {name!r} holds something that is no number: {_ADVICE}")
    return table
