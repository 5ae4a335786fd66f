"""The page of a comparison: tables, figures, and nothing to fetch."""

from dataclasses import replace

import numpy as np
import pandas as pd

from proxygml.comparison.report import write_comparison
from proxygml.comparison.tables import Summary
from tests.helpers import comparisons
from tests.helpers.pages import Page


def test_comparison_page_holds_tables_and_figures(tmp_path):
    table = comparisons.rows({"ours <1>": [0.5, 0.6], "theirs": [0.6, 0.65], "wild": [np.nan, np.nan]})
    curves = [(0.1, 0.2), (0.3, 0.4), (0.1, 0.5), (0.2, 0.3), (), ()]
    table = [replace(row, val_recall_at_1=curve) for row, curve in zip(table, curves, strict=True)]
    write_comparison(tmp_path, "birds & co", Summary(table))
    page = Page(tmp_path / "comparison.html")
    assert page.found["h1"] == ["birds & co"]
    assert page.found["h2"] == ["Side by side", "Figures", "Difference from ours <1>", "Costs and settings"]
    assert not page.fetched
    assert len(page.pictures) == 2
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"methods", "convergence"}
    assert "55.0 (0.0 \N{EN DASH} 100.0)" in page.found["td"]
    assert "wild, seeds 0 (diverged), 1 (diverged)" in (tmp_path / "table.md").read_text()
    assert pd.read_csv(tmp_path / "table.csv")["n"].tolist() == [2] * 10 + [0] * 5


def test_comparison_without_a_figure_is_a_page_all_the_same(tmp_path):
    write_comparison(tmp_path, "birds", Summary(comparisons.rows({"wild": [np.nan]})))
    assert not Page(tmp_path / "comparison.html").pictures
