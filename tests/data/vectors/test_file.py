"""Vectors in a Parquet file, and what is no such file."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxygml.data.vectors.file import VectorFile, write_vectors
from proxygml.data.vectors.source import VectorSource
from proxygml.errors import CatalogError, GalleryError, OverwriteError, UserError


def test_vectors_come_back_from_parquet_as_they_were(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    table = pd.DataFrame({"path": [f"{n}.png" for n in range(10)], "label": [None, *"abcdefghi"]})
    blocks = [(vectors[:6], table[:6]), (vectors[6:], table[6:])]
    write_vectors(tmp_path / "v.parquet", blocks, model="m", run="r")
    file = VectorFile(tmp_path / "v.parquet")
    assert (file.model, file.run, file.dimension) == ("m", "r", 4)
    read = list(file.blocks())
    assert np.array_equal(np.concatenate([part for part, _ in read]), vectors)
    pd.testing.assert_frame_equal(pd.concat([part for _, part in read], ignore_index=True), table)
    assert list(pd.read_parquet(tmp_path / "v.parquet").columns) == ["path", "label", "embedding"]
    with pytest.raises(OverwriteError):
        write_vectors(tmp_path / "v.parquet", blocks, model="m", run="r")
    table.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "n.parquet").write_text("no")
    for name, message in (("t", "no column 'embedding' of vectors"), ("n", "cannot be read"), ("x", "there is no")):
        with pytest.raises(GalleryError, match=message):
            VectorFile(tmp_path / f"{name}.parquet")


def test_whole_numbers_come_back_exactly_where_some_are_missing(tmp_path: Path) -> None:
    ids = [1450000000000000001, None, 1450000000000000003]
    table = pd.DataFrame({"photo_id": pd.array(ids, "Int64"), "sold": pd.array([True, None, False], "boolean")})
    write_vectors(tmp_path / "v.parquet", [(np.eye(3, 4, dtype=np.float32), table)], model="m", run="r")
    written = pq.read_table(tmp_path / "v.parquet")
    own = {b"proxygml": written.schema.metadata[b"proxygml"]}  # and not pandas', which other programs do not write
    pq.write_table(written.replace_schema_metadata(own), tmp_path / "v.parquet")
    ((_, read),) = VectorFile(tmp_path / "v.parquet").blocks()
    assert [None if pd.isna(value) else value for value in read["photo_id"]] == ids
    assert [None if pd.isna(value) else value for value in read["sold"]] == [True, None, False]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float16())])
def test_vectors_that_other_programs_have_written_are_read(kind: pa.DataType, tmp_path: Path) -> None:
    """pandas reads and writes lists of any length for our lists of one length."""
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float16)
    table = pa.table({"embedding": pa.array(list(map(list, vectors)), kind), "path": list("abcde")})
    pq.write_table(table, tmp_path / "v.parquet")
    file = VectorFile(tmp_path / "v.parquet")
    ((read, items),) = file.blocks()
    assert (file.dimension, read.dtype, items["path"].tolist()) == (4, np.float32, list("abcde"))
    assert np.array_equal(read, vectors.astype(np.float32))


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        (None, "no vector"),
        ([1.0], "a vector of 1 number instead of"),
        ([], "a vector of 0"),
        ([1.0, None, 2.0], "a missing number"),
    ],
)
def test_a_row_without_a_vector_is_named(cell: list[float] | None, found: str, tmp_path: Path) -> None:
    cells = pa.array([[1.0, 2.0, 3.0], cell], pa.list_(pa.float32()))
    pq.write_table(pa.table({"embedding": cells}), tmp_path / "v.parquet")
    with pytest.raises(GalleryError, match=f"{found}.* in row 1"):
        list(VectorFile(tmp_path / "v.parquet").blocks())


def test_a_missing_vector_of_ours_is_named(tmp_path: Path) -> None:
    cells = pa.array([[1.0, 2.0, 3.0], None], pa.list_(pa.float32(), 3))
    pq.write_table(pa.table({"embedding": cells}), tmp_path / "v.parquet")
    with pytest.raises(GalleryError, match="no vector in row 1"):
        list(VectorFile(tmp_path / "v.parquet").blocks())


FLOATS = pa.list_(pa.float32())


def write_lists(path: Path, kind: pa.DataType = FLOATS, **changes: object) -> Path:
    """Three vectors of four numbers with a label each, as another program may write them."""
    vectors = pa.array([[1, 2, 3, 4]] * 3, kind)
    pq.write_table(pa.table({"label": ["a", "b", "c"], "embedding": vectors, **changes}), path)
    return path


def with_two_columns(path: Path) -> None:
    vectors = pq.read_table(write_lists(path))["embedding"]
    pq.write_table(pa.Table.from_arrays([vectors, vectors], ["embedding", "embedding"]), path)


def with_damaged_pages(path: Path) -> None:
    labels = pa.array(["a" * 1000, "b" * 1000, "c" * 1000])
    content = bytearray(write_lists(path, label=labels).read_bytes())
    content[100:200] = b"\xff" * 100
    path.write_bytes(content)


def with_facts(facts: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pq.write_table(pq.read_table(write_lists(path)).replace_schema_metadata({b"proxygml": facts}), path)

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (os.mkfifo, "a folder, a device or a pipe"),
        (lambda path: path.mkdir(), "there is no Parquet file in"),
        (lambda path: path.symlink_to("/dev/zero"), "a folder, a device or a pipe"),
        (with_two_columns, "has 2 columns 'embedding'"),
        (lambda path: write_lists(path, pa.list_(pa.int64())), "has list<element: int64> in its column 'embedding'"),
        (with_damaged_pages, "is damaged"),
        *((with_facts(facts), "metadata is damaged") for facts in (b"no", b"[1]", b"null", b'{"model": 3}', b"\xff")),
    ],
)
def test_files_that_cannot_be_vectors_are_named(write: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    write(path)
    with pytest.raises(UserError, match=message) as refused:
        file = VectorFile(path)
        assert file.model == "" and file.dimension == 4
        list(file.blocks())
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("index", ["path", None])
def test_an_index_of_pandas_is_a_column(index: str | None, tmp_path: Path) -> None:
    table = pd.DataFrame({"path": ["a", "b", "c"], "tags": [["x"]] * 3, "embedding": [[1.0, 2.0]] * 3})
    (table[1:] if index is None else table.set_index(index)).to_parquet(tmp_path / "v.parquet")
    ((_, read),) = VectorFile(tmp_path / "v.parquet").blocks()
    assert {name: read[name].tolist() for name in read} == {
        "path": ["b", "c"] if index is None else ["a", "b", "c"],
        "tags": [["x"]] * len(read),
    }


def test_a_column_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    table = pd.DataFrame({"label": ["a", "b"], "mixed": [[("a", 1)], {"b": b"c"}]})
    with pytest.raises(CatalogError, match="the column 'mixed' cannot be stored"):
        write_vectors(tmp_path / "v.parquet", [(np.eye(2, dtype=np.float32), table)], model="m", run="r")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["pipe", "archive", "none"])
def test_arrays_that_cannot_be_vectors_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "archive":
        with path.open("wb") as file:
            np.savez(file, np.eye(2))
    else:
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"v\.npy"):
        VectorFile(path)


def test_reading_holds_a_small_part_of_the_file_in_memory(tmp_path: Path) -> None:
    """A row group of all rows, and many of them."""
    vectors = np.random.default_rng(0).standard_normal((200_000, 64), np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 64)
    for rows in (200_000, 20_000):
        pq.write_table(
            pa.table({"embedding": lists}), tmp_path / "f.parquet", row_group_size=rows, use_dictionary=False
        )
        before = pa.total_allocated_bytes()
        held = max(pa.total_allocated_bytes() - before for _ in VectorSource(tmp_path / "f.parquet").blocks())
        assert held < 25e6  # of 51 MB; a part of 16,384 vectors has 4 MB
