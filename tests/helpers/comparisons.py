"""Small comparisons: their recipes, the commands that run them, and rows that nobody has run."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from proxygml.cli.main import main
from proxygml.comparison.row import Cost, Row, read_rows

TIMES = ["seconds_per_epoch", "peak_memory_mib"]
METHODS = {
    "ProxyGML": {"loss": {"proxies_per_class": 2, "neighbor_ratio": 0.5, "scale": 4.0}},
    "Proxy-Anchor": {
        "loss": {"name": "ProxyAnchorLoss", "arguments": {"alpha": 16}},
        "proxy_lr": 0.01,
        "tune": {"proxy_lr": [0.01, 0.1], "loss.arguments.alpha": [16, 32]},
    },
    "N-pair": {"loss": {"name": "NPairsLoss"}, "images_per_class": 2},
}


def write(content: dict[str, Any], path: Path) -> Path:
    """Write a comparison's YAML file."""
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def compare(recipe: Path, folder: Path, *options: object) -> pd.DataFrame:
    """Run a comparison as a person does; the rows that it leaves."""
    main(["compare", "--recipe", str(recipe), "--run", str(folder), *map(str, options)])
    return table_of(folder / "cells.csv")


def table_of(path: Path) -> pd.DataFrame:
    """Rows as a table, with columns for costs and metrics."""
    return pd.DataFrame([_flat(row) for row in read_rows([path])])


def _flat(row: Row) -> dict[str, Any]:
    values = asdict(row)
    metrics, cost = values.pop("metrics"), values.pop("cost") or {}
    return values | cost | dict(metrics)


def assert_same_cells(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """All but the times and the memory is the same."""
    pd.testing.assert_frame_equal(one.drop(columns=TIMES), other.drop(columns=TIMES), check_exact=True)


def rows(values: dict[str, Sequence[float]]) -> list[Row]:
    """Cells of the methods, one a seed; a NaN is a seed that diverged."""
    return [_cell(method, seed, value) for method, seeds in values.items() for seed, value in enumerate(seeds)]


def _cell(method: str, seed: int, value: float) -> Row:
    diverged = bool(np.isnan(value))
    names = {"recall_at_10": value, "recall_at_2": value, "map_at_r": value / 2, "r_precision": value / 2, "nmi": value}
    return Row(
        method,
        seed,
        family=method,
        data="birds",
        protocol={"epochs": 3},
        settings={"proxy_lr": 0.1},
        note="the loss became nan" if diverged else None,
        cost=Cost(2.0, 900.0, None, "CPU", 512),
        metrics={} if diverged else names,
    )
