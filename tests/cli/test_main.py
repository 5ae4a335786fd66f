"""The commands, as a person types them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proxygml.data.catalog import Catalog
from proxygml.training.recipe import Recipe
from tests.helpers.commands import refused, run


def test_prepare_train_resume_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way on small data of our own: glyphs, two epochs, figures and a report."""
    catalog, folder = tmp_path / "glyphs.parquet", tmp_path / "run"
    run("prepare", "glyphs", "--out", catalog, "--images-per-class", 2, "--size", 32)
    run(
        "train",
        "--recipe",
        "glyphs",
        "--catalog",
        catalog,
        "--run",
        folder,
        "--epochs",
        1,
        "--loss.proxies_per_class=2",
    )
    recipe = Recipe.read(folder / "recipe.yaml")
    assert (recipe.epochs, recipe.loss.proxies_per_class, recipe.embedder.backbone) == (1, 2, "conv4")
    assert (folder / "report.html").is_file()
    capsys.readouterr()
    (folder / "evaluation.json").unlink()
    run("train", "--resume", folder)
    assert "no epoch is left" in capsys.readouterr().err
    run("evaluate", folder, "--catalog", catalog)
    printed = capsys.readouterr().out
    assert "Recall@1" in printed
    assert str(folder / "report.html") in printed.replace("\n", "")
    assert 0 < json.loads((folder / "evaluation.json").read_text())["recall"]["1"]["value"] <= 1
    message = refused(capsys, "train", "--recipe", "glyphs", "--catalog", catalog, "--run", folder)
    assert f"--resume {folder}" in message.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no command 'trian': did you mean 'train'?"),
        (["prepare", "cub"], "for vectors 'vectors'): did you mean 'cub200'?"),
        (["prepare", "folder", "--out", "a.parquet"], "root"),
        (["prepare", "folder", "--root", "nowhere", "--out", "a.parquet"], "there is no nowhere"),
        (
            ["prepare", "folder", "--root", ".", "--out", "a.parquet", "--on-bad", "keep"],
            "--on_bad is keep, but must be one of fail, drop",
        ),
        (["prepare", "folder", "--rot", "x"], "did you mean '--root'?"),
        (["train", "--run", "x", "--loss.scal", "3"], "no option --loss.scal: did you mean '--loss.scale'?"),
        (["evaluate", "s3://bucket/run", "--out", "x"], "no option --out"),
        (["train", "--run", "x", "--milestones", "3"], "--milestones is 3, but must be a list such as [3,4]"),
        (
            ["train", "--run", "x", "--recipe=cub2000"],
            "comes with proxygml: did you mean 'cub200'?",
        ),
        (["train", "--run", "x", "--scale", "3"], "did you mean '--loss.scale'?"),
        (["train", "--run", "x", "--epochs", "many"], "epochs"),
        (["train", "--run", "x", "--images.size", "-3"], "images.size is -3"),
        (["train", "--run", "x"], "no catalog is given"),
        (["train", "--run", "x", "--catalog", "nowhere.csv"], "nowhere.csv: there is no such file"),
        (["train", "--catalog", "a.csv"], "no run folder is given"),
        (
            ["train", "--recipe", "cub2000", "--run", "x"],
            "comes with proxygml: did you mean 'cub200'?",
        ),
        (["train", "--resume", "nowhere"], "nowhere is no run folder"),
        (["train", "--resume", "nowhere", "--epochs", "3"], "--resume takes no other option"),
        (["evaluate", "nowhere"], "nowhere is no run folder"),
        (["evaluate"], "no run folder is given: put it first, as in `proxygml evaluate RUN ...`"),
        (["audit", "--out", "a"], "--catalog must be given"),
        (["search"], "GALLERY must be given"),
        (["search", "g", ""], "QUERIES is empty: give a path"),
        (["embed", "r", "--images", "", "--out", "e.parquet"], "--images is empty: give a path"),
        (["embed", "r", "--images=", "--out", "e.parquet"], "--images is empty: give a path"),
        (["cluster", "", "--images", "a", "--out", "c"], "RUN is empty: give a path"),
        (["prepare", "folder", "--root", "", "--out", "c.csv"], "--root is empty: give a path"),
        (["prepare", "folder", "--root", "no", "--out", "c.csv"], "there is no no: give --root the folder of your"),
        (["prepare", "table", "--root", "no.csv", "--out", "c.csv"], "give --root the table of your images, a .csv or"),
        (["prepare", "vectors", "--root", "no", "--out", "c.parquet"], "give --root the .parquet file of your vectors"),
        (["prepare", "cub200", "--root", "no", "--out", "c.csv"], "give --root the archive or folder of cub200"),
        (["prepare", "--root", "a"], "name what to prepare first, as in `proxygml prepare folder --root a ...`"),
        (["prepare", "--out", "c.csv", "--root", "a"], "name what to prepare first"),
        (["prepare", "--force", "--rebase", "a", "b", "--out", "c.csv"], "there is no option --force"),
        (
            ["prepare", "folder", "--root", ".", "--out", "."],
            "ends with no suffix: a catalog is a .csv or a .parquet",
        ),
        (["serve", ""], "GALLERY is empty: give a path"),
        (["index", "r", "--images", "a", "--out", ""], "--out is empty: give a path"),
        (["evaluate", "r", "more"], "'more' is more than the command takes"),
        (["compare", ""], "'' is more than the command takes"),
    ],
)
def test_mistakes_get_one_message(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir()), "a refused command left something behind"


def test_glyphs_that_cannot_be_made_anew_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", "glyphs", "--out", tmp_path / "glyphs.parquet", "--force", "--images_per_class", 2]
    run(*command, "--size", 16)
    assert "size 8" in refused(capsys, *command, "--size", 8)
    assert len(list((tmp_path / "glyphs").rglob("*.png"))) == 400


def test_own_images_with_a_name_that_is_no_text_and_a_catalog_among_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / f"class {number // 3}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    command = ["prepare", "folder", "--root", tmp_path, "--out", tmp_path / "catalog.parquet", "--test-classes", "half"]
    run(*command)
    run(*command, "--force")
    (tmp_path / "class 0" / "0.png").rename(os.fsdecode(os.fsencode(tmp_path / "class 0") + b"/caf\xe9.png"))
    assert "1 of 12" in refused(capsys, *command, "--force")
    run(*command, "--force", "--on-bad", "drop")
    assert len(Catalog.read(tmp_path / "catalog.parquet")) == 11


def test_an_output_that_cannot_be_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, "prepare", "glyphs", "--out", tmp_path / "file" / "glyphs.parquet")


def test_evaluating_an_unfinished_run_is_refused(
    small_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(small_recipe, epochs=1).write(tmp_path / "recipe.yaml")
    assert "training has finished" in refused(capsys, "evaluate", tmp_path)


def test_unknown_key_in_a_recipe_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("loss: {proxies_per_clas: 3}")
    message = refused(capsys, "train", "--recipe", tmp_path / "mine.yaml", "--run", tmp_path / "run")
    assert "did you mean 'loss.proxies_per_class'?" in message


@pytest.mark.parametrize("command", [[], ["--help"], ["prepare"], ["prepare", "--help"]])
def test_help_lists_the_choices(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run(*command)
    printed = capsys.readouterr().out
    assert ("cub200" if "prepare" in command else "evaluate") in printed


def test_help_documents_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("train", "--help")
    assert stopped.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("how many proxies each training class owns", "learning rate of the proxies", "generalised mean"):
        assert words in printed


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Somebody's own loop pays for torch alone; so does --help of all commands."""
    code = "import sys, proxygml, proxygml.cli.main; print([name for name in sys.argv[1:] if name in sys.modules])"
    heavy = ["accelerate", "faiss", "matplotlib", "pandas", "sklearn", "scipy", "timm", "fastapi"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_and_embedding_load_the_libraries_of_backbones_only_where_they_need_them() -> None:
    """They take as long to load as all else together."""
    modules = "proxygml.training.trainer, proxygml.models.embed_images, proxygml.gallery.build"
    code = f"import sys, {modules}; print([name for name in sys.argv[1:] if name in sys.modules])"
    heavy = ["torchvision", "timm", "torch._dynamo", "pytorch_metric_learning", "matplotlib", "sklearn"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
