"""All that an audit names beside wrong labels, on one catalog of real vectors, as a person types it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proxygml.data.preparing.prepare import prepare
from tests.helpers.commands import run
from tests.helpers.digits import digits, photo_pieces
from tests.helpers.vector_files import write_file

COPY, COPIED = 0, 1797 + 12


def test_one_catalog_with_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """3 and 6 under one label, 4 under two, pieces of photographs, and a 0 that is a test image of 8 too."""
    vectors, right = digits()
    names = np.array([f"digit {digit}" for digit in right], object)
    names[right == 6] = "digit 3"
    again = (right == 4) & (np.random.default_rng(0).random(len(right)) < 0.5)
    names[again] = "digit 4 again"
    pieces = photo_pieces(12)
    given = [f"digit {digit}" for digit in (0, 1, 2, 3, 5, 7, 8, 9, 0, 1, 2, 5)]
    vectors = np.concatenate([vectors, pieces, vectors[:1]])
    labels = [*map(str, names), *given, "digit 8"]
    train = {f"digit {digit}" for digit in (0, 1, 2, 3)}
    splits: list[object] = ["train" if label in train else "test" for label in labels]
    file = write_file(tmp_path / "raw.parquet", vectors, labels, split=splits)
    prepare("vectors", file, tmp_path / "digits.parquet", options={"label": "product"})
    run("audit", "--catalog", tmp_path / "digits.parquet", "--out", tmp_path / "audit")
    said = " ".join(capsys.readouterr().out.split())

    assert "of near-duplicates lies in more than one split: figures of the test split are too good" in said
    duplicates = pd.read_csv(tmp_path / "audit" / "duplicates.csv")
    across = duplicates[duplicates["two_splits"] & duplicates["two_labels"]]
    assert {COPY, COPIED} <= set(across["row"])

    assert "1 pair of classes is hardly told apart" in said
    alike = pd.read_csv(tmp_path / "audit" / "alike.csv")
    assert alike[["label", "other"]].to_numpy().tolist() == [["digit 4", "digit 4 again"]]

    assert "into two parts that are as unlike as two classes" in said
    mixed = pd.read_csv(tmp_path / "audit" / "mixed.csv")
    assert mixed["label"][0] == "digit 3"
    halves = mixed[mixed["label"] == "digit 3"].groupby("part")["row"]
    assert {int(np.bincount(right[rows[rows < 1797]]).argmax()) for _, rows in halves} == {3, 6}

    assert "unlike all classes and may belong to none" in said
    table = pd.read_csv(tmp_path / "audit" / "audit.csv").set_index("row")
    strangers = table.loc[range(1797, 1797 + 12)]
    assert (strangers["distance"] >= 3).all()
    assert strangers["reasons"].str.contains("unlike all classes").all()
    assert (table["distance"] >= 3).sum() < 60

    page = (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    for title in ("probably one", "probably two", "belong to no class", "under two labels", "across splits"):
        assert title in page
