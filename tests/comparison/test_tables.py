"""The table of a comparison: means, intervals and tests against plain computations, and what is missing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from proxygml.comparison.row import Row, read_rows, write_rows
from proxygml.comparison.tables import Summary
from proxygml.errors import UserError
from tests.helpers.comparisons import rows

THREE = {"A": [0.50, 0.52, 0.54], "B": [0.53, 0.54, 0.58], "C": [0.50, 0.52, 0.54]}


def test_means_and_intervals() -> None:
    """Student's t with two degrees of freedom: 4.3027 standard errors at each side."""
    mean = Summary(rows(THREE)).mean("A", "recall_at_2")
    half = 4.302653 * 2 / np.sqrt(3)
    assert (mean.value, mean.low, mean.high) == pytest.approx((52, 52 - half, 52 + half), rel=1e-6)
    assert mean.count == 3


def test_intervals_of_figures_end_at_0_and_100_and_those_of_differences_do_not() -> None:
    summary = Summary(rows({"B": [0.90, 0.99], "A": [0.02, 0.10]}))
    low, high = summary.mean("A", "recall_at_2"), summary.mean("B", "recall_at_2")
    assert (low.low, high.high) == (0, 100)
    assert str(high) == "94.5 (37.3 \N{EN DASH} 100.0)"
    assert summary.difference("A", "recall_at_2").high < 0


def test_paired_differences() -> None:
    """3, 2 and 4 points: a mean of 3 with a standard error of 1 / sqrt(3), so t is 5.196 and p 0.0351."""
    summary = Summary(rows(THREE))
    gap = summary.difference("B", "recall_at_2")
    assert (gap.value, gap.p) == pytest.approx((3, 0.035099), rel=1e-4)
    assert gap.high - gap.value == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    same = summary.difference("C", "recall_at_2")
    assert same.value == 0
    assert np.isnan(same.p)
    assert str(same).startswith("+0.0")


def test_pairs_are_the_seeds_that_both_have() -> None:
    summary = Summary(rows({"A": [0.5, np.nan, 0.6], "B": [0.6, 0.1, 0.7]}))
    gap = summary.difference("B", "recall_at_2")
    assert (gap.count, gap.value) == (2, pytest.approx(10))
    assert summary.missing() == ["A, seed 1 (diverged)"]


def test_one_seed_has_no_interval_and_no_test() -> None:
    summary = Summary(rows({"A": [0.5], "B": [0.6]}))
    assert str(summary.mean("A", "recall_at_2")) == "50.0"
    assert str(summary.difference("B", "recall_at_2")) == "+10.0"


def test_missing_cells_are_named() -> None:
    summary = Summary(rows({"A": [0.5, np.nan]}), [("A", 0), ("A", 1), ("A", 2), ("B", 0)])
    assert summary.missing() == ["A, seeds 1 (diverged), 2", "B, seed 0"]
    assert "Missing: A, seeds 1 (diverged), 2; B, seed 0." in summary.tables()[0].note
    assert summary.tables()[0].rows[1][1] == "0"


def test_figures_come_in_the_order_of_k() -> None:
    summary = Summary(rows(THREE))
    assert summary.tables()[0].head[2:] == ["Recall@2", "Recall@10", "MAP@R", "R-precision", "NMI"]
    long = summary.table()
    assert len(long) == 3 * 5
    assert long.loc[(long["method"] == "B") & (long["figure"] == "MAP@R"), "difference"].item() == pytest.approx(1.5)


def test_rows_survive_their_file(tmp_path: Path) -> None:
    table = rows(THREE)
    write_rows(tmp_path / "cells.csv", table)
    again = Summary(read_rows([tmp_path / "cells.csv"]))
    assert [part.markdown() for part in again.tables()] == [part.markdown() for part in Summary(table).tables()]
    write_rows(tmp_path / "a.csv", [row for row in table if row.method == "A"])
    write_rows(tmp_path / "b.csv", [row for row in table if row.method != "A"])
    both = Summary(read_rows([tmp_path / "a.csv", tmp_path / "b.csv"]))
    pd.testing.assert_frame_equal(both.table(), again.table())


def test_rows_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    table = rows(THREE)
    with pytest.raises(UserError, match="different protocol, 'epochs=3' and 'epochs=4'"):
        Summary([*table, *changed(table, protocol={"epochs": 4})])
    with pytest.raises(UserError, match="A, seed 0, comes twice"):
        Summary([*table, *table])
    with pytest.raises(UserError, match="no cell of the comparison has finished"):
        Summary([])
    with pytest.raises(UserError, match=r"nowhere\.csv cannot be read"):
        read_rows([tmp_path / "nowhere.csv"])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="has no column 'method': give the cells.csv"):
        read_rows([tmp_path / "other.csv"])


def changed(table: list[Row], **values: Any) -> list[Row]:
    return [replace(row, **values) for row in table]


def swept() -> list[Row]:
    """Two families over N and r, and a method of its own; B lacks the cells of N 4 at r 1."""
    table: list[Row] = []
    for family, numbers in (("A", (4, 1)), ("B", (1,))):
        for number in numbers:
            for ratio in (0.05, 1.0):
                varied = {"loss.proxies_per_class": number, "loss.neighbor_ratio": ratio}
                cells = rows({f"{family} proxies_per_class={number} neighbor_ratio={ratio}": [0.5, 0.6]})
                table += changed(cells, family=family, varied=varied)
    return [*table, *rows({"C": [0.5, 0.5]})]


def test_sweeps_have_a_line_for_each_family_and_combination_of_the_other_keys(tmp_path: Path) -> None:
    write_rows(tmp_path / "cells.csv", swept())
    numbers, ratios = Summary(read_rows([tmp_path / "cells.csv"])).sweeps()
    assert (numbers.key, ratios.key) == ("loss.proxies_per_class", "loss.neighbor_ratio")
    assert numbers.lines == {
        "A, neighbor_ratio 0.05": {1: "A proxies_per_class=1 neighbor_ratio=0.05"}
        | {4: "A proxies_per_class=4 neighbor_ratio=0.05"},
        "A, neighbor_ratio 1.0": {1: "A proxies_per_class=1 neighbor_ratio=1.0"}
        | {4: "A proxies_per_class=4 neighbor_ratio=1.0"},
        "B, neighbor_ratio 0.05": {1: "B proxies_per_class=1 neighbor_ratio=0.05"},
        "B, neighbor_ratio 1.0": {1: "B proxies_per_class=1 neighbor_ratio=1.0"},
    }
    assert list(ratios.lines["B, proxies_per_class 1"]) == [0.05, 1.0]


def test_a_line_without_any_figure_is_left_out() -> None:
    one, two = changed(rows({"W N=1": [np.nan], "W N=2": [np.nan]}), family="W")
    wild = [replace(row, varied={"loss.proxies_per_class": n}) for n, row in ((1, one), (2, two))]
    (sweep, _) = Summary([*swept(), *wild]).sweeps()
    assert {name.partition(",")[0] for name in sweep.lines} == {"A", "B"}
    assert Summary(wild).sweeps() == []


def test_rows_of_one_catalog_belong_together_whatever_it_is_called() -> None:
    table = changed(rows(THREE), data_fingerprint="abc")
    moved = [*table[:3], *changed(table[3:], data="moved")]
    assert len(Summary(moved).methods) == 3
    with pytest.raises(UserError, match="different data_fingerprint, 'abc' and 'def'"):
        Summary([*table[:3], *changed(table[3:], data_fingerprint="def")])
    with pytest.raises(UserError, match="different data, 'birds' and 'moved'"):
        Summary([*moved[:6], *changed(moved[6:], data_fingerprint=None)])


def test_methods_whose_trials_are_not_run_yet_are_not_called_given() -> None:
    table = rows({"A": [0.5], "B": [0.6]})
    trial = changed(rows({"A": [0.5]}), trial=0, chosen=True, val_map_at_r=0.3)
    note = Summary([*table, *trial], [("A", 0), ("B", 0), ("C", 0)]).tables()[-1].note
    assert note.endswith("Tried: A 1. Taken as given: B.")


def test_small_p_values_are_kept() -> None:
    table = Summary(rows({"A": [0.5, 0.5001, 0.5], "B": [0.7, 0.7, 0.7001]})).table()
    assert 0 < table["p"].min() < 1e-5


def test_what_is_no_number_or_has_one_value_is_no_sweep() -> None:
    table = rows({"A": [0.5], "B": [0.6]})
    assert Summary(table).sweeps() == []
    masks = [replace(row, varied={"loss.positive_mask": mask}) for row, mask in zip(table, (True, False), strict=True)]
    assert Summary(masks).sweeps() == []
    assert Summary(changed(table, varied={"epochs": 3})).sweeps() == []
