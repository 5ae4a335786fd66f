"""Mistakes are named before anything is trained, and nothing is mixed in that does not belong there."""

import json
import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

from proxygml.cli.main import main
from proxygml.comparison.plan import Comparison
from proxygml.comparison.row import read_rows
from proxygml.comparison.runner import Runner
from proxygml.data.catalog import Catalog
from proxygml.errors import RecipeError, RunError
from proxygml.models.conv4 import Conv4
from proxygml.training.recipe_files import find_recipe
from tests.helpers.comparisons import METHODS, assert_same_cells, compare, table_of, write
from tests.helpers.launch import launched

RESULTS = Path(__file__).parents[2] / "docs" / "results"
TABULATED = {"cub200_2010_heads"}  # not continued: it is from before rows held all settings
OF_VECTORS = {  # several data sets, by the recipe that each is of
    "vectors_birds_lite2": "vectors",
    "vectors_birds_mobilenetv2": "vectors",
    "vectors_groceries_lite2": "vectors",
    "vectors_groceries_mobilenetv2": "vectors",
    "vectors_omniglot_network": "vectors",
    "vectors_packages_text": "vectors_packages_text",
}
OF_BENCHMARKS = {
    "vector_sizes",
    "vectors_choice",
    "audit",
    "audit_drop",
    "audit_findings",
    "continuing",
    "real_size_trials",
    "real_size_views",
    "real_size_birds_trials",
    "real_size_birds_lite2_trials",
    "real_size_birds_lite2_views",
    "real_size_birds_views",
    "dimensions_views",
    "noise_views",
    "groceries_views",
    "cub200_2010_views",
    "switches",
}
KEPT = sorted(path for path in RESULTS.glob("*.csv") if path.stem not in TABULATED | OF_BENCHMARKS)


def test_a_network_that_cannot_be_is_named_before_anything_is_trained(content: dict[str, Any], tmp_path: Path) -> None:
    methods = METHODS | {"Finer": {"embedder": {"output_stride": 8}}}
    small = write(content | {"methods": methods}, tmp_path / "mine.yaml")
    with pytest.raises(RecipeError, match="conv4 is none of timm's networks"):
        Runner(Comparison.read(small), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_norm_that_several_processes_cannot_share_is_named_before_anything_is_trained(
    content: dict[str, Any], tmp_path: Path
) -> None:
    normed = {"Normed": {"embedder": {"feature_norm": "batch"}}}
    recipe = write(content | {"methods": METHODS | normed}, tmp_path / "mine.yaml")
    with launched(2, "compare", "--recipe", recipe, "--run", tmp_path / "run") as started:
        errors = [command.finish()[1] for command in started]
        assert [command.status for command in started] == [2, 2]
    assert "take layer, or one process" in " ".join(errors[0].split())
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


def test_cells_of_a_setting_that_is_no_longer_the_best_are_named_with_what_to_do(
    content: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, recipe = tmp_path / "run", write(content, tmp_path / "mine.yaml")
    shutil.copytree(finished, folder)
    rows = table_of(finished / "cells.csv")
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
    assert "two different files are called model.safetensors" in capsys.readouterr().err.replace("\n", " ")
    shutil.rmtree(moved.parent)
    started["N-pair"]["embedder"] = {"weights": str(moved)}
    assert_same_cells(compare(write(short | {"methods": started}, mine), folder), rows)


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
    rows = table_of(finished / "cells.csv")
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
    """An evaluation on other data has a place of its own; that of the run may be of a catalog that was another then."""
    folder, recipe = tmp_path / "run", write(content, tmp_path / "mine.yaml")
    shutil.copytree(finished, folder)
    catalog = Catalog.read(content["recipe"]["catalog"])
    Catalog(catalog.table.iloc[:-1], catalog.folder).write(tmp_path / "fewer.csv")
    cell, rows = folder / "N-pair" / "seed-1", table_of(finished / "cells.csv")
    main(["evaluate", str(cell), "--catalog", str(tmp_path / "fewer.csv")])
    assert_same_cells(compare(recipe, folder), rows)
    evaluation = json.loads((cell / "evaluation.json").read_text())
    evaluation["protocol"]["catalog_fingerprint"] = "0" * 12
    (cell / "evaluation.json").write_text(json.dumps(evaluation))
    with pytest.raises(SystemExit):
        compare(recipe, folder)
    assert "evaluation.json is of another catalog" in capsys.readouterr().err.replace("\n", " ")
    main(["evaluate", str(cell), "--catalog", content["recipe"]["catalog"]])
    assert_same_cells(compare(recipe, folder), rows)


def test_rows_whose_runs_are_gone_are_not_written_over(
    content: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = write(content, tmp_path / "mine.yaml"), tmp_path / "run"
    folder.mkdir()
    shutil.copy(finished / "cells.csv", folder)
    with pytest.raises(SystemExit):
        compare(recipe, folder)
    assert "has a row of ProxyGML, seed 0, whose run is not there" in capsys.readouterr().err.replace("\n", " ")
    rows = table_of(finished / "cells.csv")
    assert_same_cells(table_of(folder / "cells.csv"), rows)
    assert_same_cells(compare(recipe, folder, "--from", folder / "cells.csv"), rows)


def test_every_cell_is_checked_before_the_first_is_trained(
    content: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    changed = content | {"methods": content["methods"] | {"N-pair": METHODS["N-pair"] | {"images_per_class": 4}}}
    comparison = Comparison.read(write(changed, tmp_path / "mine.yaml"))
    with pytest.raises(RunError, match=r"N-pair.seed-0 was trained with images_per_class=2"):
        Runner(comparison, finished).run()
    with pytest.raises(RunError, match="the row of N-pair, seed 0 is of"):
        Runner(comparison, tmp_path / "run", read_rows([finished / "cells.csv"])).run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.stem)
def test_our_kept_rows_are_of_our_recipes(kept: Path, tmp_path: Path) -> None:
    """So that anybody can go on from them: each is of the protocol and the settings that the recipe asks for now."""
    rows = [replace(row, data_fingerprint=None) for row in read_rows([kept])]
    labels = [f"class {number}" for number in range(400) for _ in range(4)]
    table = pd.DataFrame({"label": labels, "split": ["train"] * 1500 + ["test"] * 100})
    table["path"] = [f"{number}.png" for number in table.index]
    catalog = tmp_path / f"{rows[0].data}.parquet"
    if kept.stem in OF_VECTORS:
        table.assign(embedding=list(np.random.default_rng(0).standard_normal((1600, 400), np.float32))).to_parquet(
            catalog
        )
    else:
        Catalog(table, tmp_path).write(catalog)
    comparison = Comparison.read(find_recipe(OF_VECTORS.get(kept.stem, kept.stem), "compare"))
    embedder = comparison.shared.embedder
    embedder = replace(embedder, weights=rows[0].protocol.get("embedder.weights", embedder.weights))
    comparison = replace(comparison, shared=replace(comparison.shared, catalog=str(catalog), embedder=embedder))
    assert Runner(comparison, tmp_path / "run", rows).rows() == rows


def test_an_argument_that_is_gone_is_another_recipe(content: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    anchor = content["methods"]["Proxy-Anchor"] | {"loss": {"name": "ProxyAnchorLoss"}}
    changed = content | {"methods": content["methods"] | {"Proxy-Anchor": anchor}}
    runner = Runner(Comparison.read(write(changed, tmp_path / "mine.yaml")), finished)
    with pytest.raises(RunError, match=r"was trained with loss\.arguments\.alpha=16, but .* asks for defaults"):
        runner.run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a comparison needs its recipe, --recipe, and its folder, --run"),
        (["--run", "x"], "a comparison needs its recipe"),
        (
            ["--recipe", "nowhere", "--run", "x"],
            "the recipe nowhere is neither a file nor the name of one that comes with proxygml: choose one of cub",
        ),
        (["--recipe", "cub200_2010_crops", "--run", "x"], "no catalog is given"),
        (["--recipe", "cub200_2010_crops", "--run", "x", "--epoch", "3"], "did you mean '--epochs'?"),
        (["--from", "a.csv"], "or, for a table of rows alone, --from and --out"),
        (["--from", "a.csv", "--out", "b", "--run", "c"], "--out is the folder for a table of --from alone"),
        (["--out", "b"], "--out is the folder for a table of --from alone"),
        (["--from", "a.csv", "--out", "b"], "there is no a.csv: give the cells.csv"),
        (["--from", "a.csv", "--out", "b", "--epochs", "3"], "--epochs changes nothing beside --from and --out"),
        (["--from", "a.csv", "--out", "b", "--ray"], "--ray changes nothing beside --from and --out"),
        (["--recipe", "glyphs", "--run", "x", "--ray_cpus", "2"], "--ray_cpus is for --ray, which is not given"),
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


def test_wrong_methods_are_named_before_anything_runs(
    small_comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(small_comparison.read_text())
    untested = Catalog.read(content["recipe"]["catalog"])
    Catalog(untested.table[untested.table["split"] == "train"], untested.folder).write(tmp_path / "untested.csv")
    start = {"embedding_start": "features", "embedder": {"embedding_size": 250}}
    for method, options, message in (
        ({"loss": {"name": "NPairLoss"}}, (), "mine.yaml: N-pair: loss.name is 'NPairLoss'"),
        ({"whitening": 0.3}, (), "mine.yaml: N-pair: whitening is 0.3, but embedding_start is random"),
        ({"tune": {"proxy_lr": [*([0.1, 0.2, 0.3] * 2), -1.0]}}, (), "mine.yaml: N-pair: proxy_lr is -1.0"),
        ({"backbone_lr": 0.0, "embedding_lr": 0.0}, (), "nothing of the network would learn"),
        ({"images_per_class": 1}, (), "needs 16 classes, but 12 can be trained on"),
        ({"images": {"quarter_turns": True}, "images_per_class": 1, "batch_size": 64}, (), "but 48 can be trained on"),
        (
            {"tune": {"images_per_class": [2, 1]}},
            (),
            "N-pair in its trials, which hold out 0.25 of the classes: a batch of 16 with images_per_class 1 needs 16 "
            "classes, but 9 can be trained on",
        ),
        ({"embedder": {"weights": "gone.safetensors"}}, (), "'gone.safetensors', which is not there"),
        (start, (), "only 96 directions can be found in 96 training images"),
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
