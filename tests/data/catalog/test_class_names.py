"""Classes that are probably one are named, whatever they were read from."""

import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from proxygml.console import console
from proxygml.data.catalog import Catalog
from proxygml.data.catalog.class_names import check_class_names, similar_classes
from proxygml.data.datasets import folder
from proxygml.data.preparing.prepare import prepare
from tests.helpers.catalogs import catalog_of
from tests.helpers.pictures import write_picture

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    "names",
    [
        ("Cat", "cat", "CAT "),
        ("cat", " cat"),
        ("cat", "cat\u00a0"),
        ("big cat", "big  cat"),
        (COMPOSED, DECOMPOSED),
        (COMPOSED.upper(), DECOMPOSED),
        ("straße", "STRASSE"),
        ("한글", unicodedata.normalize("NFD", "한글")),
        ("ガ", unicodedata.normalize("NFD", "ガ"), "ｶﾞ"),
    ],
)
def test_names_that_differ_in_form_alone_are_one_group(names: tuple[str, ...]) -> None:
    assert similar_classes(["dog", *names, "catt", "c at"]) == [list(names)]


def test_other_names_are_not() -> None:
    assert similar_classes(["cat", "cats", "c-at", "cät", "1", "01", "a/cat", "", "ca t"]) == []


def test_they_are_named_with_their_counts() -> None:
    rows = [
        ("Cat", "train"),
        ("Cat", "train"),
        ("cat", "test"),
        (COMPOSED, "train"),
        (DECOMPOSED, "test"),
        ("x", "test"),
    ]
    (warning,) = check_class_names(catalog_of(*rows))
    assert "4 classes have names that differ in capital letters, blanks or the form" in warning
    assert "'Cat' (2 train) and 'cat' (1 test)" in warning
    assert "'cafe\\u0301' (1 test) and 'café' (1 train)" in warning
    assert "rename their folders, or their labels in the table" in warning
    assert check_class_names(catalog_of(("a", "train"), ("b", "test"))) == []


def test_many_are_counted() -> None:
    rows = [(name, "train") for number in range(9) for name in (f"a{number}", f"A{number}")]
    (warning,) = check_class_names(catalog_of(*rows))
    assert warning.startswith("18 classes")
    assert "'A4' (1 train) and 'a4' (1 train) and 4 more." in warning


def as_folder(root: Path) -> tuple[str, Path, dict[str, object]]:
    return "folder", root, {"test_classes": "half"}


def as_archive(root: Path) -> tuple[str, Path, dict[str, object]]:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, file.relative_to(root))
    return "folder", path, {"test_classes": "half"}


def as_table(root: Path) -> tuple[str, Path, dict[str, object]]:
    path = root.with_suffix(".csv")
    folder.read(root, test_classes="half").write(path)
    return "table", path, {}


@pytest.mark.parametrize("reader", [as_folder, as_archive, as_table])
def test_prepare_names_them_whatever_it_reads(
    tmp_path: Path,
    reader: Callable[[Path], tuple[str, Path, dict[str, object]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "width", 200)
    for number, name in enumerate(["Cat", "Cat", "cat", "cat", "CAT ", "CAT ", COMPOSED, COMPOSED, DECOMPOSED, "dog"]):
        write_picture(tmp_path / "data" / name / f"{number}.png", number)
    dataset, root, options = reader(tmp_path / "data")
    prepare(dataset, root, tmp_path / "out.parquet", options=options)
    text = " ".join(capsys.readouterr().err.split())
    assert "warning: 5 classes have names that differ in capital letters, blanks" in text
    assert "'CAT ' (2 train) and 'Cat' (2 train) and 'cat' (2 test)" in text
    assert len(Catalog.read(tmp_path / "out.parquet").classes) == 6


def test_a_list_of_test_classes_may_have_another_form(tmp_path: Path) -> None:
    for name in (DECOMPOSED, "b", "c"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.jpg").touch()
    names = tmp_path / "names.txt"
    names.write_text(COMPOSED, encoding="utf-8")
    assert folder.read(tmp_path / "data", test_classes=str(names)).split("test").classes == [DECOMPOSED]
