"""The catalog reads what it promises, refuses the rest by name, and writes what it has read."""

from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxygml.data.catalog.catalog import Catalog, Count, check_splits
from proxygml.errors import CatalogError, OverwriteError
from tests.helpers.catalogs import catalog_of


def csv(folder: Path, text: str) -> Path:
    path = folder / "catalog.csv"
    path.write_text(text)
    return path


def test_text_stays_text(tmp_path: Path) -> None:
    names = ["007", "NA", "null", "1.0", "True", "é"]
    rows = "".join(f"{number}.jpg,{name},train\n" for number, name in enumerate(names))
    catalog = Catalog.read(csv(tmp_path, "path,label,split\n" + rows))
    assert catalog.labels == names
    assert catalog.classes == sorted(names)
    assert catalog.paths[1] == tmp_path / "1.jpg"
    assert catalog.boxes is None


OWN = {
    "article": ["00123", "7", ""],
    "code": ["12E4", "1.10", "0x1F"],
    "state": ["NA", "None", "nan"],
    "photo_id": ["1450000000000000001", "", str(2**64)],
    "sold": ["true", "False", " yes "],
    "text": ['a "b", c', "line\nend", "é"],
}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_of_a_csv_that_are_not_ours_stay_as_the_file_has_them(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame({"path": ["a.jpg", "b.jpg", "c.jpg"], "label": "x", "split": "train"} | OWN)
    table.to_csv(tmp_path / "mine.csv", index=False)
    catalog = Catalog.read(tmp_path / "mine.csv")
    catalog.write(tmp_path / f"again{suffix}")
    for found in (catalog, Catalog.read(tmp_path / f"again{suffix}")):
        assert {name: found.table[name].tolist() for name in OWN} == OWN


def test_whole_numbers_of_a_parquet_file_stay_whole_where_some_are_missing(tmp_path: Path) -> None:
    columns = {
        "photo_id": pa.array([1450000000000000001, None, 7], pa.int64()),
        "large": pa.array([2**64 - 1, None, 0], pa.uint64()),
        "sold": pa.array([True, None, False]),
        "count": pa.array([2**53 + 1, 0, 1], pa.int64()),
    }
    pq.write_table(
        pa.table({"path": list("abc"), "label": list("xxy"), "split": ["train"] * 3} | columns), tmp_path / "c.parquet"
    )
    Catalog.read(tmp_path / "c.parquet").write(tmp_path / "again.parquet")
    table = Catalog.read(tmp_path / "again.parquet").table
    for name, column in columns.items():
        assert [None if pd.isna(value) else value for value in table[name]] == column.to_pylist(), name


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".PARQUET"])
def test_what_is_written_reads_the_same_from_another_folder(tmp_path: Path, suffix: str) -> None:
    catalog = Catalog.read(
        csv(
            tmp_path,
            "path,label,split,x_1,y_1,x_2,y_2,is_query,is_gallery,note\n"
            "a/1.jpg,007,train,,,,,,,good\n"
            "../b/2.jpg,NA,test,1,2,30,40,True,False,\n"
            "/elsewhere/3.jpg,NA,test,0.5,0.5,9.5,9.5,False,True,x\n",
        )
    )
    target = tmp_path / "deep" / "er" / f"catalog{suffix}"
    catalog.write(target)
    again = Catalog.read(target)
    columns = ["label", "split", "x_1", "y_1", "x_2", "y_2", "is_query", "is_gallery", "note"]
    pd.testing.assert_frame_equal(again.table[columns], catalog.table[columns])
    assert [path.resolve() for path in again.paths] == [path.resolve() for path in catalog.paths]
    assert again.boxes is not None
    assert again.boxes.dtype == np.int64
    assert again.boxes.tolist() == [[0, 0, 0, 0], [1, 2, 30, 40], [0, 0, 10, 10]]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rules_of_evaluation_are_read_and_written(tmp_path: Path, suffix: str) -> None:
    catalog = Catalog.read(
        csv(
            tmp_path,
            "path,label,split,sequence,camera,is_junk,is_distractor\n"
            "1.jpg,a,train,,,,\n2.jpg,b,test,007,c1,False,0\n3.jpg,b,test,,2,true,1\n4.jpg,b,test,NA,2,0,False\n",
        )
    )
    catalog.write(tmp_path / f"again{suffix}")
    for found in (catalog, Catalog.read(tmp_path / f"again{suffix}")):
        rules = found.split("test").rules
        assert [value or None for value in rules["sequence"]] == ["007", None, "NA"]
        assert rules["camera"] == ["c1", "2", "2"]
        assert rules["is_junk"].tolist() == [False, True, False]
        assert rules["is_distractor"].tolist() == [False, True, False]
        assert found.fingerprint == catalog.fingerprint
    changed = Catalog(catalog.table.assign(camera="c9"), catalog.folder)
    assert changed.fingerprint != catalog.fingerprint


def test_a_fingerprint_of_images_stays_what_rows_of_comparisons_have_kept(tmp_path: Path) -> None:
    table = {"path": ["a/1.jpg", "a/2.jpg", "b/3.jpg"], "label": ["a", "a", "b"], "split": ["train", "train", "test"]}
    assert Catalog(pd.DataFrame(table), tmp_path).fingerprint == "ec0ca650a4f3"


def test_whole_numbers_of_a_sequence_stay_whole_where_some_are_missing(tmp_path: Path) -> None:
    for values in ([2**53 + 1, None, 2**53 + 1], [1.0, np.nan, 1.0]):
        column = pa.array(values, pa.int64()) if values[1] is None else pa.array(values, pa.float64(), from_pandas=True)
        rows = {"path": list("abc"), "label": list("xxx"), "split": ["test"] * 3, "sequence": column}
        pq.write_table(pa.table(rows), tmp_path / "c.parquet")
        catalog = Catalog.read(tmp_path / "c.parquet")
        assert catalog.rules["sequence"] == [values[0], None, values[0]]
        assert check_splits(catalog) == ["the catalog has no train split: it can be evaluated, but not trained on"]


def test_matches_that_do_not_count_are_no_matches() -> None:
    rows = [("b", "test")] * 2 + [("c", "test")] * 2
    with pytest.raises(CatalogError, match="no query of the test split has another image of its class"):
        check_splits(catalog_of(*rows, sequence=[1, 1, 2, 2]))
    warnings = check_splits(catalog_of(*rows, camera=[1, 1, 1, 2]))
    assert (
        warnings[1] == "test class 'b' has no other image that counts, given the column camera, and cannot be retrieved"
    )
    with pytest.raises(CatalogError, match=r"the test split: sequence holds 0\.5, but integers, strings"):
        check_splits(catalog_of(*rows, sequence=[0.5, 1, 2, 3]))
    with pytest.raises(CatalogError, match="is_junk True in row 1 of the training split"):
        catalog_of(("a", "train"), ("b", "train"), is_junk=[False, True])


def test_paths_are_right_behind_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "folder")
    (tmp_path / "picture.jpg").touch()
    catalog_path = tmp_path / "link" / "catalog.csv"
    Catalog(pd.DataFrame({"path": ["picture.jpg"], "label": ["a"], "split": ["train"]}), tmp_path).write(catalog_path)
    assert Catalog.read(catalog_path).paths[0].exists()


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    path = tmp_path / "catalog.csv"
    catalog_of(("a", "train")).write(path)
    with pytest.raises(OverwriteError, match="force"):
        catalog_of(("b", "train")).write(path)
    assert Catalog.read(path).labels == ["a"]
    catalog_of(("b", "train")).write(path, force=True)
    assert Catalog.read(path).labels == ["b"]
    assert [file.name for file in tmp_path.iterdir()] == ["catalog.csv"]


@pytest.mark.parametrize(("with_test", "expected"), [(False, "test"), (True, "val")])
def test_a_table_of_open_metric_learning(tmp_path: Path, with_test: bool, expected: str) -> None:
    """Integer labels, `validation`, and roles that training rows leave out."""
    table = pd.DataFrame(
        {
            "label": [3, 4, 14, 14, 15, 15],
            "path": [f"{number}.jpg" for number in range(6)],
            "split": ["train", "train", "validation", "validation", *(["test" if with_test else "validation"] * 2)],
            "is_query": [None, None, True, True, True, False],
            "is_gallery": [None, None, True, True, False, True],
        }
    )
    for name in ("oml.csv", "oml.parquet"):
        path = tmp_path / name
        table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_parquet(path)
        catalog = Catalog.read(path)
        assert catalog.labels == ["3", "4", "14", "14", "15", "15"]
        assert set(catalog.table["split"][2:4]) == {expected}
        assert catalog.table["is_query"].tolist() == [False, False, True, True, True, False]
        assert catalog.table["is_query"].dtype == bool
        assert check_splits(catalog) == []


FORMS = {
    "semicolons": ("{0};{1};{2};{3}\n", "utf-8", "\n"),
    "tabs": ("{0}\t{1}\t{2}\t{3}\n", "utf-8", "\n"),
    "bars": ("{0}|{1}|{2}|{3}\n", "utf-8", "\n"),
    "a mark and Windows line ends": ("{0},{1},{2},{3}\n", "utf-8-sig", "\r\n"),
    "semicolons, a mark, Windows line ends": ("{0};{1};{2};{3}\n", "utf-8-sig", "\r\n"),
    "line ends of old Macintoshes": ("{0},{1},{2},{3}\n", "utf-8", "\r"),
    "Unicode text of a spreadsheet": ("{0}\t{1}\t{2}\t{3}\n", "utf-16", "\r\n"),
    "UTF-16 without a mark": ("{0},{1},{2},{3}\n", "utf-16-le", "\n"),
    "UTF-16, high bytes first": ("{0};{1};{2};{3}\n", "utf-16-be", "\n"),
    "UTF-32": ("{0};{1};{2};{3}\n", "utf-32", "\n"),
    "blanks behind commas": ("{0}, {1}, {2}, {3}\n", "utf-8", "\n"),
    "quotes": ('"{0}";"{1}";"{2}";"{3}"\n', "utf-8", "\n"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first", ["", "sep"])
def test_tables_of_spreadsheets_are_read(tmp_path: Path, form: str, first: str) -> None:
    """The separator is found by the header alone: the cells hold other ones too."""
    row, encoding, line_end = FORMS[form]
    separator = row.replace('"', "")[3]
    path = "a, b.jpg" if "quotes" in form or separator not in ", " else "a;b.jpg"
    lines = [row.format("path", "label", "split", "note"), row.format(path, "café", "train", "00123")]
    text = (f"sep={separator}\n" if first else "") + "".join(lines)
    table = tmp_path / "table.csv"
    table.write_bytes(text.replace("\n", line_end).encode(encoding))
    catalog = Catalog.read(table)
    assert catalog.table.to_dict("records") == [{"path": path, "label": "café", "split": "train", "note": "00123"}]


def test_blanks_around_the_names_of_our_columns_do_not_count(tmp_path: Path) -> None:
    text = " path ,label ,\tsplit, x_1 , y_1 , x_2 , y_2 , note \na.jpg,7,train,1,2,3,4, z \n"
    for catalog in (Catalog.read(csv(tmp_path, text)), Catalog.read(parquet_of(tmp_path, text))):
        assert catalog.boxes is not None
        assert catalog.boxes.tolist() == [[1, 2, 3, 4]]
        assert catalog.table[" note "].tolist() == [" z "]


def parquet_of(folder: Path, text: str) -> Path:
    table = pd.read_csv(StringIO(text), dtype={" note ": str})
    table.to_parquet(folder / "catalog.parquet")
    return folder / "catalog.parquet"


def test_decimal_commas_of_boxes_are_read(tmp_path: Path) -> None:
    text = "path;label;split;x_1;y_1;x_2;y_2\na.jpg;7;train;1,5;2;3,5;4\nb.jpg;7;train;;;;\n"
    boxes = Catalog.read(csv(tmp_path, text)).boxes
    assert boxes is not None
    assert boxes.tolist() == [[1, 2, 4, 4], [0, 0, 0, 0]]


def test_a_table_that_ends_with_tsv_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("path\tlabel\tsplit\na.jpg\t7\ttrain\n")
    assert Catalog.read(tmp_path / "t.tsv").labels == ["7"]
    with pytest.raises(CatalogError, match=r"ends with \.tsv"):
        Catalog.read(tmp_path / "t.tsv").write(tmp_path / "again.tsv")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("train valid test", "train val test"),
        ("Train Val Test", "train val test"),
        ("TRAINING validation testing", "train val test"),
        ("training Validation TEST", "train val test"),
        ("Train Validation Validation", "train test test"),
        ("train valid valid", "train val val"),
    ],
)
@pytest.mark.parametrize("blank", ["", " "])
def test_splits_under_other_names(tmp_path: Path, given: str, expected: str, blank: str) -> None:
    rows = "".join(f"{number}.jpg,{number},{name}{blank}\n" for number, name in enumerate(given.split()))
    assert Catalog.read(csv(tmp_path, "path,label,split\n" + rows)).table["split"].tolist() == expected.split()


BOXES = "path,label,split,x_1,y_1,x_2,y_2\na.jpg,a,train,"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as csv"),
        ("image_path,label,split\na,b,train\n", "no column 'path'.*rename.*image_path"),
        ("path:label:split\na:b:train\n", "no column 'path' of images, and no 'embedding' of vectors"),
        ("path, path ,label,split\na.jpg,b.jpg,b,train\n", "two columns 'path', with and without blanks"),
        ("path,label,split\na.jpg,b,trian\n", "'trian' in row 0.*did you mean 'train'"),
        (
            "path,label,split\na.jpg,b,dev\n",
            "'dev' in row 0, .*choose one of train, training, val, valid, validation, t",
        ),
        ("path,label,split\na.jpg,b,train\n,b,train\n", "no path in row 1"),
        ("path,label,split\na.jpg,  ,train\n", "no label in row 0"),
        ("path,label,split,x_1,y_1\na.jpg,b,train,1,2\n", "not x_2, y_2"),
        (BOXES + "1,,3,4\n", "part of a box in row 0"),
        (BOXES + "5,1,5,9\n", r"box \(5, 1, 5, 9\) in row 0"),
        (BOXES + "-1,1,5,9\n", r"box \(-1, 1, 5, 9\) in row 0"),
        (BOXES + "left,1,5,9\n", "no number"),
        (BOXES + "inf,1,5,9\n", "box beyond 2147483647 pixels in row 0"),
        ("path,label,split,is_query\na.jpg,b,test,1\n", "is_query but not is_gallery"),
        ("path,label,split,is_query,is_gallery\na.jpg,b,test,1,\n", "is_gallery 'nan' in row 0"),
        ("path,label,split,is_query,is_gallery\na.jpg,b,train,maybe,0\n", "is_query 'maybe' in row 0"),
    ],
)
def test_a_wrong_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = csv(tmp_path, text)
    with pytest.raises(CatalogError, match=message) as raised:
        Catalog.read(path)
    assert str(path) in str(raised.value)


def test_a_file_that_is_no_catalog_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no such file"):
        Catalog.read(tmp_path / "none.csv")
    with pytest.raises(CatalogError, match=r"catalog\.txt ends with \.txt"):
        Catalog.read(tmp_path / "catalog.txt")
    with pytest.raises(CatalogError, match=r"is a folder, but a catalog is .*`proxygml prepare folder` makes one"):
        Catalog.read(tmp_path)
    (tmp_path / "parts.parquet").mkdir()
    with pytest.raises(CatalogError, match=r"parts\.parquet is a folder, but a catalog is"):
        Catalog.read(tmp_path / "parts.parquet")
    with pytest.raises(CatalogError, match="ends with no suffix"):
        catalog_of(("a", "train")).write(tmp_path / "catalog")
    spreadsheet = tmp_path / "windows.csv"
    spreadsheet.write_bytes("path,label,split\na.jpg,café,train\n".encode("cp1252"))
    with pytest.raises(
        CatalogError, match=r"windows.csv: cannot be read as csv: it is not in UTF-8.*0xe9|xe9.*save it"
    ):
        Catalog.read(spreadsheet)
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(CatalogError, match="cannot be read as parquet"):
        Catalog.read(damaged)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CatalogError, match="cannot be read as csv"):
        Catalog.read(binary)


def test_a_split_has_its_rows_alone() -> None:
    catalog = catalog_of(("a", "train"), ("b", "test"), ("a", "train"))
    assert catalog.split("train").table["path"].tolist() == ["0.jpg", "2.jpg"]
    assert catalog.split("train").table.index.tolist() == [0, 1]
    assert len(catalog.split("test")) == 1
    with pytest.raises(CatalogError, match=r"no split 'val'.*train, test"):
        catalog.split("val")


def test_counts_name_the_roles_too() -> None:
    catalog = catalog_of(
        ("a", "train"), ("b", "test"), ("c", "test"), is_query=[False, True, False], is_gallery=[False, True, True]
    )
    assert catalog.counts == {
        "train": Count(1, 1),
        "test": Count(2, 2),
        "query": Count(1, 1),
        "gallery": Count(2, 2),
    }


GOOD_TEST = [("x", "test"), ("x", "test")]


@pytest.mark.parametrize("one", ["train", "val"])
def test_shared_classes_are_refused(one: str) -> None:
    with pytest.raises(CatalogError, match=rf"1 class in both {one} and test \(x\)"):
        check_splits(catalog_of(("a", "train"), ("b", "train"), ("x", one), *GOOD_TEST))


def test_splits_of_no_use_are_refused() -> None:
    with pytest.raises(CatalogError, match="one class only"):
        check_splits(catalog_of(("a", "train"), ("a", "train"), *GOOD_TEST))
    with pytest.raises(CatalogError, match="nothing can be retrieved"):
        check_splits(catalog_of(("a", "train"), ("b", "train"), ("x", "test"), ("y", "test")))
    with pytest.raises(CatalogError, match="0 queries and 2 gallery"):
        check_splits(catalog_of(*GOOD_TEST, is_query=[False, False], is_gallery=[True, True]))
    with pytest.raises(CatalogError, match="no rows"):
        check_splits(catalog_of())


def test_what_cannot_be_retrieved_is_named() -> None:
    training = [("a", "train"), ("b", "train")]
    assert check_splits(catalog_of(*training, *GOOD_TEST)) == []
    (warning,) = check_splits(catalog_of(*training, *GOOD_TEST, ("alone", "test")))
    assert warning == "test class 'alone' has one image and cannot be retrieved"
    (warning,) = check_splits(catalog_of(*training, *GOOD_TEST, *((f"alone{n}", "test") for n in range(7))))
    assert warning.startswith("7 test classes") and "alone4 and 2 more" in warning


def test_a_query_is_not_found_by_itself() -> None:
    rows = [("a", "train"), ("b", "train"), *GOOD_TEST, ("y", "test"), ("z", "test"), ("w", "test")]
    query = [False, False, True, False, True, True, False]
    gallery = [False, False, False, True, True, False, True]
    (warning,) = check_splits(catalog_of(*rows, is_query=query, is_gallery=gallery))
    assert "2 test classes" in warning and warning.endswith("y, z")  # w is a distractor: nobody looks for it


def test_missing_splits_are_named() -> None:
    assert check_splits(catalog_of(("a", "train"), ("b", "train"))) == [
        "the catalog has no test split: it can be trained on, but not evaluated"
    ]
    assert check_splits(catalog_of(*GOOD_TEST)) == [
        "the catalog has no train split: it can be evaluated, but not trained on"
    ]
