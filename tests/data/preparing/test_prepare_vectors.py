"""From files of vectors to a catalog: what is kept, what is named, what is refused."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxygml.data.catalog import Catalog
from proxygml.data.preparing.prepare import prepare
from proxygml.data.vectors.source import VectorSource
from proxygml.errors import CatalogError, DatasetError, UserError
from tests.helpers.vector_files import SIZE, labelled_vectors, write_file

HALF = {"label": "product", "test_classes": "half"}


def prepared(root: Path, out: Path, **options: object) -> Catalog:
    return prepare("vectors", root, out, options=HALF | options)


def vectors_in(catalog: Catalog) -> npt.NDArray[np.floating]:
    assert catalog.vectors is not None
    return catalog.vectors.mapped()[catalog.table["embedding_row"]]


@pytest.mark.parametrize(("given", "kept"), [("float16", "float16"), ("float32", "float32"), ("float64", "float32")])
def test_vectors_come_into_the_catalog_with_all_columns(given: str, kept: str, tmp_path: Path) -> None:
    vectors, labels = labelled_vectors()
    write_file(tmp_path / "f.parquet", vectors.astype(given), labels, price=list(range(len(labels))))
    catalog = prepared(tmp_path / "f.parquet", tmp_path / "out" / "c.parquet")
    assert catalog.counts["train"] == catalog.counts["test"] == (240, 12)
    assert vectors_in(catalog).dtype == kept
    assert np.array_equal(vectors_in(catalog), vectors.astype(given).astype(kept))
    assert catalog.table["price"].tolist() == list(range(len(labels)))
    assert catalog.labels == labels
    test = catalog.split("test")
    assert np.array_equal(vectors_in(test), vectors.astype(given).astype(kept)[np.array(labels) >= "c12"])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_npy_file_with_a_table_gives_the_same_catalog(ending: str, tmp_path: Path) -> None:
    vectors, labels = labelled_vectors()
    write_file(tmp_path / "f.parquet", vectors, labels)
    np.save(tmp_path / "f.npy", vectors)
    table = pd.DataFrame({"product": labels, "id": [f"s{row}" for row in range(len(labels))]})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    one = prepared(tmp_path / "f.parquet", tmp_path / "one.parquet")
    other = prepared(tmp_path / f"t.{ending}", tmp_path / "other.parquet", vectors=tmp_path / "f.npy")
    pd.testing.assert_frame_equal(one.table, other.table)
    assert np.array_equal(vectors_in(one), vectors_in(other))
    assert one.fingerprint == other.fingerprint


def test_a_fingerprint_changes_with_the_vectors(tmp_path: Path) -> None:
    vectors, labels = labelled_vectors()
    prints = []
    for number, scale in enumerate((1, 2)):
        write_file(tmp_path / f"{number}.parquet", scale * vectors, labels)
        prints.append(prepared(tmp_path / f"{number}.parquet", tmp_path / f"c{number}.parquet").fingerprint)
    assert prints[0] != prints[1]


def with_paths(vectors: npt.NDArray[np.floating], path: Path) -> Catalog:
    """A catalog whose rows have an image and a vector each."""
    labels = labelled_vectors()[1]
    split = ["train" if label < "c12" else "test" for label in labels]
    table = {"path": [f"{row}.jpg" for row in range(len(labels))], "label": labels, "split": split}
    pd.DataFrame(table).assign(embedding=[None if np.isnan(v[0]) else v for v in vectors]).to_parquet(path)
    return Catalog.read(path)


def test_catalogs_of_the_same_images_with_other_vectors_have_other_fingerprints(tmp_path: Path) -> None:
    """Such as the vectors of two models; a model of vectors has seen nothing else."""
    vectors, _ = labelled_vectors()
    one, same = (with_paths(vectors, tmp_path / f"{name}.parquet") for name in ("one", "same"))
    other = with_paths(-vectors, tmp_path / "other.parquet")
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.split("test").fingerprint != other.split("test").fingerprint
    assert one.with_table(one.table[:0]).fingerprint == other.with_table(other.table[:0]).fingerprint  # of no rows
    mixed = one.table.sample(frac=1, random_state=0)
    shuffled = [catalog.with_table(mixed).fingerprint for catalog in (one, same, other)]
    assert shuffled[0] == shuffled[1] not in (shuffled[2], one.fingerprint)
    for catalog in (one, other):  # as a model reads them
        before = catalog.fingerprint, catalog.with_table(mixed).fingerprint
        vectors_in(catalog)
        assert (catalog.fingerprint, catalog.with_table(mixed).fingerprint) == before


def test_a_bad_vector_does_not_concern_who_reads_the_images_beside_it(tmp_path: Path) -> None:
    vectors = labelled_vectors()[0].copy()
    vectors[0] = vectors[7] = np.nan
    catalog = with_paths(vectors, tmp_path / "c.parquet")
    assert len(catalog.fingerprint) == 12
    with pytest.raises(CatalogError, match="no vector in row 0"):
        vectors_in(catalog)


def bad_file(path: Path) -> Path:
    vectors, labels = labelled_vectors()
    cells: list[object] = [list(map(float, vector)) for vector in vectors]
    named: list[str | None] = list(labels)
    cells[5], cells[7], cells[9], cells[11] = None, cells[7][:3], [np.nan] * SIZE, [0.0] * SIZE  # type: ignore[index]
    cells[13], cells[15], named[20] = [None, *([1.0] * (SIZE - 1))], [np.inf] * SIZE, None
    names = [f"s{row}" for row in range(len(labels))]
    table = {"product": named, "id": names, "embedding": pa.array(cells, pa.list_(pa.float32()))}
    pq.write_table(pa.table(table), path)
    return path


def test_every_bad_row_is_named_by_row_and_id_and_left_out_on_demand(tmp_path: Path) -> None:
    root = bad_file(tmp_path / "bad.parquet")
    with pytest.raises(DatasetError) as caught:
        prepared(root, tmp_path / "c.parquet")
    expected = {
        5: "no vector",
        7: "a vector of 3 numbers instead of 12",
        9: "a NaN",
        11: "nothing but zeros",
        13: "a missing number",
        15: "an infinite or too large number",
        20: "no label",
    }
    for row, problem in expected.items():
        assert f"has {problem} (row {row} (id s{row}))" in str(caught.value)
    assert not (tmp_path / "c.parquet").exists()
    catalog = prepare("vectors", root, tmp_path / "c.parquet", options=HALF, on_bad="drop")
    dropped = pd.read_csv(tmp_path / "c.dropped.csv")
    assert dropped["path"].tolist() == [f"row {row} (id s{row})" for row in expected]
    good = [row for row in range(480) if row not in expected]
    assert catalog.table["id"].tolist() == [f"s{row}" for row in good]
    assert np.array_equal(vectors_in(catalog), labelled_vectors()[0][good])


def test_a_catalog_with_a_bad_vector_is_refused_when_its_vectors_are_read(tmp_path: Path) -> None:
    source = VectorSource(bad_file(tmp_path / "bad.parquet"))
    for _ in range(2):  # nothing half-written is taken for good the second time
        with pytest.raises(CatalogError, match=r"no vector in row 5 \(id s5\)"):
            source.mapped()


def _without_vectors(folder: Path) -> Path:
    pd.DataFrame({"product": ["a", "b"]}).to_parquet(folder / "f.parquet")
    return folder / "f.parquet"


def _alike(folder: Path) -> Path:
    return write_file(folder / "f.parquet", np.ones((8, 4), np.float32), list("aabbccdd"))


def _one_class(folder: Path) -> Path:
    return write_file(folder / "f.parquet", labelled_vectors(8)[0], ["a"] * 8)


def _each_of_its_own_class(folder: Path) -> Path:
    return write_file(folder / "f.parquet", labelled_vectors(8)[0], list("abcdefgh"))


def _unlabelled(folder: Path) -> Path:
    return write_file(folder / "f.parquet", labelled_vectors(4)[0], [None] * 4)  # type: ignore[list-item]


def _empty_cells(folder: Path) -> Path:
    cells = pa.array([None, None], pa.list_(pa.float32()))
    pq.write_table(pa.table({"product": ["a", "b"], "embedding": cells}), folder / "f.parquet")
    return folder / "f.parquet"


def _no_rows(folder: Path) -> Path:
    vectors = pa.array([], pa.list_(pa.float32(), 4))
    pq.write_table(pa.table({"product": pa.array([], pa.string()), "embedding": vectors}), folder / "f.parquet")
    return folder / "f.parquet"


def _misspelt_split(folder: Path) -> Path:
    return write_file(folder / "f.parquet", *labelled_vectors(8), split=["train", "tset"] * 4)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (_no_rows, {}, "f.parquet has no rows"),
        (_without_vectors, {}, "no column 'embedding' of vectors"),
        (_alike, {}, "all 8 vectors are the same"),
        (_one_class, {}, "one class only.* label items of more classes, or let fewer classes test"),
        (_unlabelled, {}, "no label at all"),
        (_empty_cells, {}, "every cell is empty"),
        (_alike, {"label": "products"}, "did you mean 'product'"),
        (_alike, {"column": "embeddings"}, "did you mean 'embedding'"),
        (_alike, {"column": "product"}, "expected lists of floats, one vector a row: convert it, to float32 for"),
        (_misspelt_split, {"test_classes": None}, "f.parquet: has the split 'tset' in row.* did you mean 'test'"),
        (_alike, {"test_classes": None}, "4 classes: say which are for testing"),
        (
            lambda folder: folder / "none.parquet",
            {},
            "none.parquet: give --root the .parquet file of your",
        ),
        (_each_of_its_own_class, {}, "no query of the test split has another vector of its class"),
    ],
)
def test_what_cannot_be_prepared_is_named(
    make: object, options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        prepared(make(tmp_path), tmp_path / "c.parquet", **options)  # type: ignore[operator]
    assert not (tmp_path / "c.parquet").exists()


def test_a_table_as_it_came_is_no_catalog_and_its_own_columns_are_named(tmp_path: Path) -> None:
    file = write_file(tmp_path / "f.parquet", *labelled_vectors(8))
    with pytest.raises(CatalogError, match=r"has no column 'label'; .* choose one of product, id$"):
        Catalog.read(file)


def test_a_table_of_another_length_and_a_csv_catalog_are_refused(tmp_path: Path) -> None:
    vectors, labels = labelled_vectors()
    np.save(tmp_path / "f.npy", vectors)
    pd.DataFrame({"product": labels[:-1]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DatasetError, match="479 rows, but .* 480 vectors"):
        prepared(tmp_path / "t.csv", tmp_path / "c.parquet", vectors=tmp_path / "f.npy")
    with pytest.raises(DatasetError, match="--vectors"):
        prepared(tmp_path / "f.npy", tmp_path / "c.parquet")
    with pytest.raises(CatalogError, match=r"\.parquet"):
        prepared(tmp_path / "t.csv", tmp_path / "c.csv", vectors=tmp_path / "f.npy")


def test_copies_of_another_class_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors, labels = labelled_vectors()
    vectors[1], vectors[24] = vectors[0], vectors[0]  # of another class, and of the same
    prepared(write_file(tmp_path / "f.parquet", vectors, labels), tmp_path / "c.parquet")
    assert "of 480 vectors, 2 equal another one, and are kept; 1 of them" in capsys.readouterr().err


def test_a_catalog_of_vectors_is_written_again_in_any_order(tmp_path: Path) -> None:
    vectors, labels = labelled_vectors()
    catalog = prepared(write_file(tmp_path / "f.parquet", vectors, labels), tmp_path / "c.parquet")
    order = np.random.default_rng(0).permutation(len(labels))[:100]
    catalog.with_table(catalog.table.iloc[order]).write(tmp_path / "some.parquet")
    again = Catalog.read(tmp_path / "some.parquet")
    assert np.array_equal(vectors_in(again), vectors[order])
    assert again.labels == [labels[row] for row in order]
