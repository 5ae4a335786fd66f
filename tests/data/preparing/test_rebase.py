"""Catalogs and files of vectors whose images were moved."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxygml.data.catalog import Catalog
from proxygml.data.preparing.rebase import rebase_catalog
from proxygml.data.vectors.file import VectorFile, write_vectors
from proxygml.errors import CatalogError, UserError
from tests.helpers.commands import refused, run

Capture = pytest.CaptureFixture[str]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_table(path: Path, paths: list[str], separator: str = ",") -> Path:
    table = pd.DataFrame({"path": paths, "label": "007", "split": "train", "note": "NA"})
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False, sep=separator)
    return path


def paths_of(path: Path) -> list[str]:
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, sep=None, engine="python")
    return list(table["path"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_images_of_a_catalog_are_found_where_they_were_moved(tmp_path: Path, suffix: str, capsys: Capture) -> None:
    """Absolute and relative paths change alike; all else of the table stays as it is."""
    home, old, new = tmp_path / "home", tmp_path / "photos", tmp_path / "disk" / "photos"
    touch(new / "a" / "1.jpg", new / "2.jpg", home / "own.jpg", tmp_path / "photos2" / "3.jpg")
    given = [f"{old}/a/1.jpg", "../photos/2.jpg", "own.jpg", "../photos2/3.jpg"]
    catalog = write_table(home / f"c{suffix}", given)
    before = Catalog.read(catalog).table
    run("prepare", "--rebase", old, new, "--out", catalog)
    assert f"2 of 4 paths changed: {catalog}" in " ".join(capsys.readouterr().out.split())
    assert paths_of(catalog) == [f"{new}/a/1.jpg", f"{new}/2.jpg", "own.jpg", "../photos2/3.jpg"]
    read = Catalog.read(catalog)
    assert all(path.is_file() for path in read.paths)
    pd.testing.assert_frame_equal(read.table.drop(columns="path"), before.drop(columns="path"))
    elsewhere = tmp_path / "deeper" / "still" / f"again{suffix}"
    elsewhere.parent.mkdir(parents=True)
    read.write(elsewhere)
    assert all(path.is_file() for path in Catalog.read(elsewhere).paths)
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("given", "old", "new", "expected"),
    [
        ("photos/a.jpg", "photos", "pictures", "pictures/a.jpg"),
        ("photos/a.jpg", "{here}/photos", "{here}/disk/pictures", "disk/pictures/a.jpg"),
        ("./photos/a.jpg", "photos/", "pictures/", "pictures/a.jpg"),
        ("photos/a.jpg", "{here}/photos", "/mnt/p", "/mnt/p/a.jpg"),
        ("{here}/photos/a.jpg", "{here}/photos", "{here}/pictures", "{here}/pictures/a.jpg"),
        ("s3://bucket/p/a.jpg", "s3://bucket/p", "/mnt/p", "/mnt/p/a.jpg"),
        ("C:\\photos\\x\\a.jpg", "C:\\photos", "/mnt/p", "/mnt/p/x/a.jpg"),
        ("a.jpg", "{here}", "/mnt/p", "/mnt/p/a.jpg"),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_the_old_folder_may_be_given_in_any_way(
    tmp_path: Path, given: str, old: str, new: str, expected: str, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the root, from the working folder, or as the table has it. Relative paths stay so below the catalog."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here if inside else tmp_path)
    if not inside and "/" not in new.rstrip("/"):
        new = f"here/{new}"  # a new folder is relative to the working one
    catalog = write_table(here / "c.csv", [given.format(here=here)])
    rebase_catalog(catalog, old.format(here=here), new.format(here=here))
    assert paths_of(catalog) == [expected.format(here=here)]


def test_a_catalog_under_a_link_is_found_by_both_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for old in (tmp_path / "real" / "photos", tmp_path / "link" / "photos"):
        catalog = write_table(tmp_path / "link" / "c.csv", ["photos/a.jpg"])
        rebase_catalog(catalog, str(old), str(tmp_path / "real" / "pictures"))
        assert paths_of(catalog) == ["pictures/a.jpg"]


def test_a_table_keeps_its_form(tmp_path: Path) -> None:
    for encoding, separator in (("utf-8", ";"), ("utf-16", "\t")):
        table = tmp_path / "t.csv"
        text = " path ;label;split;article\nold/ä.jpg;NA;Train;00123\n;x;;\n".replace(";", separator)
        table.write_bytes(text.encode(encoding))
        assert rebase_catalog(table, "old", str(tmp_path / "new"))[:2] == (2, 1)
        assert table.read_bytes().decode(encoding).splitlines() == text.replace("old/", "new/").splitlines()


def test_a_file_of_vectors_keeps_its_model_and_its_vectors(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    items = pd.DataFrame({"path": ["/old/a.jpg", "/old/b.jpg", None], "photo_id": [2**60 + 1, 2, 3]})
    write_vectors(tmp_path / "v.parquet", [(vectors, items)], model="abc", run="/runs/1")
    schema = pq.read_schema(tmp_path / "v.parquet")
    assert rebase_catalog(tmp_path / "v.parquet", "/old", "/new") == (3, 2, ["/new/a.jpg", "/new/b.jpg"])
    file = VectorFile(tmp_path / "v.parquet")
    assert (file.model, file.run) == ("abc", "/runs/1")
    assert pq.read_schema(tmp_path / "v.parquet").equals(schema, check_metadata=True)
    ((found, table),) = file.blocks()
    assert np.array_equal(found, vectors)
    assert [None if pd.isna(path) else path for path in table["path"]] == ["/new/a.jpg", "/new/b.jpg", None]
    assert table["photo_id"].tolist() == [2**60 + 1, 2, 3]


def test_a_file_of_many_row_groups_is_copied_as_it_is(tmp_path: Path) -> None:
    columns = {
        "path": [f"/old/{row}.jpg" for row in range(10)],
        "n": range(10),
        "v": [[float(row)] for row in range(10)],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=4, compression="ZSTD")
    before = pq.read_metadata(tmp_path / "t.parquet")
    rebase_catalog(tmp_path / "t.parquet", "/old", "/new")
    after = pq.read_metadata(tmp_path / "t.parquet")
    for one in (before, after):
        assert [one.row_group(group).num_rows for group in range(3)] == [4, 4, 2]
        assert {one.row_group(0).column(column).compression for column in range(3)} == {"ZSTD"}
    found = pq.read_table(tmp_path / "t.parquet").to_pydict()
    assert found == columns | {"path": [f"/new/{row}.jpg" for row in range(10)], "n": list(range(10))}
    pq.write_table(pa.table(columns).slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(CatalogError, match="they have no paths"):
        rebase_catalog(tmp_path / "none.parquet", "/old", "/new")


def test_other_types_of_text_stay(tmp_path: Path) -> None:
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table({"path": pa.array(["/old/a.jpg", "/b.jpg"]).cast(kind), "n": [1, None]})
        pq.write_table(table, tmp_path / "t.parquet")
        before = pq.read_schema(tmp_path / "t.parquet")
        rebase_catalog(tmp_path / "t.parquet", "/old", "/new")
        after = pq.read_table(tmp_path / "t.parquet")
        assert after.schema.field("n") == before.field("n")
        assert after.column("path").to_pylist() == ["/new/a.jpg", "/b.jpg"]


def test_what_cannot_be_rebased_is_named_and_stays(tmp_path: Path, capsys: Capture) -> None:
    catalog = write_table(tmp_path / "c.csv", ["/old/a.jpg"])
    before = catalog.read_bytes()
    with pytest.raises(CatalogError, match=r"c\.csv: no item lies below /none: one is /old/a\.jpg"):
        rebase_catalog(catalog, "/none", "/new")
    with pytest.raises(UserError, match="takes two folders"):
        rebase_catalog(catalog, "", "/new")
    with pytest.raises(UserError, match="NEW of --rebase is s3://bucket/p, but only paths on this machine"):
        rebase_catalog(catalog, "/old", "s3://bucket/p")
    with pytest.raises(CatalogError, match=r"there is no .*none\.csv"):
        rebase_catalog(tmp_path / "none.csv", "/old", "/new")
    with pytest.raises(CatalogError, match="ends with"):
        rebase_catalog(tmp_path / "c.xlsx", "/old", "/new")
    assert catalog.read_bytes() == before
    (tmp_path / "other.csv").write_text("file,label\n/old/a.jpg,x\n")
    assert "has no column 'path', but file, label" in refused(
        capsys, "prepare", "--rebase", "/old", "/new", "--out", tmp_path / "other.csv"
    )
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    assert "damaged.parquet" in refused(
        capsys, "prepare", "--rebase", "/a", "/b", "--out", tmp_path / "damaged.parquet"
    )
    assert "--out must be given" in refused(capsys, "prepare", "--rebase", "/old", "/new")


def test_files_that_are_not_there_are_counted(tmp_path: Path, capsys: Capture) -> None:
    touch(tmp_path / "new" / "a.jpg")
    catalog = write_table(tmp_path / "c.csv", ["old/a.jpg", "old/b.jpg", "old/c.jpg"])
    run("prepare", "--rebase", tmp_path / "old", tmp_path / "new", "--out", catalog)
    assert "warning: 2 files not found at the new place: new/b.jpg, new/c.jpg" in " ".join(
        capsys.readouterr().err.split()
    )
