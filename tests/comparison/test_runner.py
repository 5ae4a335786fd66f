"""A comparison as a person runs it: whole, killed and continued, grown, and with settings to choose."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from proxygml.cli.main import main
from proxygml.comparison.plan import Comparison
from proxygml.comparison.row import Key, read_rows, write_rows
from proxygml.comparison.runner import Runner
from proxygml.errors import RecipeError, RunError
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import fit
from tests.helpers.comparisons import METHODS, assert_same_cells, compare, table_of, write
from tests.helpers.launch import launched


def test_table_holds_every_cell_and_trial(finished: Path) -> None:
    whole = table_of(finished / "cells.csv")
    assert list(whole["method"]) == ["ProxyGML"] * 2 + ["Proxy-Anchor"] * 5 + ["N-pair"] * 2
    cells = whole[whole["trial"].isna()]
    assert cells[["recall_at_1", "map_at_r", "r_precision", "nmi"]].notna().all(axis=None)
    assert cells["loss_parameters"].tolist() == [12 * 2 * 16] * 2 + [12 * 16] * 2 + [0] * 2
    trials = whole[whole["trial"].notna()]
    assert trials["chosen"].astype(bool).sum() == 1
    assert trials["val_map_at_r"].idxmax() == trials["chosen"].astype(bool).idxmax()
    histories = [pd.read_csv(finished / "Proxy-Anchor" / "tune" / f"{n:02d}" / "metrics.csv") for n in range(3)]
    assert trials["val_map_at_r"].tolist() == [history["val_map_at_r"].iloc[-1] for history in histories]
    assert (finished / "comparison.html").stat().st_size > 10_000
    assert "| ProxyGML | 2 |" in (finished / "table.md").read_text()
    assert len(pd.read_csv(finished / "table.csv")) == 3 * 7


def test_killed_and_continued_comparison_gives_the_same_table(
    small_comparison: Path, finished: Path, tmp_path: Path
) -> None:
    """A real kill -9 of a real process in the middle of its trials."""
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "proxygml", "compare", "--recipe", small_comparison, "--run", folder]
    third_trial = folder / "Proxy-Anchor" / "tune" / "02" / "metrics.csv"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not third_trial.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert third_trial.exists()
    assert not (folder / "N-pair").exists(), "the comparison had finished before it was killed"
    done = (folder / "ProxyGML" / "seed-0" / "evaluation.json").stat().st_mtime_ns
    assert_same_cells(compare(small_comparison, folder), table_of(finished / "cells.csv"))
    assert (folder / "ProxyGML" / "seed-0" / "evaluation.json").stat().st_mtime_ns == done, "a finished cell ran again"


def test_a_cell_that_was_stopped_goes_on_as_is_asked_now(
    content: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    """With other workers and the catalog elsewhere; and where it has been resumed and judged by hand in between."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(Path(content["recipe"]["catalog"]).parent, tmp_path / "moved")
    for seed in (0, 1):
        (tmp_path / "run" / "ProxyGML" / f"seed-{seed}" / "cost.json").unlink()
    (tmp_path / "run" / "ProxyGML" / "seed-1" / "evaluation.json").unlink()
    moved = tmp_path / "moved" / Path(content["recipe"]["catalog"]).name
    small = write(content, tmp_path / "mine.yaml")
    for run in list((tmp_path / "run" / "ProxyGML").iterdir()):
        retrain(run)
    rows = compare(small, tmp_path / "run", "--catalog", moved, "--workers", 1)
    assert_same_cells(rows, table_of(finished / "cells.csv"))
    for run in (tmp_path / "run" / "ProxyGML").iterdir():
        recipe = Recipe.read(run / "recipe.yaml")
        assert (recipe.catalog, recipe.workers) == (str(moved), 1)


def retrain(run: Path) -> None:
    """Bring back the checkpoint that a finished cell does without."""
    recipe = Recipe.read(run / "recipe.yaml")
    fit(recipe, RunFolder(run.parent / "anew"))
    shutil.move(run.parent / "anew" / "checkpoints", run / "checkpoints")
    shutil.rmtree(run.parent / "anew")


def test_methods_that_are_left_out_are_neither_trained_nor_in_the_table(
    content: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    """Nor are their rows: all that are there are given."""
    small, rows = write(content, tmp_path / "mine.yaml"), finished / "cells.csv"
    compare(small, tmp_path / "run", "--methods", "N-pair", "ProxyGML", "--from", rows)
    found = read_rows([tmp_path / "run" / "cells.csv"])
    assert found == [row for row in read_rows([rows]) if row.method != "Proxy-Anchor"]
    with pytest.raises(RecipeError, match="there is no method 'N-pairs'; did you mean 'N-pair'"):
        Comparison.read(small).of_methods(["N-pairs"])


def test_rows_of_methods_that_are_left_out_keep_their_folder(
    content: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are all that there is of these methods; --from, which leaves them out too, could not keep them."""
    small, rows = write(content, tmp_path / "mine.yaml"), tmp_path / "run" / "cells.csv"
    compare(small, rows.parent, "--from", finished / "cells.csv")
    kept = rows.read_bytes()
    with pytest.raises(SystemExit):
        compare(small, rows.parent, "--methods", "N-pair", "--from", rows)
    message = "has a row of ProxyGML, seed 0, whose run is not there, and which would be lost: give the comparison anot"
    assert message in " ".join(capsys.readouterr().err.split())
    assert rows.read_bytes() == kept


def test_cells_are_ordinary_runs_with_the_chosen_values(
    content: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    runner = Runner(Comparison.read(write(content, tmp_path / "mine.yaml")), finished)
    comparison, store = runner.grid.comparison, runner.store
    ours, anchor, _ = comparison.methods
    recipe = comparison.recipe_of(ours, {}, 1)
    alone = RunFolder(tmp_path / "alone")
    fit(recipe, alone)
    cell = store.cell(Key(ours.name, 1)).run
    assert cell.model.read_bytes() == alone.model.read_bytes()
    assert cell.read_recipe() == recipe
    chosen = runner.results.chosen(anchor)
    assert chosen is not None
    values = runner.grid.trials[anchor.name][chosen]
    for seed in (0, 1):
        assert store.cell(Key(anchor.name, seed)).run.read_recipe() == comparison.recipe_of(anchor, values, seed)
    trial = store.cell(Key(anchor.name, 0, chosen)).run
    assert trial.read_recipe().validation_classes == 0.25
    assert not trial.evaluation.exists(), "a trial looked at the test classes"
    cost, history = json.loads(store.cell(Key(ours.name, 1)).cost_file.read_text()), pd.read_csv(cell.metrics)
    assert cost["seconds_per_epoch"] == pytest.approx(history["seconds"].median(), abs=1e-3)
    if sys.platform == "linux":
        assert cost["peak_memory_mib"] > 50, "torch alone takes more"


def test_a_comparison_grows_but_keeps_its_cells(small_comparison: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(small_comparison.read_text())
    content["methods"] = {"ProxyGML": content["methods"]["ProxyGML"]}
    content |= {"seeds": [0], "trials": 0}
    write(content, small_comparison)
    first = compare(small_comparison, tmp_path / "run")
    content["methods"]["Fewer"] = {"loss": {"proxies_per_class": 1, "neighbor_ratio": 0.5, "scale": 8.0}}
    content["seeds"] = [0, 1]
    write(content, small_comparison)
    grown = compare(small_comparison, tmp_path / "run", "--workers", 1)
    assert list(zip(grown["method"], grown["seed"], strict=True)) == [
        *(("ProxyGML", 0), ("ProxyGML", 1)),
        *(("Fewer", 0), ("Fewer", 1)),
    ]
    assert_same_cells(grown.head(1), first)
    content["methods"]["ProxyGML"]["proxy_lr"] = 0.5
    write(content, small_comparison)
    with pytest.raises(RunError, match=r"ProxyGML.seed-0 was trained with proxy_lr=0.03, but .* asks for proxy_lr=0.5"):
        Runner(Comparison.read(small_comparison), tmp_path / "run").run()


def test_trials_are_judged_at_the_epoch_that_their_cells_keep(content: dict[str, Any], tmp_path: Path) -> None:
    """Where cells have validation classes of their own: the best epoch, and on those classes."""
    shared = content["recipe"] | {"validation_classes": 0.5, "epochs": 4}
    anchor = {"Proxy-Anchor": METHODS["Proxy-Anchor"]}
    few = content | {"recipe": shared, "methods": anchor, "seeds": [0], "trials": 2}
    rows = compare(write(few, tmp_path / "mine.yaml"), tmp_path / "run")
    for number, judged in enumerate(rows[rows["trial"].notna()]["val_map_at_r"]):
        trial = RunFolder(tmp_path / "run" / "Proxy-Anchor" / "tune" / f"{number:02d}")
        assert judged == pd.read_csv(trial.metrics)["val_map_at_r"].max()
        assert trial.read_recipe().validation_classes == 0.5


def test_rows_that_are_kept_are_not_trained_again(
    content: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The runs are gone; a comparison goes on from the table of its cells, trials and all."""
    rows, recipe = table_of(finished / "cells.csv"), write(content, tmp_path / "mine.yaml")
    kept = [row for row in read_rows([finished / "cells.csv"]) if row.key != Key("N-pair", 1)]
    write_rows(tmp_path / "kept.csv", kept)
    again = compare(recipe, tmp_path / "run", "--from", tmp_path / "kept.csv")
    assert_same_cells(again, rows)
    assert [path.parent.name for path in (tmp_path / "run").rglob("cost.json")] == ["seed-1"]
    changed = content | {"methods": content["methods"] | {"N-pair": METHODS["N-pair"] | {"images_per_class": 4}}}
    anchor = METHODS["Proxy-Anchor"] | {"embedding_lr": 0.5}
    fewer = {name: method for name, method in METHODS.items() if name != "N-pair"}
    for other, message in (
        (changed, "the row of N-pair, seed 0 is of"),
        (
            content | {"methods": content["methods"] | {"Proxy-Anchor": anchor}},
            "the row of Proxy-Anchor, trial 0 is of",
        ),
        (content | {"tune_on": 0.5}, "the row of Proxy-Anchor, trial 0 is of"),
        (content | {"methods": fewer}, "a row is of N-pair, seed 0, which the comparison does not ask for"),
        (content | {"recipe": content["recipe"] | {"epochs": 1}}, "the rows are of protocol"),
    ):
        with pytest.raises(SystemExit):
            compare(write(other, recipe), tmp_path / "other", "--from", tmp_path / "kept.csv")
        assert message in capsys.readouterr().err.replace("\n", " ")


def test_what_a_finished_cell_does_without_is_removed_after_a_kill_too(
    content: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    trial, cell = tmp_path / "run" / "Proxy-Anchor" / "tune" / "01", tmp_path / "run" / "ProxyGML" / "seed-0"
    assert not (trial / "model.safetensors").exists()
    (trial / "model.safetensors").write_bytes(b"left")
    (cell / "checkpoints" / "epoch-0001").mkdir(parents=True)
    compare(write(content, tmp_path / "mine.yaml"), tmp_path / "run")
    assert not (trial / "model.safetensors").exists()
    assert not (cell / "checkpoints").exists()
    assert (cell / "model.safetensors").exists()


def test_a_loss_argument_that_a_method_leaves_out_is_told(content: dict[str, Any], tmp_path: Path) -> None:
    loss = {"name": "ProxyAnchorLoss", "arguments": {"alpha": 16}}
    methods = {"Given": {}, "Default": {"loss": {"name": "ProxyAnchorLoss"}}}
    shared = content["recipe"] | {"loss": loss, "proxy_lr": 0.01, "epochs": 1}
    recipe = write({"recipe": shared, "seeds": [0], "methods": methods}, tmp_path / "mine.yaml")
    rows = compare(recipe, tmp_path / "run")
    assert rows["settings"].tolist() == [{}, {"loss.arguments.alpha": "default"}]
    assert_same_cells(compare(recipe, tmp_path / "other", "--from", tmp_path / "run" / "cells.csv"), rows)


def test_a_diverging_cell_does_not_stop_the_others(small_comparison: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(small_comparison.read_text())
    content["recipe"] |= {"warmup_epochs": 0, "epochs": 1}
    wild = {"loss": {"name": "NPairsLoss"}, "backbone_lr": 1e30, "embedding_lr": 1e30}
    tuned = wild | {"tune": {"proxy_lr": [0.1, 0.2]}}
    content |= {"seeds": [0], "trials": 2, "methods": {"Wild": wild, "Tuned": tuned, "Tame": METHODS["N-pair"]}}
    write(content, small_comparison)
    rows = compare(small_comparison, tmp_path / "run")
    assert rows["method"].tolist() == ["Wild", "Tuned", "Tuned", "Tame"]
    assert rows["note"].notna().tolist() == [True, True, True, False]
    text = (tmp_path / "run" / "table.md").read_text()
    assert "Missing: Wild, seed 0 (diverged); Tuned, seed 0." in text
    assert "| Tuned | as given | diverged |" in text
    with launched(2, "compare", "--recipe", small_comparison, "--run", tmp_path / "run") as started:
        printed = [command.finish()[1] for command in started]
    assert ["Tuned: every trial diverged" in text for text in printed] == [True, False]


def test_table_is_drawn_from_the_rows_alone(finished: Path, tmp_path: Path) -> None:
    """Without the cells, their catalog, or their recipe."""
    (tmp_path / "birds.csv").write_bytes((finished / "cells.csv").read_bytes())
    main(["compare", "--from", str(tmp_path / "birds.csv"), "--out", str(tmp_path / "again")])
    one, other = (folder / "table.md" for folder in (finished, tmp_path / "again"))
    assert one.read_text().splitlines()[1:] == other.read_text().splitlines()[1:]
    page = (tmp_path / "again" / "comparison.html").read_text()
    assert "<img" in page
    assert str(finished) not in page
