"""Classes that are probably one are named, in the table, on the page and in words; classes that are not, are not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proxygml.data.preparing.prepare import prepare
from tests.helpers.commands import run
from tests.helpers.noise import clustered
from tests.helpers.vector_files import write_file


def audited(folder: Path, vectors: np.ndarray, names: list[str]) -> tuple[pd.DataFrame, str]:
    file = write_file(folder / "raw.parquet", vectors, names)
    prepare("vectors", file, folder / "catalog.parquet", options={"label": "product", "test_classes": "half"})
    run("audit", "--catalog", folder / "catalog.parquet", "--out", folder / "audit")
    return pd.read_csv(folder / "audit" / "alike.csv"), (folder / "audit" / "audit.html").read_text(encoding="utf-8")


def test_a_class_under_two_names_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors, labels = clustered(600, classes=10)
    second = np.random.default_rng(0).random(600) < 0.5
    names = [f"c{label}{' again' if half and label == 3 else ''}" for label, half in zip(labels, second, strict=True)]
    table, page = audited(tmp_path, vectors, names)
    assert table[["label", "other"]].to_numpy().tolist() == [["c3", "c3 again"]]
    assert table[["share", "other_share"]].to_numpy().mean() > 0.4
    assert "1 pair of classes is hardly told apart" in " ".join(capsys.readouterr().out.split())
    assert "c3 and c3 again" in page


def test_without_such_classes_none_is_named(tmp_path: Path) -> None:
    vectors, labels = clustered(600, classes=10)
    table, page = audited(tmp_path, vectors, [f"c{label}" for label in labels])
    assert table.empty
    assert "probably one" not in page


def test_a_half_with_fewer_images_on_the_other_side_of_the_border_is_found_too(tmp_path: Path) -> None:
    """Few images of many features: chance moves the border between the halves, and other classes come in between."""
    vectors, labels = clustered(900, classes=30, size=200, spread=1.2)
    second = np.random.default_rng(1).random(900) < 0.5
    split = second & (labels < 8)
    names = [f"c{label:02d}{' again' if half else ''}" for label, half in zip(labels, split, strict=True)]
    table, _ = audited(tmp_path, vectors, names)
    pairs = {(row.label, row.other) for row in table.itertuples()}
    expected = {(f"c{label:02d}", f"c{label:02d} again") for label in range(8)}
    assert len(pairs & expected) >= 7
    assert not pairs - expected
