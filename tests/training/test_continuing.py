"""The benchmark of continued runs: its kept rows say which warm-up they had, and what is unlike has rows apart."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.continuing import KEY, ROWS, Row, Trial, measure, read_rows, table
from proxygml.data.catalog import Catalog
from proxygml.errors import UserError
from proxygml.training.recipe import Recipe


def test_kept_rows_are_read_and_written_alike_and_continued_ones_have_a_warm_up() -> None:
    rows = read_rows(ROWS)
    assert rows["warmup_epochs"].notna().equals(rows["start"] == "continued")
    assert rows.to_csv(index=False) == ROWS.read_text()


def test_the_notebook_has_the_table_that_the_kept_rows_give() -> None:
    notebook = Path(__file__).parents[2] / "docs" / "notebook.md"
    assert table(read_rows(ROWS)) in notebook.read_text(encoding="utf-8")


def test_runs_of_other_lengths_have_lines_of_their_own_and_trials_that_were_stopped_have_none() -> None:
    def trial(seed: int, epochs: int, continued: float, same: float, whole: float) -> list[Row]:
        lengths = [("continued", epochs, continued), ("anew", epochs, same), ("anew", epochs + 2, whole)]
        return [Row("birds", seed, start, n, 10 * n, 20, None, value, value / 2) for start, n, value in lengths]

    whole = trial(0, 2, 0.5, 0.4, 0.6) + trial(1, 2, 0.7, 0.4, 0.6) + trial(0, 5, 0.9, 0.8, 0.7)
    two, five = "| birds | 2 | 2 | 60.0 | +20.0 ± 127.1 | +0.0 ± 127.1 |", "| birds | 5 | 1 | 90.0 | +10.0 | +20.0 |"
    for stopped in ([], trial(2, 2, 0.1, 0.1, 0.1)[:2], trial(2, 2, 0.1, 0.1, 0.1)[:1]):
        lines = table(pd.DataFrame(whole + stopped)).splitlines()[2:]
        assert [line.startswith(start) for line, start in zip(lines, (two, five), strict=True)] == [True, True]
    assert len(table(read_rows(Path("none.csv"))).splitlines()) == 2


def test_continued_runs_of_another_warm_up_are_refused(
    small_recipe: Recipe, small_catalog: Path, tmp_path: Path
) -> None:
    rows, catalog = tmp_path / "rows.csv", tmp_path / "images.parquet"
    Catalog.read(small_catalog).write(catalog)  # another is written beside it

    def trial(data: str, warmup_epochs: int) -> Trial:
        return Trial(data, catalog, small_recipe, tmp_path, 0, warmup_epochs)

    measure(trial("images", 0), [1], rows)
    found = rows.read_text()
    measure(trial("images", 0), [1], rows)
    assert rows.read_text() == found
    with pytest.raises(UserError, match="have warmup_epochs 0, but --warmup_epochs is 1: give this trial another"):
        measure(trial("images", 1), [2], rows)
    # Where a run was trained, and the command was stopped before it kept the row:
    table = pd.read_csv(rows)
    table[table["start"] != "continued"].to_csv(rows, index=False)
    with pytest.raises(UserError, match="the run .*images-continued-1-0: continued runs"):
        measure(trial("images", 1), [1], rows)
    assert set(read_rows(rows)["start"]) == {"half", "anew"}
    assert not read_rows(rows).duplicated(KEY).any()
