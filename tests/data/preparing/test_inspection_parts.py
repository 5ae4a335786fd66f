"""Preparing in many processes by Ray: the catalog and the list of one process, whoever is killed."""

from pathlib import Path
from typing import Any

import pytest

from proxygml.cli.main import main
from proxygml.data.catalog import Catalog
from proxygml.data.preparing import inspection_parts
from tests.helpers.ray_workers import killing_one

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture
def photos(small_catalog: Path, tmp_path: Path) -> Path:
    """Images in folders of their classes: two of them the same, one empty, one no image."""
    for name, label in Catalog.read(small_catalog).table[["path", "label"]].itertuples(index=False):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((small_catalog.parent / name).read_bytes())
    (tmp_path / "photos" / "class 00" / "again.png").write_bytes((small_catalog.parent / "00_3.png").read_bytes())
    (tmp_path / "photos" / "class 01" / "empty.png").touch()
    (tmp_path / "photos" / "class 02" / "text.jpg").write_text("no image")
    return tmp_path / "photos"


def test_prepare_finds_what_one_process_finds(
    ray: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first command stops at bad images; the second opens nothing again. One process is killed on the way."""
    monkeypatch.setattr(inspection_parts, "PART_ROWS", 16)
    words = ["prepare", "folder", "--root", str(photos), "--test_classes", "half"]
    main([*words, "--out", str(tmp_path / "alone.csv"), "--on_bad", "drop"])
    out = tmp_path / "many.csv"
    kept = tmp_path / ".many.csv.inspections"
    with killing_one(lambda: any(kept.glob("part-*"))) as killed, pytest.raises(SystemExit):
        main([*words, "--out", str(out), "--ray"])
    assert killed, "the command ended before a process could be killed"
    assert "1 of 147 files is duplicated" in capsys.readouterr().err.replace("\n", " ")
    main([*words, "--out", str(out), "--ray", "--on_bad", "drop"])
    assert "147 of 147 images were opened already" in capsys.readouterr().err
    for suffix in (".csv", ".dropped.csv"):
        assert out.with_suffix(suffix).read_bytes() == (tmp_path / "alone").with_suffix(suffix).read_bytes()
    assert not kept.exists()
