"""What a user's own columns say is what a search answers, whichever files and commands lie between."""

from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.commands import run
from tests.helpers.models import untrained
from tests.helpers.pictures import write_picture

ARTICLES = ["00123", "12E4", "NA", "", "1450000000000000001", str(2**64)]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("by", ["catalog", "vectors"])
def test_columns_of_a_csv_pass_from_prepare_to_the_answers_unchanged(tmp_path: Path, suffix: str, by: str) -> None:
    model, files = untrained(tmp_path / "run"), [write_picture(tmp_path / f"{n}.png", n) for n in range(6)]
    table = pd.DataFrame({"path": [file.name for file in files], "label": list("aabbcc"), "article": ARTICLES})
    table.assign(split=["train"] * 4 + ["test"] * 2).to_csv(tmp_path / "mine.csv", index=False)
    catalog, gallery, answers = tmp_path / f"catalog{suffix}", tmp_path / "gallery", tmp_path / "answers.csv"
    run("prepare", "table", "--root", tmp_path / "mine.csv", "--out", catalog)
    source = ("--catalog", catalog)
    if by == "vectors":
        run("embed", model, *source, "--out", tmp_path / "vectors.parquet", "--workers", 0)
        source = ("--vectors", tmp_path / "vectors.parquet")
    run("index", model, *source, "--out", gallery, "--workers", 0)
    run("search", gallery, *files, "--k", 1, "--out", answers, "--workers", 0)
    found = pd.read_csv(answers, dtype=str, keep_default_na=False)
    assert found["article"].tolist() == ARTICLES
    run("search", gallery, *files[:2], "--k", 6, "--where", "article=00123", "--out", answers, "--force")
    assert pd.read_csv(answers, dtype=str)["article"].tolist() == ["00123", "00123"]
