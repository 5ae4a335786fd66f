"""Vectors in a Parquet file, and what is no such file."""

from pathlib import Path

import numpy as np
import pandas as pd
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
