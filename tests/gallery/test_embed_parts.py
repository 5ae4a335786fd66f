"""Embedding in many processes by Ray: the vectors of one process, each once, whoever is killed."""

import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from proxygml.cli.main import main
from proxygml.data.vectors.file import VectorFile
from proxygml.errors import GalleryError
from proxygml.gallery import Gallery
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.remote import names_in
from proxygml.training.recipe import Recipe
from proxygml.urls import Url
from tests.helpers.object_store import put
from tests.helpers.ray_workers import killing_one
from tests.helpers.runs import contents

pytestmark = pytest.mark.xdist_group("ray")
PARTS = ("--ray", "--part_rows", "16", "--batch_size", "8", "--workers", "1")


@pytest.fixture(scope="module")
def run(small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed") / "run"
    folder.mkdir()
    ImageEmbedder(small_recipe.embedder, small_recipe.images).save(folder)
    return folder


@pytest.fixture(scope="module")
def photos(small_catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 images, and one that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for path in sorted(small_catalog.parent.glob("*.png"))[:72]:
        shutil.copy(path, folder)
    (folder / "03_z.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def alone(run: Path, photos: Path) -> pd.DataFrame:
    """The vectors of one process, with as many threads as Ray gives to one that takes one processor."""
    out, threads = run.parent / "alone.parquet", torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        main(["embed", str(run), "--images", str(photos), "--out", str(out), "--on_bad", "drop", *PARTS[3:5]])
    finally:
        torch.set_num_threads(threads)
    return table_of(out)


def table_of(place: Path) -> pd.DataFrame:
    return pd.concat(
        [table.assign(vector=list(vectors)) for vectors, table in VectorFile(place).blocks()], ignore_index=True
    )


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """The same images in the same order, with the same vectors to the bit."""
    assert one["path"].tolist() == other["path"].tolist()
    assert np.array_equal(np.stack(one["vector"].tolist()), np.stack(other["vector"].tolist()))


def test_a_killed_process_loses_nothing_and_nothing_comes_twice(
    ray: Any, run: Path, photos: Path, alone: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first command is stopped by an unreadable image, after all others are embedded; the second goes on."""
    out = tmp_path / "vectors"
    words = ["embed", str(run), "--images", str(photos), "--out", str(out), *PARTS]
    with killing_one(lambda: any(out.glob("part-*"))) as killed, pytest.raises(SystemExit):
        main(words)
    assert killed, "the command ended before a process could be killed"
    assert "1 of 73 images cannot be embedded" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(GalleryError, match="is not finished"):
        VectorFile(out)
    written = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    main([*words, "--on_bad", "drop"])
    assert "57 of 73 images were embedded already" in capsys.readouterr().err.replace("\n", " ")
    assert sum(path.stat().st_mtime_ns != before for path, before in written.items()) == 1, "whole parts were redone"
    assert_same(table_of(out), alone)
    bad = pq.read_table(out / "unreadable.parquet").to_pylist()
    assert [row["path"] for row in bad] == [str(photos / "03_z.png")]
    assert "is no image" in bad[0]["problem"]
    assert sorted(path.name[:5] for path in out.iterdir()) == ["part-"] * 5 + ["parts", "unrea"]
    main(["index", str(run), "--vectors", str(out), "--out", str(tmp_path / "gallery")])
    assert Gallery.load(tmp_path / "gallery").items["path"].tolist() == alone["path"].tolist()


def test_from_an_object_store_into_an_object_store(
    ray: Any,
    s3: str,
    run: Path,
    photos: Path,
    alone: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped by an unreadable image, then continued: the vectors of files, each once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images, model, out = (Url(f"s3://parts/{name}") for name in ("photos", "run", "vectors"))
    put(images, contents(photos))
    put(model, contents(run))
    words = ["embed", model, "--images", images, "--out", out, *PARTS]
    with pytest.raises(SystemExit):
        main(words)
    assert "1 of 73 images cannot be embedded (s3://parts/photos/03_z.png)" in _said(capsys)
    with pytest.raises(GalleryError, match="s3://parts/vectors is not finished"):
        VectorFile(out)
    main([*words, "--on_bad", "drop"])
    assert "57 of 73 images were embedded already" in _said(capsys)
    found = table_of(out)
    assert_same(found.assign(path=[str(photos / path.rpartition("/")[2]) for path in found["path"]]), alone)
    assert [name[:5] for name in names_in(out)] == ["part-"] * 5 + ["parts", "unrea"]
    assert VectorFile(out).rows == 72
    main(["index", model, "--vectors", out, "--out", str(tmp_path / "gallery")])
    assert Gallery.load(tmp_path / "gallery").items["path"].tolist() == found["path"].tolist()
    with pytest.raises(SystemExit):
        main(words)
    assert "s3://parts/vectors is already there" in _said(capsys)


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("option", ["run", "--images", "--out", "--catalog"])
def test_what_lies_in_the_memory_of_one_process_is_named(
    run: Path, photos: Path, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before Ray is started."""
    url = put("memory://parts", contents(run) | contents(photos))
    put(url, {"c.csv": b"path,label,split\n03_0.png,a,test\n"})
    words = {"run": str(run), "--images": str(photos), "--out": str(tmp_path / "out")}
    if option == "--catalog":
        del words["--images"]
    words[option] = f"{url}/c.csv" if option == "--catalog" else f"{url}/new" if option == "--out" else url
    with pytest.raises(SystemExit):
        main(["embed", words.pop("run"), *chain(*words.items()), "--ray"])
    assert "memory:// lies within one process, and those of Ray do not see it" in _said(capsys)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_left_alone(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before Ray is started."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "parts.json").write_text("{}")
    for name, message in (
        ("file", "is a file, but --ray writes a folder"),
        ("mine", "holds something else, such as notes.txt"),
        ("done", "is already there"),
    ):
        with pytest.raises(SystemExit):
            main(["embed", str(run), "--images", str(photos), "--out", str(tmp_path / name), "--ray"])
        assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_folder_of_another_program_is_read_in_the_order_of_names(alone: pd.DataFrame, run: Path) -> None:
    """With parts that are empty, and paths relative to the folder."""
    folder = run.parent / "parts"
    folder.mkdir()
    whole = pq.read_table(run.parent / "alone.parquet")
    for number, (start, end) in enumerate(((0, 0), (0, 10), (10, 10), (10, 72))):
        pq.write_table(whole.slice(start, end - start), folder / f"{number}.parquet")
    assert_same(table_of(folder), alone)
    assert (VectorFile(folder).rows, VectorFile(folder).dimension) == (72, 16)
    (folder / "0.parquet").rename(folder / "9.txt")
    (folder / "4.parquet").write_bytes(b"no table")
    with pytest.raises(GalleryError, match=r"4.parquet cannot be read as Parquet"):
        table_of(folder)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(GalleryError, match="there is no Parquet file in"):
        VectorFile(folder)


@pytest.mark.usefixtures("alone")
def test_a_part_that_is_missing_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "parts.json").write_text('{"key": "0123abcd", "parts": 2, "rows": 4, "unreadable": 0}')
    shutil.copy(run.parent / "alone.parquet", tmp_path / "part-00000-0123abcd.parquet")
    with pytest.raises(GalleryError, match=r"lacks 1 part of its 2 \(part-00001-0123abcd.parquet\)"):
        VectorFile(tmp_path)
    (tmp_path / "parts.json").write_text('{"key": "../../etc", "parts": 2, "rows": 4, "unreadable": 0}')
    with pytest.raises(GalleryError, match="key"):
        VectorFile(tmp_path)
