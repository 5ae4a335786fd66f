"""From vectors to answers: embed, index, search and cluster with a model of vectors."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxygml import Embedder, Gallery, cluster, embed, index, search
from proxygml.data.catalog import Catalog
from proxygml.data.vectors.codes import Dtype
from proxygml.data.vectors.file import VectorFile
from proxygml.errors import GalleryError, UserError
from proxygml.gallery.build import add_items
from proxygml.gallery.clusters.settings import ClusterSettings
from proxygml.gallery.source import Model, Source
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.vector_embedder import VectorEmbedder
from proxygml.training.run_folder import RunFolder
from tests.helpers.commands import refused
from tests.helpers.commands import run as command
from tests.helpers.vector_files import SIZE, labelled_vectors, write_file

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("f") / "features.parquet", *labelled_vectors())


def test_embedding_a_file_keeps_its_columns(run: RunFolder, features: Path, tmp_path: Path) -> None:
    file = embed(run.path, tmp_path / "out.parquet", vectors=features)
    ((found, table),) = file.blocks()
    assert np.allclose(found, Embedder.load(run.path).embed(labelled_vectors()[0]), atol=1e-6)
    assert table["id"].tolist() == [f"s{row}" for row in range(480)]
    assert file.model == Model.of(run.path).fingerprint
    np.save(tmp_path / "f.npy", labelled_vectors()[0])
    other = embed(run.path, tmp_path / "other.parquet", vectors=tmp_path / "f.npy")
    assert np.allclose(next(other.blocks())[0], found, atol=1e-6)


def test_coordinates_and_neighbours_are_added_to_vectors(run: RunFolder, features: Path, tmp_path: Path) -> None:
    file = embed(run.path, tmp_path / "out.parquet", vectors=features, columns="atlas", dimensions=4)
    table = pd.read_parquet(file.path)
    assert table.columns.tolist()[-4:] == ["projection_x", "projection_y", "neighbors", "embedding"]
    vectors = np.stack(table["embedding"])
    nearest = (vectors @ vectors.T - 3 * np.eye(480)).max(axis=1)
    assert np.allclose([1 - found["distances"][0] for found in table["neighbors"]], nearest, atol=1e-5)
    assert table["id"].tolist() == [f"s{row}" for row in range(480)]


def test_one_gallery_comes_of_vectors_before_and_after_the_model(
    run: RunFolder, features: Path, tmp_path: Path
) -> None:
    embed(run.path, tmp_path / "embedded.parquet", vectors=features)
    raw = index(run.path, tmp_path / "raw", vectors=features)
    embedded = index(run.path, tmp_path / "done", vectors=tmp_path / "embedded.parquet")
    ids = np.arange(480)
    assert np.allclose(raw.vectors(ids), embedded.vectors(ids), atol=1e-6)
    pd.testing.assert_frame_equal(raw.items, embedded.items)
    assert raw.items["item_id"].tolist() == [f"s{row}" for row in range(480)]
    answers = search(raw, vectors=features, k=3, leave_out_itself=True)
    assert (answers.result.ids != ids[:, None]).all()
    labels = np.array(labelled_vectors()[1])
    assert (labels[answers.result.ids[:, 0]] == labels).mean() > 0.5
    assert answers.queries.names[:2] == ["s0", "s1"]


def test_items_without_label_and_path_are_shown_by_their_own_columns(
    run: RunFolder, tmp_path: Path, capsys: Capture
) -> None:
    vectors, labels = labelled_vectors()
    table = {"shelf": [f"shelf of {label}" for label in labels], "embedding": list(vectors)}
    pd.DataFrame(table).to_parquet(tmp_path / "f.parquet")
    index(run.path, tmp_path / "g", vectors=tmp_path / "f.parquet")
    np.save(tmp_path / "query.npy", vectors[:1])
    command("search", tmp_path / "g", "--vectors", tmp_path / "query.npy", "--k", 1)
    assert f"shelf of {labels[0]}" in capsys.readouterr().out


def test_ranks_and_ids_are_shown_whole_lists_by_their_parts_and_bytes_as_text(
    run: RunFolder, tmp_path: Path, capsys: Capture
) -> None:
    vectors = labelled_vectors()[0][:20]
    np.save(tmp_path / "query.npy", vectors[7:8])
    tags = [["red", "round"]] * 10 + [None] * 10
    pd.DataFrame({"embedding": list(vectors)}).to_parquet(tmp_path / "bare.parquet")
    pd.DataFrame({"tags": tags, "embedding": list(vectors)}).to_parquet(tmp_path / "tags.parquet")
    pd.DataFrame({"code": [b"caf\xc3\xa9 \xff"] * 20, "embedding": list(vectors)}).to_parquet(tmp_path / "code.parquet")
    for name, shown in (
        ("bare", ["1", "1.000", "7"]),
        ("tags", ["1", "1.000", "red, round", "7"]),
        ("code", ["1", "1.000", "café \\xff", "7"]),
    ):
        index(run.path, tmp_path / name, vectors=tmp_path / f"{name}.parquet")
        command("search", tmp_path / name, "--vectors", tmp_path / "query.npy", "--k", 1)
        found = [cell.strip() for cell in capsys.readouterr().out.splitlines()[4].strip("\u2502").split("\u2502")]
        assert found == shown


def test_a_catalog_of_vectors_is_indexed_by_its_split(run: RunFolder, catalog: Path, tmp_path: Path) -> None:
    gallery = index(run.path, tmp_path / "g", catalog=catalog, split="test")
    assert len(gallery) == 240
    assert set(gallery.items["split"]) == {"test"}


def test_a_file_of_vectors_alone_passes_through_all_commands(run: RunFolder, tmp_path: Path, capsys: Capture) -> None:
    """Its only column is `embedding`: there is nothing else to keep."""
    pd.DataFrame({"embedding": list(labelled_vectors()[0][:30])}).to_parquet(tmp_path / "new.parquet")
    command("embed", run.path, "--vectors", tmp_path / "new.parquet", "--out", tmp_path / "new_8.parquet")
    assert pd.read_parquet(tmp_path / "new_8.parquet").columns.tolist() == ["embedding"]
    for name in ("new", "new_8"):
        command("index", run.path, "--vectors", tmp_path / f"{name}.parquet", "--out", tmp_path / name)
        command("search", tmp_path / name, "--vectors", tmp_path / "new.parquet", "--k", "1")
        assert "row 0" in capsys.readouterr().out
    command(
        "cluster", run.path, "--vectors", tmp_path / "new_8.parquet", "--out", tmp_path / "c", "--num-clusters", "3"
    )
    assert len(pd.read_csv(tmp_path / "c" / "clusters.csv")) == 30


def test_the_runs_own_table_given_as_vectors_has_its_held_out_classes(
    run: RunFolder, catalog: Path, features: Path, tmp_path: Path, capsys: Capture
) -> None:
    index(run.path, tmp_path / "v", vectors=catalog)
    assert "there are 40 images of 2 validation classes" in " ".join(capsys.readouterr().err.split())
    table = pd.read_parquet(features).rename(columns={"product": "label"})
    table.to_parquet(tmp_path / "other.parquet")
    assert index(run.path, tmp_path / "o", vectors=tmp_path / "other.parquet").manifest.threshold is None
    assert f"are of another table, {catalog}" in "".join(capsys.readouterr().err.splitlines())


def test_items_are_added_once_and_replaced_where_they_changed(run: RunFolder, features: Path, tmp_path: Path) -> None:
    vectors, labels = labelled_vectors()
    gallery = index(run.path, tmp_path / "g", vectors=features)
    vectors[3] *= -1
    write_file(tmp_path / "changed.parquet", vectors, labels)
    done = add_items(gallery, Model.of(run.path), Source.of(vectors=tmp_path / "changed.parquet"))
    assert done == (0, 479, 1)
    assert len(Gallery.load(tmp_path / "g")) == 480


def test_vectors_are_clustered_into_a_table_alone(run: RunFolder, features: Path, tmp_path: Path) -> None:
    found = cluster(run.path, tmp_path / "c", ClusterSettings(num_clusters=24), vectors=features)
    table = pd.read_csv(tmp_path / "c" / "clusters.csv")
    assert len(table) == len(found.codes) == 480
    assert not (tmp_path / "c" / "sheets").exists()
    assert table.groupby("cluster")["product"].nunique().median() <= 2


def test_clusters_of_vectors_are_said_to_be_of_vectors(
    run: RunFolder, features: Path, catalog: Path, tmp_path: Path, capsys: Capture
) -> None:
    for source in (("--vectors", features), ("--catalog", catalog)):
        command("cluster", run.path, *source, "--out", tmp_path / "c", "--num-clusters", "24", "--force")
        assert "480 vectors in 24 clusters" in capsys.readouterr().out


def test_items_of_a_split_are_named_by_their_rows_in_the_whole_table(
    run: RunFolder, catalog: Path, tmp_path: Path
) -> None:
    table = pd.read_parquet(catalog).drop(columns=["path", "id"], errors="ignore")
    table.to_parquet(tmp_path / "bare.parquet")
    settings = ClusterSettings(num_clusters=12)
    cluster(run.path, tmp_path / "c", settings, catalog=tmp_path / "bare.parquet", split="test")
    names = pd.read_csv(tmp_path / "c" / "clusters.csv")["item"]
    assert set(names) == {f"row {row}" for row in np.flatnonzero(table["split"] == "test")}


def test_a_null_among_the_vectors_is_named_and_nothing_is_written(run: RunFolder, tmp_path: Path) -> None:
    cells: list[object] = [[1.0] * SIZE] * 30_000
    cells[20_001] = None
    table = {"id": list(range(30_000)), "embedding": pa.array(cells, pa.list_(pa.float32()))}
    pq.write_table(pa.table(table), tmp_path / "f.parquet")
    for action in (
        lambda: embed(run.path, tmp_path / "out.parquet", vectors=tmp_path / "f.parquet"),
        lambda: index(run.path, tmp_path / "g", vectors=tmp_path / "f.parquet"),
    ):
        with pytest.raises(GalleryError, match=r"no vector in row 20001 \(id 20001\)"):
            action()
    assert not (tmp_path / "out.parquet").exists()
    with pytest.raises(GalleryError):
        Gallery.load(tmp_path / "g")


def test_what_does_not_fit_the_model_is_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes vectors, not images"):
        embed(run.path, tmp_path / "out.parquet", images=tmp_path)
    vectors, labels = labelled_vectors()
    write_file(tmp_path / "f.parquet", vectors[:, :5].copy(), labels)
    with pytest.raises(GalleryError, match="size 5, but the model takes 12"):
        embed(run.path, tmp_path / "out.parquet", vectors=tmp_path / "f.parquet")
    assert VectorFile(tmp_path / "f.parquet").dimension == 5


@pytest.mark.parametrize(("dtype", "kind", "size", "least"), [
    ("float16", pa.float16(), 8, 0.9999), ("int8", pa.int8(), 8, 0.9995), ("binary", pa.uint8(), 1, 0.6)
])  # fmt: skip
def test_vectors_in_fewer_bytes_come_back(
    dtype: Dtype, kind: pa.DataType, size: int, least: float, run: RunFolder, features: Path, tmp_path: Path
) -> None:
    """`index` and `search` take them; the columns stay."""
    exact = next(embed(run.path, tmp_path / "exact.parquet", vectors=features).blocks())[0]
    file = embed(run.path, tmp_path / "coded.parquet", vectors=features, dtype=dtype)
    assert pq.read_schema(file.path).field("embedding").type == pa.list_(kind, size)
    assert (file.rows, file.dimension, file.model) == (480, 8, Model.of(run.path).fingerprint)
    ((found, table),) = file.blocks()
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    assert np.quantile((unit * exact).sum(axis=1), 0.05) > least
    assert table["id"].tolist() == [f"s{row}" for row in range(480)]
    if dtype == "binary":
        assert np.array_equal(np.sign(found), np.where(exact > 0, 1, -1))
    gallery = index(run.path, tmp_path / "g", vectors=file.path)
    assert np.allclose(gallery.vectors([0, 479]), unit[[0, 479]], atol=1e-6)
    assert search(gallery, vectors=features, k=1).result.ids.shape == (480, 1)
    assert search(gallery, vectors=file.path, k=1).result.scores.min() > 0.99


def test_sizes_that_are_no_whole_bytes_come_back_from_bits(run: RunFolder, features: Path, tmp_path: Path) -> None:
    exact = next(embed(run.path, tmp_path / "exact.parquet", vectors=features, dimensions=5).blocks())[0]
    file = embed(run.path, tmp_path / "bits.parquet", vectors=features, dimensions=5, dtype="binary")
    assert file.dimension == 5
    assert np.array_equal(np.sign(next(file.blocks())[0]), np.where(exact > 0, 1, -1))


def test_damaged_codes_are_named(run: RunFolder, features: Path, tmp_path: Path, capsys: Capture) -> None:
    file = embed(run.path, tmp_path / "coded.parquet", vectors=features, dtype="int8")
    whole = pq.read_table(file.path)
    place = whole.schema.get_field_index("embedding")

    def changed(numbers: list[object], facts: bytes | None = None) -> Path:
        cells = [*numbers, *whole["embedding"].to_pylist()[len(numbers) :]]
        table = whole.set_column(place, "embedding", pa.array(cells, whole.schema.field(place).type))
        pq.write_table(table.replace_schema_metadata({b"proxygml": facts} if facts else whole.schema.metadata), out)
        return out

    out = tmp_path / "changed.parquet"
    numbers: tuple[tuple[list[object], str], ...] = (
        ([None], "no vector in row 0 (id s0)"),
        ([[1] * 8, [0] * 8], "nothing but zeros in row 1"),
        ([[1] * 7 + [None]], "a missing number in row 0"),
    )
    for rows, message in numbers:
        path = changed(rows)
        assert message in refused(capsys, "index", run.path, "--vectors", path, "--out", tmp_path / "g")
    for facts, message in (
        (b'{"dtype": "int4"}', "coded as 'int4', which this version does not know"),
        (b'{"dtype": "int8"}', "states int8 codes of 0 numbers"),
        (b'{"dtype": "int8", "dimension": 9}', "states int8 codes of 9 numbers"),
        (b'{"dtype": "binary", "dimension": 64}', "states binary codes of 64 numbers"),
        (b'{"dtype": "int8", "dimension": "8"}', "states int8 codes of 0 numbers"),
        (b"[]", "its metadata is damaged"),
        (b"{}", "expected lists of floats"),
    ):
        path = changed([], facts)
        assert message in refused(capsys, "index", run.path, "--vectors", path, "--out", tmp_path / "g")
    assert "which `index` and `search` read" in refused(
        capsys,
        "prepare",
        "vectors",
        "--root",
        file.path,
        "--label",
        "product",
        "--test-classes",
        "half",
        "--out",
        tmp_path / "p.parquet",
    )
    assert not (tmp_path / "g").exists()


def test_embed_and_index_read_a_catalog_in_blocks(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read no whole table, whose memory would grow with its rows; and the results are those of the whole one."""
    whole = Catalog.read(catalog)
    assert whole.vectors is not None
    size, run = whole.vectors.size, tmp_path / "run"
    run.mkdir()
    VectorEmbedder(EmbedderSettings("vectors", "none", embedding_size=size, head="residual"), size).save(run)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole catalog is read")

    monkeypatch.setattr(Catalog, "read", refuse)
    for split in ("all", "test"):
        rows = whole if split == "all" else whole.split(split)
        file = embed(run, tmp_path / f"{split}.parquet", catalog=catalog, split=split)
        assert [label for _, table in file.blocks() for label in table["label"]] == rows.labels
        gallery = index(run, tmp_path / split, catalog=catalog, split=split)
        assert gallery.items["label"].tolist() == rows.labels
