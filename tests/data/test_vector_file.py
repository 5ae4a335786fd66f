"""Vectors in a Parquet file, and what is no such file."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxygml.data.vector_file import VectorFile, write_vectors
from proxygml.errors import GalleryError, OverwriteError


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
    for name, message in (("t", "no column of vectors"), ("n", "cannot be read"), ("x", "there is no")):
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
        ([1.0], "a vector of 1 numbers"),
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
