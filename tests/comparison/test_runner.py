"""A comparison as a person runs it: whole, killed and continued, in parts, grown, and with settings to choose."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

from proxygml.cli.main import main
from proxygml.comparison.plan import Comparison
from proxygml.comparison.runner import Cells, Part
from proxygml.comparison.tables import read_rows
from proxygml.data.catalog import Catalog
from proxygml.errors import RecipeError, RunError, UserError
from proxygml.models.conv4 import Conv4
from proxygml.training.recipe import Recipe, find_recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import fit

TIMES = ["seconds_per_epoch", "peak_memory_mib"]
RESULTS = Path(__file__).parents[2] / "docs" / "results"
# Rows of trials from before they told all their settings can be tabulated, not continued.
KEPT = sorted(set(RESULTS.glob("*.csv")) - {RESULTS / "cub200_2010_heads.csv"})
METHODS = {
    "ProxyGML": {"loss": {"proxies_per_class": 2, "neighbor_ratio": 0.5, "scale": 4.0}},
    "Proxy-Anchor": {
        "loss": {"name": "ProxyAnchorLoss", "arguments": {"alpha": 16}},
        "proxy_lr": 0.01,
        "tune": {"proxy_lr": [0.01, 0.1], "loss.arguments.alpha": [16, 32]},
    },
    "N-pair": {"loss": {"name": "NPairsLoss"}, "images_per_class": 2},
}


@pytest.fixture(scope="module")
def content(small_recipe: Recipe) -> dict[str, Any]:
    """Three methods, two seeds, three trials for one of them: nine runs of two epochs."""
    shared = replace(small_recipe, loss=Recipe().loss, epochs=2).content()
    return {"recipe": shared, "seeds": [0, 1], "trials": 3, "methods": METHODS}


@pytest.fixture
def small_comparison(content: dict[str, Any], tmp_path: Path) -> Path:
    return write(content, tmp_path / "mine.yaml")


@pytest.fixture(scope="module")
def finished(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small comparison, run without a stop."""
    folder = tmp_path_factory.mktemp("finished")
    compare(write(content, folder / "mine.yaml"), folder / "run")
    return folder / "run"


def write(content: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def compare(recipe: Path, folder: Path, *options: object) -> pd.DataFrame:
    main(["compare", "--recipe", str(recipe), "--run", str(folder), *map(str, options)])
    return read_rows([folder / "cells.csv"])


def assert_same_cells(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one.drop(columns=TIMES), other.drop(columns=TIMES), check_exact=True)


def test_table_holds_every_cell_and_trial(finished: Path) -> None:
    whole = read_rows([finished / "cells.csv"])
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
    assert_same_cells(compare(small_comparison, folder), read_rows([finished / "cells.csv"]))
    assert (folder / "ProxyGML" / "seed-0" / "evaluation.json").stat().st_mtime_ns == done, "a finished cell ran again"


def test_parts_together_are_the_whole(small_comparison: Path, finished: Path, tmp_path: Path) -> None:
    whole = read_rows([finished / "cells.csv"])
    first = compare(small_comparison, tmp_path / "run", "--part", "1/2")
    assert len(first) < len(whole)
    assert "Missing: ProxyGML, seed 1; N-pair, seed 0." in (tmp_path / "run" / "table.md").read_text()
    assert_same_cells(compare(small_comparison, tmp_path / "run", "--part", "2/2"), whole)


def test_a_part_without_work_leaves_the_folder_to_the_others(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(
        content | {"methods": {"ProxyGML": METHODS["ProxyGML"]}, "seeds": [0], "trials": 0}, tmp_path / "one.yaml"
    )
    main(["compare", "--recipe", str(one), "--run", str(tmp_path / "run"), "--part", "2/2"])
    assert "no cell is finished yet" in capsys.readouterr().out
    assert not (tmp_path / "run" / "cells.csv").exists()
    assert len(compare(one, tmp_path / "run", "--part", "1/2")) == 1


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
    assert_same_cells(rows, read_rows([finished / "cells.csv"]))
    for run in (tmp_path / "run" / "ProxyGML").iterdir():
        recipe = Recipe.read(run / "recipe.yaml")
        assert (recipe.catalog, recipe.workers) == (str(moved), 1)


def retrain(run: Path) -> None:
    """Bring back the checkpoint that a finished cell does without."""
    recipe = Recipe.read(run / "recipe.yaml")
    fit(recipe, RunFolder(run.parent / "anew"))
    shutil.move(run.parent / "anew" / "checkpoints", run / "checkpoints")
    shutil.rmtree(run.parent / "anew")


def test_a_network_that_cannot_be_is_named_before_anything_is_trained(content: dict[str, Any], tmp_path: Path) -> None:
    methods = METHODS | {"Finer": {"embedder": {"output_stride": 8}}}
    small = write(content | {"methods": methods}, tmp_path / "mine.yaml")
    with pytest.raises(RecipeError, match="conv4 is none of timm's networks"):
        Cells(Comparison.read(small), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_norm_that_several_processes_cannot_share_is_named_before_anything_is_trained(
    content: dict[str, Any], tmp_path: Path
) -> None:
    normed = {"Normed": {"embedder": {"feature_norm": "batch"}}}
    recipe = write(content | {"methods": METHODS | normed}, tmp_path / "mine.yaml")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "proxygml", "compare", "--recipe", recipe, "--run", tmp_path / "run"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        timeout=240,
        check=False,
    )
    assert done.returncode != 0
    assert "take layer, or one process" in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_run_is_no_place_for_a_comparison(
    small_comparison: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished / "ProxyGML" / "seed-0"
    before = sorted(run.iterdir())
    for place in (run, small_comparison):
        with pytest.raises(SystemExit):
            main(["compare", "--recipe", str(small_comparison), "--run", str(place)])
        assert "is a run or a file of its own: give the comparison another --run" in capsys.readouterr().err
    assert sorted(run.iterdir()) == before


def test_parts_share_all_cells_and_none_twice(small_comparison: Path, tmp_path: Path) -> None:
    jobs = Cells(Comparison.read(small_comparison), tmp_path / "run").jobs()
    for count in (1, 2, 3, 7):
        shared = [job for number in range(1, count + 1) for job in Part(number, count).of_all(jobs)]
        assert sorted(shared, key=jobs.index) == jobs
    for wrong in ("0/2", "3/2", "2", "a/b", "1/0"):
        with pytest.raises(RecipeError, match=f"the part is '{wrong}'"):
            Part.read(wrong)


def test_cells_are_ordinary_runs_with_the_chosen_values(
    content: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    cells = Cells(Comparison.read(write(content, tmp_path / "mine.yaml")), finished)
    ours, anchor, _ = cells.comparison.methods
    recipe = cells.comparison.recipe_of(ours, {}, 1)
    alone = RunFolder(tmp_path / "alone")
    fit(recipe, alone)
    cell = cells.cell(ours, 1).run
    assert cell.model.read_bytes() == alone.model.read_bytes()
    assert cell.read_recipe() == recipe
    chosen = cells.chosen(anchor)
    assert chosen is not None
    values = cells.trials[anchor.name][chosen]
    for seed in (0, 1):
        assert cells.cell(anchor, seed).run.read_recipe() == cells.comparison.recipe_of(anchor, values, seed)
    trial = cells.trial(anchor, chosen).run
    assert trial.read_recipe().validation_classes == 0.25
    assert not trial.evaluation.exists(), "a trial looked at the test classes"
    cost, history = json.loads(cells.cell(ours, 1).cost.read_text()), pd.read_csv(cell.metrics)
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
        Cells(Comparison.read(small_comparison), tmp_path / "run").run(Part())


def test_cells_of_a_setting_that_is_no_longer_the_best_are_named_with_what_to_do(
    content: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, recipe = tmp_path / "run", write(content, tmp_path / "mine.yaml")
    shutil.copytree(finished, folder)
    rows = read_rows([finished / "cells.csv"])
    other = int(rows[rows["chosen"].astype(str) == "False"]["trial"].iloc[0])
    metrics = folder / "Proxy-Anchor" / "tune" / f"{other:02d}" / "metrics.csv"
    pd.read_csv(metrics).assign(val_map_at_r=1.0).to_csv(metrics, index=False)
    with pytest.raises(SystemExit):
        compare(recipe, folder)
    message = capsys.readouterr().err.replace("\n", " ")
    assert re.search(r"Proxy-Anchor.seed-0 was trained with .*: its trials have chosen anew", message)
    (folder / "cells.csv").unlink()
    for seed in (0, 1):
        shutil.rmtree(folder / "Proxy-Anchor" / f"seed-{seed}")
    again = compare(recipe, folder)
    assert again[again["chosen"].astype(str) == "True"]["trial"].tolist() == [other]
    assert again["recall_at_1"].notna().sum() == rows["recall_at_1"].notna().sum()


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


def test_weights_are_known_by_what_they_hold(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one" / "model.safetensors", tmp_path / "other" / "model.safetensors"
    for seed, path in enumerate((one, other)):
        torch.manual_seed(seed)
        path.parent.mkdir()
        save_file(Conv4().state_dict(), path)
    short = content | {"recipe": content["recipe"] | {"epochs": 0, "warmup_epochs": 0}, "seeds": [0], "trials": 0}
    mine, folder = tmp_path / "mine.yaml", tmp_path / "run"
    started = {"N-pair": METHODS["N-pair"] | {"embedder": {"weights": str(one)}}}
    rows = compare(write(short | {"methods": started}, mine), folder)
    moved = tmp_path / "moved" / "model.safetensors"
    shutil.copytree(one.parent, moved.parent)
    started["N-pair"]["embedder"] = {"weights": str(moved)}
    assert_same_cells(compare(write(short | {"methods": started}, mine), folder), rows)
    started["N-pair"]["embedder"] = {"weights": str(other)}
    with pytest.raises(SystemExit):
        compare(write(short | {"methods": started}, mine), folder)
    assert "started from another file model.safetensors" in capsys.readouterr().err.replace("\n", " ")
    both = started | {"Other": METHODS["N-pair"] | {"embedder": {"weights": str(one)}}}
    with pytest.raises(SystemExit):
        compare(write(short | {"methods": both}, mine), tmp_path / "both")
    assert "two different files of weights are called model.safetensors" in capsys.readouterr().err.replace("\n", " ")
    shutil.rmtree(moved.parent)
    started["N-pair"]["embedder"] = {"weights": str(moved)}
    assert_same_cells(compare(write(short | {"methods": started}, mine), folder), rows)


def test_rows_that_are_kept_are_not_trained_again(
    content: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The runs are gone; a comparison goes on from the table of its cells, trials and all."""
    rows, recipe = read_rows([finished / "cells.csv"]), write(content, tmp_path / "mine.yaml")
    rows[~((rows["method"] == "N-pair") & (rows["seed"] == 1))].to_csv(tmp_path / "kept.csv", index=False)
    again = compare(recipe, tmp_path / "run", "--from", tmp_path / "kept.csv")
    assert_same_cells(again, rows)
    assert [path.parent.name for path in (tmp_path / "run").rglob("cost.json")] == ["seed-1"]
    left = Cells(Comparison.read(recipe), tmp_path / "run", read_rows([tmp_path / "kept.csv"])).jobs()
    assert [(method.name, seeds) for method, seeds in left] == [("N-pair", [1])], "what parts share is what is left"
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


def test_cells_of_other_data_are_not_mixed_in(
    content: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A catalog is known by what it holds: not by its name, and not by the folder that a machine has it in."""
    folder, recipe = tmp_path / "run", tmp_path / "mine.yaml"
    shutil.copytree(finished, folder)
    catalog = Catalog.read(content["recipe"]["catalog"])
    place = tmp_path / "moved" / "renamed.csv"
    place.parent.mkdir()
    catalog.write(place)
    moved = content | {"recipe": content["recipe"] | {"catalog": str(place)}}
    rows = read_rows([finished / "cells.csv"])
    assert_same_cells(compare(write(moved, recipe), folder), rows.assign(data="renamed"))
    assert_same_cells(compare(recipe, tmp_path / "kept", "--from", finished / "cells.csv"), rows)
    test = catalog.table[catalog.table["split"] == "test"]
    fewer = catalog.table.drop(index=test.index[test["label"] == test["label"].iloc[0]])
    Catalog(fewer, catalog.folder).write(place, force=True)
    for run, known in ((folder, ()), (tmp_path / "other", ("--from", finished / "cells.csv"))):
        with pytest.raises(SystemExit):
            compare(recipe, run, *known)
        assert "fingerprint" in capsys.readouterr().err


def test_a_cell_that_was_judged_by_another_catalog_is_named(
    content: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, recipe = tmp_path / "run", write(content, tmp_path / "mine.yaml")
    shutil.copytree(finished, folder)
    catalog = Catalog.read(content["recipe"]["catalog"])
    Catalog(catalog.table.iloc[:-1], catalog.folder).write(tmp_path / "fewer.csv")
    cell = folder / "N-pair" / "seed-1"
    main(["evaluate", str(cell), "--catalog", str(tmp_path / "fewer.csv")])
    with pytest.raises(SystemExit):
        compare(recipe, folder)
    told = capsys.readouterr().err.replace("\n", " ")
    assert "evaluation.json is of another catalog" in told
    main(["evaluate", str(cell), "--catalog", content["recipe"]["catalog"]])
    assert_same_cells(compare(recipe, folder), read_rows([finished / "cells.csv"]))


def test_what_a_finished_cell_does_without_is_removed_after_a_kill_too(
    content: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    trial, cell = tmp_path / "run" / "Proxy-Anchor" / "tune" / "01", tmp_path / "run" / "ProxyGML" / "seed-0"
    assert not (trial / "model.safetensors").exists()
    (trial / "model.safetensors").write_bytes(b"left")
    (cell / "checkpoints").mkdir()
    (cell / "checkpoints" / "last.ckpt").write_bytes(b"left")
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
    assert rows["settings"].tolist() == ["", "loss.arguments.alpha=default"]
    assert_same_cells(compare(recipe, tmp_path / "other", "--from", tmp_path / "run" / "cells.csv"), rows)


def test_rows_whose_runs_are_gone_are_not_written_over(
    content: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = write(content, tmp_path / "mine.yaml"), tmp_path / "run"
    folder.mkdir()
    shutil.copy(finished / "cells.csv", folder)
    with pytest.raises(SystemExit):
        compare(recipe, folder, "--part", "1/4")
    assert "has a row of ProxyGML, seed 0, whose run is not there" in capsys.readouterr().err.replace("\n", " ")
    rows = read_rows([finished / "cells.csv"])
    assert_same_cells(read_rows([folder / "cells.csv"]), rows)
    assert_same_cells(compare(recipe, folder, "--from", folder / "cells.csv"), rows)


def test_cells_of_other_parts_are_checked_too(content: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    changed = content | {"methods": content["methods"] | {"N-pair": METHODS["N-pair"] | {"images_per_class": 4}}}
    comparison = Comparison.read(write(changed, tmp_path / "mine.yaml"))
    with pytest.raises(RunError, match=r"N-pair.seed-0 was trained with images_per_class=2"):
        Cells(comparison, finished).run(Part(1, 7))
    with pytest.raises(RunError, match="the row of N-pair, seed 0 is of"):
        Cells(comparison, tmp_path / "run", read_rows([finished / "cells.csv"])).run(Part(1, 7))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.stem)
def test_our_kept_rows_are_of_our_recipes(kept: Path, tmp_path: Path) -> None:
    """So that anybody can go on from them: each is of the protocol and the settings that the recipe asks for now."""
    rows = read_rows([kept]).drop(columns="data_fingerprint", errors="ignore")
    labels = [f"class {number}" for number in range(400) for _ in range(4)]
    table = pd.DataFrame({"label": labels, "split": ["train"] * 1500 + ["test"] * 100})
    table["path"] = [f"{number}.png" for number in table.index]
    catalog = tmp_path / f"{rows['data'][0]}.csv"
    Catalog(table, tmp_path).write(catalog)
    comparison = Comparison.read(find_recipe(kept.stem, "compare"))
    weights = re.search(r"embedder.weights=([^;]+\.safetensors)", rows["protocol"][0])
    embedder = comparison.shared.embedder
    embedder = replace(embedder, weights=weights[1]) if weights else embedder
    comparison = replace(comparison, shared=replace(comparison.shared, catalog=str(catalog), embedder=embedder))
    assert len(Cells(comparison, tmp_path / "run", rows).gather()) == len(rows)


def test_names_of_rows_are_text_and_their_numbers_are_numbers(finished: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(finished / "cells.csv").assign(data="2010")
    rows["method"] = rows["method"].replace("N-pair", "NA")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    read = read_rows([tmp_path / "rows.csv"])
    assert set(read["data"]) == {"2010"}
    assert set(read["method"]) == {"ProxyGML", "Proxy-Anchor", "NA"}
    for change, message in (
        ({"seed": "first"}, "a seed is no whole number"),
        ({"trial": 0.5}, "a trial is no whole number"),
        ({"recall_at_1": "high"}, "a recall_at_1 is no number"),
        ({"settings": None}, "has no column 'settings'"),
        ({"val_map_at_r": None}, "has no column 'val_map_at_r'"),
    ):
        (name, value), path = next(iter(change.items())), tmp_path / "wrong.csv"
        wrong = rows.drop(columns=name) if value is None else rows.assign(**change)
        wrong.to_csv(path, index=False)
        with pytest.raises(UserError, match=message):
            read_rows([path])


def test_an_argument_that_is_gone_is_another_recipe(content: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    anchor = content["methods"]["Proxy-Anchor"] | {"loss": {"name": "ProxyAnchorLoss"}}
    changed = content | {"methods": content["methods"] | {"Proxy-Anchor": anchor}}
    cells = Cells(Comparison.read(write(changed, tmp_path / "mine.yaml")), finished)
    with pytest.raises(RunError, match=r"was trained with loss\.arguments\.alpha=16, but .* asks for defaults"):
        cells.run(Part())


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


def test_table_is_drawn_from_the_rows_alone(finished: Path, tmp_path: Path) -> None:
    """Without the cells, their catalog, or their recipe."""
    (tmp_path / "birds.csv").write_bytes((finished / "cells.csv").read_bytes())
    main(["compare", "--from", str(tmp_path / "birds.csv"), "--out", str(tmp_path / "again")])
    one, other = (folder / "table.md" for folder in (finished, tmp_path / "again"))
    assert one.read_text().splitlines()[1:] == other.read_text().splitlines()[1:]
    page = (tmp_path / "again" / "comparison.html").read_text()
    assert "<img" in page
    assert str(finished) not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a comparison needs its recipe, --recipe, and its folder, --run"),
        (["--run", "x"], "a comparison needs its recipe"),
        (
            ["--recipe", "nowhere", "--run", "x"],
            "the recipe nowhere is not there: give a YAML file or one of cub200_2010",
        ),
        (["--recipe", "cub200_2010_crops", "--run", "x"], "no catalog is given"),
        (["--recipe", "cub200_2010_crops", "--run", "x", "--epoch", "3"], "did you mean --epochs?"),
        (["--from", "a.csv"], "or, for a table of rows alone, --from and --out"),
        (["--from", "a.csv", "--out", "b", "--run", "c"], "--out is the folder for a table of --from alone"),
        (["--out", "b"], "--out is the folder for a table of --from alone"),
        (["--from", "a.csv", "--out", "b"], "a.csv cannot be read"),
        (["--from", "a.csv", "--out", "b", "--epochs", "3"], "--epochs changes nothing beside --from and --out"),
        (["--from", "a.csv", "--out", "b", "--part", "2/3"], "--part changes nothing beside --from and --out"),
        (["--recipe", "cub200_2010_crops", "--run", "x", "--seed", "3"], "list them under seeds"),
    ],
)
def test_wrong_commands_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_wrong_parts_and_methods_are_named_before_anything_runs(
    small_comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        compare(small_comparison, tmp_path / "run", "--part", "3/2")
    assert "the part is '3/2', but must be like 2/8" in capsys.readouterr().err.replace("\n", " ")
    content = yaml.safe_load(small_comparison.read_text())
    untested = Catalog.read(content["recipe"]["catalog"])
    Catalog(untested.table[untested.table["split"] == "train"], untested.folder).write(tmp_path / "untested.csv")
    start = {"embedding_start": "features", "embedder": {"embedding_size": 250}}
    for method, options, message in (
        ({"loss": {"name": "NPairLoss"}}, (), "mine.yaml: N-pair: loss.name is 'NPairLoss'"),
        ({"whitening": 0.3}, (), "mine.yaml: N-pair: whitening is 0.3, but embedding_start is random"),
        ({"tune": {"proxy_lr": [*([0.1, 0.2, 0.3] * 2), -1.0]}}, (), "mine.yaml: N-pair: proxy_lr is -1.0"),
        ({"backbone_lr": 0.0, "embedding_lr": 0.0}, (), "nothing of the network would learn"),
        ({"images_per_class": 1}, (), "needs 16 classes, but there are 12 to train on"),
        (
            {"tune": {"images_per_class": [2, 1]}},
            (),
            "N-pair in its trials, which hold out 0.25 of the classes: a batch of 16 with images_per_class 1 needs 16 "
            "classes, but there are 9 to train on",
        ),
        ({"embedder": {"weights": "gone.safetensors"}}, (), "'gone.safetensors', which is not there"),
        (start, (), "finds only 96 directions in 96 training images"),
        *([] if find_spec("wandb") else [({"tracker": "wandb"}, (), "tracker is wandb, which is not installed")]),
        *([] if torch.cuda.is_available() else [({"precision": "fp16"}, (), "precision is fp16, which needs a GPU")]),
        ({}, ("--catalog", tmp_path / "untested.csv"), "has no split 'test'"),
    ):
        content["methods"]["N-pair"] = method
        write(content, small_comparison)
        with pytest.raises(SystemExit):
            compare(small_comparison, tmp_path / "run", *options)
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()
