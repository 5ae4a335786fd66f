"""The same images from a folder, from fsspec's memory and from an S3 server give the same results, to the bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proxygml import Gallery, embed, index, search
from proxygml.data.catalog import Catalog
from proxygml.data.preparing.prepare import prepare
from proxygml.data.vectors.file import VectorFile
from proxygml.training.recipe import Recipe
from proxygml.urls import as_place
from tests.helpers.commands import run as command
from tests.helpers.models import untrained
from tests.helpers.object_store import put
from tests.helpers.runs import assert_same_run, contents, train


@pytest.fixture(scope="module")
def photos(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small catalog's images as train/class/image and test/class/image."""
    folder = tmp_path_factory.mktemp("photos")
    catalog = Catalog.read(few)
    for row, path in zip(catalog.table.itertuples(), catalog.paths, strict=True):
        target = folder / str(row.split) / str(row.label) / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(path).read_bytes())
    return folder


def names_below(paths: pd.Series, folder: object) -> list[str]:
    return [str(path).removeprefix(str(folder)).strip("/") for path in paths]


def prepared(root: object, out: Path) -> Catalog:
    command("prepare", "folder", "--root", root, "--out", out)
    return Catalog.read(out)


def test_a_catalog_of_a_folder(photos: Path, store: str, tmp_path: Path) -> None:
    put(store, contents(photos) | {"Thumbs.db": b"x", ".hidden/a.png": b"x"})
    here, there = prepared(photos, tmp_path / "here.csv"), prepared(store, tmp_path / "there.csv")
    assert names_below(here.table["path"].map(lambda path: str((tmp_path / path).resolve())), photos) == names_below(
        there.table["path"], store
    )
    assert set(there.table["path"].str[: len(store)]) == {store}
    columns = ["label", "split"]
    pd.testing.assert_frame_equal(here.table[columns], there.table[columns])
    assert here.fingerprint == there.fingerprint


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_run(few: Path, small_recipe: Recipe, store: str, tmp_path: Path, workers: int) -> None:
    put(store, contents(few.parent))
    settings = replace(small_recipe, catalog=str(few), epochs=2, batch_size=8, validation_classes=0.25, workers=workers)
    here = train(settings, tmp_path / "here")
    there = train(replace(settings, catalog=f"{store}/few.parquet"), tmp_path / "there")
    assert_same_run(here, there)


def test_vectors_and_answers_of_a_gallery(few: Path, store: str, tmp_path: Path) -> None:
    put(store, contents(few.parent))
    run = untrained(tmp_path / "run")
    here = embed(run, tmp_path / "here.parquet", images=few.parent, workers=0)
    there = embed(run, f"{store}.parquet", images=store, workers=0)
    catalog = embed(run, tmp_path / "catalog.parquet", catalog=f"{store}/few.parquet", workers=0)
    expected, found, of_catalog = (block_of(file) for file in (here, there, catalog))
    assert np.array_equal(expected[0], found[0]) and np.array_equal(expected[0], of_catalog[0])
    assert names_below(expected[1]["path"], few.parent) == names_below(found[1]["path"], store)
    assert found[1]["path"].tolist() == of_catalog[1]["path"].tolist()
    one = index(run, tmp_path / "one", vectors=here.path)
    other = index(run, tmp_path / "other", vectors=f"{store}.parquet")
    queries = few.parent, f"{store}/0_0.png"
    answers = [search(gallery, query, 5, workers=0) for gallery in (one, other) for query in queries]
    assert np.array_equal(answers[0].result.scores, answers[2].result.scores)
    assert np.array_equal(answers[0].result.ids, answers[2].result.ids)
    for answer in answers[1::2]:
        assert answer.result.ids[0].tolist() == answers[0].result.ids[0].tolist()
    assert len(Gallery.load(tmp_path / "other")) == len(found[1])


def block_of(file: VectorFile) -> tuple[np.ndarray, pd.DataFrame]:
    parts = list(file.blocks())
    return np.concatenate([vectors for vectors, _ in parts]), pd.concat([t for _, t in parts], ignore_index=True)


def test_an_index_of_a_catalog_takes_what_has_changed(few: Path, store: str, tmp_path: Path) -> None:
    images = contents(few.parent)
    put(store, images)
    run, gallery = untrained(tmp_path / "run"), tmp_path / "gallery"
    command("index", run, "--images", store, "--out", gallery, "--workers", 0)
    put(store, {"0_0.png": images["0_1.png"], "new.png": images["5_3.png"] + b" "})
    command("index", "--add", "--images", store, "--out", gallery, "--workers", 0)
    items = Gallery.load(gallery).items
    assert len(items) == len(images) and f"{store}/new.png" in set(items["path"])
    ids = [int(items.index[items["path"] == f"{store}/{name}"][0]) for name in ("0_0.png", "0_1.png")]
    np.testing.assert_allclose(*Gallery.load(gallery).vectors(ids), rtol=0, atol=1e-6)


def test_vectors_of_your_own(store: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"label": np.repeat([f"c{n}" for n in range(8)], 6)})
    table["embedding"] = list(random.normal(size=(48, 8)).astype(np.float32))
    table.to_parquet(tmp_path / "v.parquet")
    put(store, {"v.parquet": (tmp_path / "v.parquet").read_bytes()})
    options = {"test_classes": "half"}
    here = prepare("vectors", tmp_path / "v.parquet", tmp_path / "here.parquet", options=options)
    there = prepare("vectors", f"{store}/v.parquet", tmp_path / "there.parquet", options=options)
    assert (tmp_path / "here.parquet").read_bytes() == (tmp_path / "there.parquet").read_bytes()
    assert here.fingerprint == there.fingerprint
    assert as_place(store, "a place") == store


def test_smaller_copies(photos: Path, store: str, tmp_path: Path) -> None:
    put(store, contents(photos))
    here = prepare("folder", photos, tmp_path / "here.csv", resize=12)
    there = prepare("folder", store, tmp_path / "there.csv", resize=12)
    for one, other in zip(here.paths, there.paths, strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()


def test_a_table(few: Path, store: str, tmp_path: Path) -> None:
    put(store, contents(few.parent))
    Catalog.read(few).write(few.parent / "copy.csv", force=True)
    (tmp_path / "t.csv").write_bytes((few.parent / "copy.csv").read_bytes())
    command("prepare", "table", "--root", tmp_path / "t.csv", "--images", store, "--out", tmp_path / "c.csv")
    found = Catalog.read(tmp_path / "c.csv")
    assert [str(path) for path in found.paths] == [f"{store}/{path}" for path in Catalog.read(few).table.path]
    command("prepare", "table", "--root", f"{store}/few.parquet", "--out", tmp_path / "d.csv")
    assert (tmp_path / "c.csv").read_bytes() == (tmp_path / "d.csv").read_bytes()
