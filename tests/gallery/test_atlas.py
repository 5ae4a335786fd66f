"""`embed --columns atlas`: coordinates, neighbours and thumbnails beside the vectors, for tools that show them."""

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from proxygml import Gallery, embed, index
from proxygml.data.vectors.file import VectorFile
from proxygml.errors import UserError
from proxygml.gallery import atlas
from tests.helpers.commands import refused, run
from tests.helpers.models import untrained
from tests.helpers.pictures import write_picture
from tests.helpers.vectors import blocks, clustered, items

Capture = pytest.CaptureFixture[str]
ADDED = ["projection_x", "projection_y", "neighbors", "thumbnail"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("atlas") / "run")


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """40 images with labels."""
    paths = [write_picture(tmp_path / f"{number}.png", number) for number in range(40)]
    table = pd.DataFrame({"path": [path.name for path in paths], "label": [f"c{n % 4}" for n in range(40)]})
    table.assign(split="test").to_csv(tmp_path / "catalog.csv", index=False)
    return tmp_path / "catalog.csv"


def test_pandas_finds_vectors_coordinates_neighbours_and_pictures(model: Path, catalog: Path, tmp_path: Path) -> None:
    """Embedding Atlas and most others read Parquet by pandas: types of Arrow's own must not get in its way."""
    run("embed", model, "--catalog", catalog, "--out", tmp_path / "v.parquet", "--columns", "atlas", "--workers", 0)
    table = pd.read_parquet(tmp_path / "v.parquet")
    assert table.columns.tolist() == ["path", "label", "split", *ADDED, "embedding"]
    assert table["label"].tolist() == [f"c{n % 4}" for n in range(40)]
    points = table[["projection_x", "projection_y"]].to_numpy()
    assert points.min() == 0
    assert points.max() == 1
    vectors = np.stack(table["embedding"])
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -2)
    for row, found in enumerate(table["neighbors"]):
        assert len(found["ids"]) == 15
        assert np.allclose(1 - found["distances"], np.sort(similarity[row])[::-1][:15], atol=1e-5)
        assert np.allclose(1 - found["distances"], similarity[row, found["ids"]], atol=1e-5)
    with Image.open(io.BytesIO(table["thumbnail"][0])) as picture:
        assert (picture.format, max(picture.size)) == ("JPEG", 96)
    assert sorted(path.name for path in tmp_path.iterdir() if "v.parquet" in path.name) == ["v.parquet"]


@pytest.mark.parametrize("count", [1, 2])
def test_of_one_image_or_two_the_types_are_the_same(count: int, model: Path, catalog: Path, tmp_path: Path) -> None:
    few = [catalog.parent / f"{number}.png" for number in range(count)]
    file = embed(model, tmp_path / "few.parquet", images=few, columns="atlas", workers=0)
    many = embed(model, tmp_path / "many.parquet", catalog=catalog, columns="atlas", workers=0)
    kinds = [pq.read_schema(path).field("neighbors").type for path in (file.path, many.path)]
    assert kinds[0] == kinds[1]
    found = pd.read_parquet(file.path)
    assert [each["ids"].tolist() for each in found["neighbors"]] == [[], [1], [0]][count == 2 :][:count]
    assert found[["projection_x", "projection_y"]].notna().all(axis=None)


def test_row_numbers_skip_images_that_cannot_be_read(model: Path, catalog: Path, tmp_path: Path) -> None:
    (catalog.parent / "3.png").write_bytes(b"no image")
    shutil.copy(catalog.parent / "20.png", catalog.parent / "30.png")
    embed(model, tmp_path / "v.parquet", catalog=catalog, columns="atlas", workers=0, on_bad="drop")
    table = pd.read_parquet(tmp_path / "v.parquet")
    assert Path(table["path"][19]).name == "20.png"
    assert table["neighbors"][19]["ids"][0] == 29
    assert table["neighbors"][19]["distances"][0] == pytest.approx(0, abs=1e-6)


def test_many_items_are_compared_by_an_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vectors = clustered(1100)
    monkeypatch.setattr(atlas, "EXACT", 1000)
    parts = [
        table for _, table in atlas.with_map_columns(
            lambda: blocks(vectors, items(1100)), 1100, tmp_path / "work", pictures=False
        )
    ]  # fmt: skip
    assert not (tmp_path / "work").exists()
    found = np.stack([each["ids"] for table in parts for each in table["neighbors"]])
    exact = Gallery.create(vectors, items(1100)).search(vectors, 15, exclude=np.arange(1100)).ids
    hits = [len(np.intersect1d(*pair)) for pair in zip(found, exact, strict=True)]
    assert np.mean(hits) / 15 > 0.9


def test_what_is_added_stays_out_of_galleries_and_is_made_anew(model: Path, catalog: Path, tmp_path: Path) -> None:
    embed(model, tmp_path / "v.parquet", catalog=catalog, columns="atlas", workers=0)
    assert index(model, tmp_path / "g", vectors=tmp_path / "v.parquet").columns == ["path", "label", "split"]
    again = embed(model, tmp_path / "w.parquet", vectors=tmp_path / "v.parquet", columns="atlas", dtype="float16")
    pd.testing.assert_frame_equal(
        pd.read_parquet(again.path)[ADDED[:2]], pd.read_parquet(tmp_path / "v.parquet")[ADDED[:2]], atol=1e-3
    )
    assert pd.read_parquet(again.path)["thumbnail"].equals(pd.read_parquet(tmp_path / "v.parquet")["thumbnail"])
    assert next(VectorFile(again.path).blocks())[1].columns.tolist() == ["path", "label", "split"]


def test_mistakes_are_named_before_anything_is_embedded(
    model: Path, catalog: Path, tmp_path: Path, capsys: Capture
) -> None:
    given = ["embed", model, "--catalog", catalog, "--columns", "atlas", "--out"]
    for options, message in (
        ([tmp_path / "v.parquet", "--dtype", "binary"], "cannot read vectors as binary: take float32 or float16"),
        ([tmp_path / "v.npy"], r"v.npy ends with .npy, but must be the name of a .parquet file"),
        ([tmp_path / "parts", "--ray"], "--columns atlas needs all vectors together"),
        ([tmp_path / "v.parquet", "--columns", "atlass"], "atlas"),
    ):
        assert message in " ".join(refused(capsys, *given, *options).split())
    with pytest.raises(UserError, match="columns is 'map', but must be one of plain, atlas"):
        embed(model, tmp_path / "v.parquet", catalog=catalog, columns="map")  # type: ignore[arg-type]
    pd.read_csv(catalog).assign(neighbors=1).to_csv(catalog, index=False)
    with pytest.raises(UserError, match="a column 'neighbors' already"):
        embed(model, tmp_path / "v.parquet", catalog=catalog, columns="atlas")
    with pytest.raises(UserError, match="takes images, not vectors"):
        embed(model, tmp_path / "v.parquet", vectors=tmp_path / "w.parquet")
    assert not list(tmp_path.glob("*v.parquet*"))
