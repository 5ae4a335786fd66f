"""`proxygml prepare --labels`: corrected labels, splits that stay whole, and tables that do not fit."""

from pathlib import Path

import pandas as pd
import pytest

from proxygml.data.catalog import Catalog
from proxygml.data.catalog.corrections import correct_labels
from proxygml.errors import CatalogError, OverwriteError
from tests.helpers.catalogs import catalog_of
from tests.helpers.commands import refused, run
from tests.helpers.vector_files import vector_catalog

ROWS = [("ant", "train")] * 3 + [("bee", "train")] * 3 + [("cat", "test")] * 3 + [("dog", "test")] * 3


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    catalog_of(*ROWS, folder=tmp_path).write(tmp_path / "animals.csv")
    return tmp_path / "animals.csv"


def corrections(folder: Path, *lines: str, head: str = "row,path,label,decision,corrected") -> Path:
    path = folder / "corrections.csv"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def test_a_corrected_image_moves_to_the_split_of_its_class_and_a_removed_one_leaves(
    catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = corrections(
        tmp_path, "0,0.jpg,ant,correct,cat", "6,6.jpg,cat,correct,bee", "1,1.jpg,ant,keep,", "9,9.jpg,dog,remove,"
    )
    run("prepare", "--labels", table, "--catalog", catalog, "--out", tmp_path / "out.csv")
    assert "2 labels corrected (2 moved to the split of the new class), 1 row removed" in capsys.readouterr().out
    after = Catalog.read(tmp_path / "out.csv").table
    assert after[["path", "label", "split"]].iloc[[0, 6]].to_numpy().tolist() == [
        ["0.jpg", "cat", "test"],
        ["6.jpg", "bee", "train"],
    ]
    assert "9.jpg" not in set(after["path"])
    assert len(after) == 11
    untouched = ~after["path"].isin(["0.jpg", "6.jpg"])
    before = Catalog.read(catalog).table
    pd.testing.assert_frame_equal(
        after[untouched].reset_index(drop=True),
        before[before["path"].isin(after["path"][untouched])].reset_index(drop=True),
    )


def test_queries_and_marks_follow_the_split(tmp_path: Path) -> None:
    """What moves to the test split can be found and searched with; what moves to training carries no mark."""
    roles = [False] * 6 + [True] * 6
    junk = [False] * 6 + [True] + [False] * 5
    catalog_of(*ROWS, folder=tmp_path, is_query=roles, is_gallery=roles, is_junk=junk).write(tmp_path / "a.parquet")
    table = corrections(tmp_path, "0,correct,cat", "6,correct,bee", head="row,decision,corrected")
    done = correct_labels(table, tmp_path / "a.parquet", tmp_path / "b.parquet")
    after = done.catalog.table
    assert after.loc[0, ["split", "is_query", "is_gallery"]].tolist() == ["test", True, True]
    assert after.loc[6, ["split", "is_junk"]].tolist() == ["train", False]


def test_images_of_a_catalog_split_by_image_stay_in_their_split(tmp_path: Path) -> None:
    rows = [("ant", "train"), ("ant", "test"), ("bee", "train"), ("bee", "test"), ("cat", "test"), ("cat", "test")]
    catalog_of(*rows, folder=tmp_path).write(tmp_path / "a.csv")
    table = corrections(tmp_path, "0,correct,bee", "2,correct,cat", head="row,decision,corrected")
    after = correct_labels(table, tmp_path / "a.csv", tmp_path / "b.csv").catalog.table
    assert after.loc[[0, 2], ["label", "split"]].to_numpy().tolist() == [["bee", "train"], ["cat", "test"]]


def test_vectors_are_corrected_in_place_with_force(tmp_path: Path) -> None:
    catalog = vector_catalog(tmp_path)
    before = Catalog.read(catalog)
    assert before.vectors is not None
    sixth, other = before.vectors.mapped()[6].copy(), before.classes[-1]
    table = corrections(tmp_path, f"3,correct,{other}", "5,remove,", head="row,decision,corrected")
    with pytest.raises(OverwriteError):
        correct_labels(table, catalog, catalog)
    done = correct_labels(table, catalog, catalog, force=True)
    assert (done.changed, done.removed, len(done.catalog)) == (1, 1, len(before) - 1)
    assert done.catalog.table.loc[3, ["label", "split"]].tolist() == [other, "test"]
    assert done.catalog.vectors is not None
    assert (done.catalog.vectors.mapped()[5] == sixth).all()


def test_new_classes_need_an_option_and_names_that_a_spreadsheet_would_run_are_understood(tmp_path: Path) -> None:
    rows = [("=ant", "train")] * 3 + [("bee", "train")] * 3
    catalog_of(*rows, folder=tmp_path).write(tmp_path / "a.csv")
    table = corrections(tmp_path, "0,0.jpg,'=ant,correct,wasp", "3,3.jpg,bee,correct,'=ant")
    with pytest.raises(CatalogError, match=r"row 0 the label 'wasp'.*--new_classes.*: choose one of =ant, bee$"):
        correct_labels(table, tmp_path / "a.csv", tmp_path / "b.csv")
    after = correct_labels(table, tmp_path / "a.csv", tmp_path / "b.csv", new_classes=True).catalog.table
    assert after.loc[[0, 3], ["label", "split"]].to_numpy().tolist() == [["wasp", "train"], ["=ant", "train"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("12,0.jpg,ant,keep,", "names row '12', but the catalog has rows 0 to 11"),
        ("-1,0.jpg,ant,keep,", "names row '-1'"),
        ("1.5,0.jpg,ant,keep,", "names row '1.5'"),
        (",0.jpg,ant,keep,", "names row ''"),
        ("0,1.jpg,ant,keep,", "has the path '1.jpg' for row 0, but the catalog has '0.jpg'"),
        ("0,0.jpg,bee,keep,", "has the label 'bee' for row 0, but the catalog has 'ant'"),
        ("0,0.jpg,ant,kepe,", "the decision 'kepe' for row 0: did you mean 'keep'"),
        ("0,0.jpg,ant,correct,", "corrects row 0 but says no label"),
        ("0,0.jpg,ant,correct,catt", "(if it is new, give --new_classes): did you mean 'cat'?"),
        ("0,0.jpg,ant,keep,\n0,0.jpg,ant,keep,", "names row 0 twice"),
    ],
)
def test_corrections_that_do_not_fit_are_named(
    line: str, message: str, catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = corrections(tmp_path, line)
    printed = refused(capsys, "prepare", "--labels", table, "--catalog", catalog, "--out", tmp_path / "out.csv")
    assert message in " ".join(printed.split())
    assert not (tmp_path / "out.csv").exists()


def test_a_catalog_that_nothing_is_left_of_or_that_cannot_be_used_is_not_written(catalog: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(CatalogError, match="removes every row"):
        lines = [f"{row},remove," for row in range(12)]
        correct_labels(corrections(tmp_path, *lines, head="row,decision,corrected"), catalog, out)
    table = corrections(tmp_path, *(f"{row},correct,bee" for row in range(3)), head="row,decision,corrected")
    with pytest.raises(CatalogError, match="one class only"):
        correct_labels(table, catalog, out)
    with pytest.raises(CatalogError, match="has no column 'decision'"):
        correct_labels(corrections(tmp_path, "0,cat", head="row,corrected"), catalog, out)
    with pytest.raises(CatalogError, match=r"there is no .*nothing\.csv"):
        correct_labels(tmp_path / "nothing.csv", catalog, out)
    assert not out.exists()


def test_a_class_without_images_left_is_named(catalog: Path, tmp_path: Path) -> None:
    table = corrections(tmp_path, *(f"{row},correct,dog" for row in (6, 7, 8)), head="row,decision,corrected")
    assert "1 class has no image any more: cat" in correct_labels(table, catalog, tmp_path / "out.csv").warnings


@pytest.mark.parametrize("option", ["labels", "out"])
def test_urls_are_refused(option: str, catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"labels": corrections(tmp_path, "0,0.jpg,ant,keep,"), "catalog": catalog, "out": tmp_path / "out.csv"}
    words = [word for name, path in given.items() for word in (f"--{name}", "s3://a/b.csv" if name == option else path)]
    assert "s3://a/b.csv" in refused(capsys, "prepare", *words)
    assert not (tmp_path / "out.csv").exists()
