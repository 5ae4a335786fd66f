"""The rows of a comparison: the result of each cell and trial, and the CSV file that keeps them.

Settings and lists are JSON in their column. The file is enough to draw every table and figure again.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import ConfigDict

from proxygml.comparison.settings import Settings
from proxygml.errors import UserError
from proxygml.files import atomic_write, check_size

LARGEST_TABLE = 2**28
"""Bytes of a cells.csv."""

ADVICE = "give the cells.csv that a comparison has written"
RECALL = re.compile(r"recall_at_([1-9]\d{0,8})")
MOST_SHARE = 1 + 1e-6  # rounding may lift a mean a little above 1
METRICS = ("map_at_r", "r_precision", "nmi")  # those of a cell beside its Recall@K


class Key(NamedTuple):
    """Which cell: a method and a seed; of a trial, its number too."""

    method: str
    seed: int
    trial: int | None = None

    def __str__(self) -> str:
        return f"{self.method}, " + (f"seed {self.seed}" if self.trial is None else f"trial {self.trial}")


@dataclass(frozen=True)
class Cost:
    """What it took to train a cell."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    seconds_per_epoch: float  # the median over its epochs
    peak_memory_mib: float | None  # of the process that trained it; workers that decode images come on top
    gpu_memory_mib: float | None  # the peak of what tensors took on the GPU
    device: str
    loss_parameters: int  # numbers that the loss learns: proxies, class weights


@dataclass(frozen=True)
class Row:
    """A finished cell or trial. What does not apply, or is not known, is None."""

    method: str
    seed: int
    trial: int | None = None  # its number; None for a cell
    chosen: bool | None = None  # of a trial: whether the cells were trained with its settings
    family: str = ""  # the method's name in the comparison's file
    varied: Settings = field(default_factory=dict)  # what sets the method apart from its family
    data: str = ""  # the catalog's name
    data_fingerprint: str | None = None  # of the catalog's content
    protocol: Settings = field(default_factory=dict)  # what all methods share, where it is not a recipe's default
    settings: Settings | None = None  # what its recipe has beside that
    tried: Settings | None = None  # of a trial: the values drawn for it; none for the method as given
    val_map_at_r: float | None = None  # of a trial: MAP@R on validation classes, in 0..1
    val_recall_at_1: tuple[float, ...] = ()  # by epoch, in 0..1, where there were validation classes
    note: str | None = None  # why there are no figures
    cost: Cost | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)  # of a cell: recall_at_K and METRICS, in 0..1

    @property
    def key(self) -> Key:
        return Key(self.method, self.seed, self.trial)


COSTS = tuple(column.name for column in fields(Cost))
COLUMNS = (*(column.name for column in fields(Row) if column.name not in ("cost", "metrics")), *COSTS)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV, in one step."""
    names = {name for row in rows for name in row.metrics}
    recalls = sorted((name for name in names if RECALL.fullmatch(name)), key=recall_k)
    columns = [*COLUMNS, *recalls, *(name for name in METRICS if name in names)]
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _as_text(value) for name, value in _flat(row).items()} for row in rows)


def recall_k(column: str) -> int:
    """recall_at_10 -> 10"""
    return int(column.rpartition("_")[2])


def _flat(row: Row) -> dict[str, Any]:
    """A value for each column."""
    values = {name: getattr(row, name) for name in COLUMNS if name not in COSTS}
    costs = {name: getattr(row.cost, name, None) for name in COSTS}
    return values | costs | dict(row.metrics)


def _as_text(value: object) -> str:
    if value is None or value == ():
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, tuple)) else str(value)


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """The rows of CSV files that a comparison has written, one file after the other.

    Raises:
        UserError: a file is missing or holds no such rows.
    """
    return [row for path in paths for row in _read_file(path)]


def _read_file(path: Path) -> list[Row]:
    check_size(path, LARGEST_TABLE)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns, lines = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): {ADVICE}") from error
    absent = [name for name in COLUMNS if name not in columns]
    if absent:
        raise UserError(f"{path} has no column {absent[0]!r}: {ADVICE}")
    if len(set(columns)) < len(columns):
        raise UserError(f"{path} has two columns of the same name: {ADVICE}")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line))
        except ValueError as error:
            raise UserError(f"{path}: {error}, in row {number}: {ADVICE}") from error
    return rows


def _row(line: Mapping[str | None, Any]) -> Row:
    """A row from the texts of a line.

    Raises:
        ValueError: a text is no value of its column.
    """
    if None in line or None in line.values():
        raise ValueError("there are more or fewer values than columns")
    texts: dict[str, str] = {str(name): text for name, text in line.items()}
    values = {name: _parsed(name, texts[name], _READERS.get(name, str)) for name in COLUMNS}
    costs = {name: values.pop(name) for name in COSTS}
    values |= {name: {} for name in ("varied", "protocol") if values[name] is None}
    values |= {"val_recall_at_1": values["val_recall_at_1"] or (), "cost": _cost(costs)}
    names = [name for name in texts if RECALL.fullmatch(name) or name in METRICS]
    metrics = {name: _parsed(name, texts[name], _share) for name in names}
    row = Row(**values, metrics={name: value for name, value in metrics.items() if value is not None})
    if row.seed is None or not row.method:
        raise ValueError("a method or its seed is missing")
    return row


def _cost(values: Mapping[str, Any]) -> Cost | None:
    if not values["device"]:
        return None
    for name in ("seconds_per_epoch", "loss_parameters"):
        if values[name] is None:
            raise ValueError(f"a {name} is missing beside the device")
    return Cost(**values)


def _parsed(name: str, text: str, read: Callable[[str], Any]) -> Any:
    if not text:
        return "" if name in ("method", "data", "family") else None
    try:
        return read(text)
    except ValueError as error:
        kind = "whole number" if read is _whole else _KINDS.get(read, "number")
        raise ValueError(f"a {name} is no {kind} ({text[:60]!r})") from error


def _whole(text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text):
        raise ValueError(text)
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= MOST_SHARE:
        raise ValueError(text)
    return value


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(text)
    return text == "True"


def _settings(text: str) -> Settings:
    value = _json(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


def _numbers(text: str) -> tuple[float, ...]:
    value = _json(text)
    if not isinstance(value, list) or not all(type(one) in (int, float) and 0 <= one <= MOST_SHARE for one in value):
        raise ValueError(text)
    return tuple(value)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(text) from error


_KINDS: dict[Callable[[str], Any], str] = {
    _truth: "True or False",
    _share: "number from 0 to 1",
    _settings: "JSON object of settings",
    _numbers: "JSON list of numbers from 0 to 1",
}
_READERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("seed", "trial", "loss_parameters"), _whole),
    "val_map_at_r": _share,
    **dict.fromkeys(("seconds_per_epoch", "peak_memory_mib", "gpu_memory_mib"), _number),
    **dict.fromkeys(("varied", "protocol", "settings", "tried"), _settings),
    "chosen": _truth,
    "val_recall_at_1": _numbers,
}
