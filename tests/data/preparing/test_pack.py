"""Images in packed shards: the same bytes, catalog, losses and vectors as from single files."""

from dataclasses import replace
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow.parquet as pq
import pytest

from proxygml.cli.main import main
from proxygml.data.catalog import Catalog
from proxygml.data.images import packed
from proxygml.data.images.decode import read_file
from proxygml.data.images.image_list import file_stamps
from proxygml.data.preparing import pack
from proxygml.data.preparing.pack import pack_images
from proxygml.errors import ImageError
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import resume
from tests.helpers.launch import finish
from tests.helpers.runs import assert_same_run, metrics, train


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards and row groups of a few images, and room for a few of them."""
    monkeypatch.setattr(pack, "GROUP_BYTES", 6_000)
    monkeypatch.setattr(packed, "KEPT_BYTES", 20_000)
    monkeypatch.setattr(packed, "OPEN_SHARDS", 2)


@pytest.fixture
def packed_catalog(small_catalog: Path, small_pieces: None, tmp_path: Path) -> Path:
    """The small catalog, its images in several shards."""
    catalog = pack_images(Catalog.read(small_catalog), tmp_path / "small.packed", shard_bytes=60_000)
    catalog.write(tmp_path / "small.parquet")
    return tmp_path / "small.parquet"


def test_packed_images_are_the_files_in_the_order_of_the_catalog(small_catalog: Path, packed_catalog: Path) -> None:
    single, together = Catalog.read(small_catalog), Catalog.read(packed_catalog)
    assert together.fingerprint == single.fingerprint
    assert [read_file(path) for path in together.paths] == [path.read_bytes() for path in single.paths]
    shards = sorted((packed_catalog.parent / "small.packed").iterdir())
    assert len(shards) > 3
    assert min(pq.read_metadata(shard).num_row_groups for shard in shards[:-1]) > 3
    names = [name for shard in shards for name in pq.read_table(shard, columns=["name"])["name"].to_pylist()]
    by_class = single.table.sort_values(["split", "label"], kind="stable")
    assert names == list(by_class["path"]), "the images of a class lie together"


def test_losses_are_those_of_single_files_and_a_run_resumes(
    small_recipe: Recipe, packed_catalog: Path, tmp_path: Path
) -> None:
    """Step by step: class-balanced batches, random crops, and a stop between two epochs."""
    recipe = replace(small_recipe, images_per_class=2, epochs=2)
    together = replace(recipe, catalog=str(packed_catalog), workers=1)
    one, other = train(recipe, tmp_path / "one"), train(together, tmp_path / "other")
    assert_same_run(one, other)
    stopped = train(replace(together, epochs=1), tmp_path / "stopped")
    together.write(stopped.recipe)
    resume(stopped)
    pd.testing.assert_series_equal(metrics(stopped)["loss"], metrics(one)["loss"], check_exact=True)


def test_two_processes_train_on_packed_images_as_on_single_files(
    small_recipe: Recipe, packed_catalog: Path, tmp_path: Path
) -> None:
    runs = []
    for name, path in (("one", small_recipe.catalog), ("other", packed_catalog)):
        catalog = Catalog.read(path).split("train")  # no test rows: this is about training
        catalog.write(catalog.folder / f"{name}.parquet")
        recipe = replace(small_recipe, catalog=str(catalog.folder / f"{name}.parquet"), images_per_class=2, epochs=1)
        replace(recipe, batch_norm="frozen").write(tmp_path / f"{name}.yaml")
        finish(2, "train", "--recipe", tmp_path / f"{name}.yaml", "--run", tmp_path / name)
        runs.append(RunFolder(tmp_path / name))
    assert_same_run(*runs)


def test_prepare_packs_and_what_follows_takes_the_shards(
    small_catalog: Path, tmp_path: Path, small_recipe: Recipe
) -> None:
    """The single files are gone by then. A second call changes nothing."""
    photos = tmp_path / "photos"
    for name, label in Catalog.read(small_catalog).table[["path", "label"]].itertuples(index=False):
        (photos / label).mkdir(parents=True, exist_ok=True)
        (photos / label / name).write_bytes((small_catalog.parent / name).read_bytes())
    words = ["prepare", "folder", "--root", str(photos), "--test_classes", "half"]
    main([*words, "--out", str(tmp_path / "single.csv")])
    main([*words, "--out", str(tmp_path / "packed.csv"), "--pack"])
    single, together = (Catalog.read(tmp_path / f"{name}.csv") for name in ("single", "packed"))
    assert together.fingerprint == single.fingerprint
    shard = tmp_path / "packed.packed" / "shard-00000.parquet"
    written = shard.stat().st_mtime_ns
    main([*words, "--out", str(tmp_path / "packed.csv"), "--pack", "--force"])
    assert shard.stat().st_mtime_ns == written, "a shard of the same images was written again"
    embedder = ImageEmbedder(small_recipe.embedder, small_recipe.images).eval()
    expected = embedder.embed(single.paths)
    photos.rename(tmp_path / "gone")
    assert embedder.embed(together.paths).equal(expected)
    main(["prepare", "--rebase", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "packed.csv")])


def test_shards_are_read_from_a_store(small_catalog: Path, packed_catalog: Path) -> None:
    """In few reads, and each of a row group."""
    store = fsspec.filesystem("memory")
    for file in (packed_catalog.parent / "small.packed").glob("*.parquet"):
        store.pipe_file(f"/packed/small.packed/{file.name}", file.read_bytes())
    store.pipe_file("/packed/small.parquet", packed_catalog.read_bytes())
    catalog = Catalog.read("memory://packed/small.parquet")
    assert [read_file(path) for path in catalog.paths] == [
        path.read_bytes() for path in Catalog.read(small_catalog).paths
    ]
    assert file_stamps([str(path) for path in catalog.paths[:2]]).all()


def test_paths_that_name_no_packed_image_are_named(packed_catalog: Path) -> None:
    shard = packed_catalog.parent / "small.packed" / "shard-00000.parquet"
    rows = pq.read_metadata(shard).num_rows
    for path, message in (
        (shard / str(rows) / "a.png", f"has {rows} images, but the path names row {rows}"),
        (shard.with_name("shard-99999.parquet") / "0" / "a.png", "cannot be read"),
        (shard / "a.png", "cannot be read"),
    ):
        with pytest.raises(ImageError, match=message):
            read_file(path)
    shard.write_bytes(b"no Parquet")
    packed._readers.clear()
    with pytest.raises(ImageError, match=r"shard-00000.parquet cannot be read .*: pack the images again"):
        read_file(shard / "0" / "a.png")
    packed_stamp, own = file_stamps([str(shard / "0" / "a.png"), str(shard)])
    assert packed_stamp == own != 0
