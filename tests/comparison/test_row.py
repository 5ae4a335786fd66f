"""Rows and their file."""

from pathlib import Path

import pandas as pd
import pytest

from proxygml.comparison.row import Row, read_rows, write_rows
from proxygml.errors import UserError
from tests.helpers import comparisons


def test_names_of_rows_are_text_and_their_numbers_are_numbers(finished: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(finished / "cells.csv", dtype=str, keep_default_na=False).assign(data="2010")
    rows["method"] = rows["method"].replace("N-pair", "NA")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    read = read_rows([tmp_path / "rows.csv"])
    assert {row.data for row in read} == {"2010"}
    assert {row.method for row in read} == {"ProxyGML", "Proxy-Anchor", "NA"}
    for change, message in (
        ({"seed": "first"}, "a seed is no whole number"),
        ({"trial": "0.5"}, "a trial is no whole number"),
        ({"settings": "epochs=3"}, "a settings is no JSON object of settings"),
        ({"protocol": "[" * 5000}, "a protocol is no JSON object of settings"),
        ({"val_recall_at_1": "0.1 0.2"}, "a val_recall_at_1 is no JSON list of numbers"),
        ({"val_recall_at_1": '["high"]'}, "a val_recall_at_1 is no JSON list of numbers"),
        ({"chosen": "yes"}, "a chosen is no True or False"),
        ({"method": ""}, "a method or its seed is missing"),
        ({"recall_at_1": "high"}, "a recall_at_1 is no number"),
        ({"settings": None}, "has no column 'settings'"),
        ({"val_map_at_r": None}, "has no column 'val_map_at_r'"),
    ):
        (name, value), path = next(iter(change.items())), tmp_path / "wrong.csv"
        wrong = rows.drop(columns=name) if value is None else rows.assign(**change)
        wrong.to_csv(path, index=False)
        with pytest.raises(UserError, match=message):
            read_rows([path])


def test_rows_survive_their_file(tmp_path: Path) -> None:
    settings = {"epochs": 3, "images.crop_scale": [0.8, 1.0], "images.horizontal_flip": False, "loss.name": "A; b=c"}
    trial = Row('a, "b"', 2**32 - 1, 3, True, settings=settings, tried={}, val_map_at_r=0.1 + 0.2)
    curve = Row("\N{BIRD}", 0, varied={"loss.scale": 1e-8}, val_recall_at_1=(0.5, 0.75), note="the loss\nbecame nan")
    rows = [*comparisons.rows({"A": [0.5, float("nan")]}), trial, curve]
    write_rows(tmp_path / "cells.csv", rows)
    assert read_rows([tmp_path / "cells.csv"]) == rows
    write_rows(tmp_path / "again.csv", read_rows([tmp_path / "cells.csv"]))
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "cells.csv").read_bytes()


def test_a_line_of_another_length_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "cells.csv", comparisons.rows({"A": [0.5]}))
    content = (tmp_path / "cells.csv").read_text()
    for wrong in (content.rstrip() + ",1\n", content.rpartition(",")[0]):
        (tmp_path / "wrong.csv").write_text(wrong)
        with pytest.raises(UserError, match="more or fewer values than columns, in row 1"):
            read_rows([tmp_path / "wrong.csv"])
