"""The benchmark of continued runs: its kept rows say which warm-up they had, and none is mixed with another."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.continuing import KEY, ROWS, Trial, measure, read_rows
from proxygml.data.catalog import Catalog
from proxygml.errors import UserError
from proxygml.training.recipe import Recipe


def test_kept_rows_are_read_and_written_alike_and_continued_ones_have_a_warm_up() -> None:
    rows = read_rows(ROWS)
    assert rows["warmup_epochs"].notna().equals(rows["start"] == "continued")
    assert rows.to_csv(index=False) == ROWS.read_text()


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
