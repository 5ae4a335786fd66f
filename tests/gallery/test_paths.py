"""Where items' files lie: from the root, whatever the working folder, and elsewhere after they were moved."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proxygml import Gallery
from proxygml.data.paths import rebased_paths
from proxygml.errors import GalleryError
from tests.helpers.commands import refused
from tests.helpers.commands import run as command
from tests.helpers.models import untrained
from tests.helpers.vectors import blocks, clustered

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("old", "new", "given", "expected"),
    [
        ("/photos", "/mnt/p", ["/photos/a.png", "/photos2/a.png", None], ["/mnt/p/a.png", "/photos2/a.png", None]),
        ("/photos/", "/mnt/p/", ["/photos/x/a.png", "/b.png"], ["/mnt/p/x/a.png", "/b.png"]),
        ("C:\\photos", "/mnt/p", ["C:\\photos\\x\\a.png"], ["/mnt/p/x/a.png"]),
        ("/photos", "s3://bucket/p", ["/photos/a.png"], ["s3://bucket/p/a.png"]),
        ("s3://bucket/p", "/mnt", ["s3://bucket/p/a.png"], ["/mnt/a.png"]),
        ("photos", "/mnt", ["photos/a.png", "/photos/a.png"], ["/mnt/a.png", "/photos/a.png"]),
        ("/photos", "/photos/photos", ["/photos/a.png"], ["/photos/photos/a.png"]),
    ],
)
def test_the_paths_below_a_folder_change(old: str, new: str, given: list[str], expected: list[str]) -> None:
    moved = rebased_paths(pd.Series(given), old, new)
    assert [None if pd.isna(path) else path for path in moved] == expected


def test_rebase_changes_the_paths_of_a_gallery(place: str, capsys: Capture) -> None:
    paths = [f"/old/{number}.png" for number in range(700)] + ["/other/a.png", None]
    table = pd.DataFrame({"path": paths, "size": range(702), "in": "x"})
    built = Gallery.build(place, blocks(clustered(702), table))
    built.remove([5])
    built.save()
    vectors = built.vectors([0, 699, 701])
    command("index", "--rebase", "/old", "/new/place", "--out", place)
    assert "699 of 701 paths changed" in capsys.readouterr().out
    loaded = Gallery.load(place)
    kept = table.drop(index=5)
    moved = [path.replace("/old/", "/new/place/") for path in kept["path"].dropna()]
    assert loaded.items["path"].dropna().tolist() == moved
    assert loaded.items[["size", "in"]].to_numpy().tolist() == kept[["size", "in"]].to_numpy().tolist()
    assert np.array_equal(loaded.vectors([0, 699, 701]), vectors)
    assert loaded.matching({"path": "/new/place/699.png"}).tolist() == [699]
    with pytest.raises(GalleryError, match=r"no item lies below /old: one is /new/place/0.png"):
        loaded.rebase("/old", "/new")
    loaded.verify()


def test_rebase_takes_two_folders_and_nothing_else(tmp_path: Path, capsys: Capture) -> None:
    Gallery.build(tmp_path / "g", [(clustered(2), pd.DataFrame({"path": ["/a/b", "/a/c"]}))])
    assert "two folders" in refused(capsys, "index", "--rebase", "", "/b", "--out", tmp_path / "g")
    assert "paths only" in refused(capsys, "index", "--add", "--rebase", "/a", "/b", "--out", tmp_path / "g")


def test_images_that_a_gallery_keeps_lie_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was started with a relative path stores what another one finds from elsewhere."""
    monkeypatch.chdir(tmp_path)
    Gallery.build("g", [(clustered(2), pd.DataFrame({"path": ["/a", "/b"]}))])
    assert Gallery.load("g").keeps_images == tmp_path.resolve() / "g" / "images"


def test_relative_paths_of_a_file_of_vectors_are_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = untrained(tmp_path / "run")
    (tmp_path / "data").mkdir()
    table = pd.DataFrame({"path": ["a.png", "s3://b/c.png", "/d.png"], "embedding": list(clustered(3))})
    table.to_parquet("data/v.parquet")
    command("index", run, "--vectors", "data/v.parquet", "--out", "g")
    expected = [str(tmp_path.resolve() / "data" / "a.png"), "s3://b/c.png", "/d.png"]
    assert Gallery.load("g").items["path"].tolist() == expected
    command("index", "--add", "--vectors", "data/v.parquet", "--out", "g")
    assert len(Gallery.load("g")) == 3


def test_vectors_of_another_size_than_the_models_are_refused(tmp_path: Path, capsys: Capture) -> None:
    run = untrained(tmp_path / "run")
    pd.DataFrame({"path": ["/a"], "embedding": list(clustered(1, 8))}).to_parquet(tmp_path / "v.parquet")
    index = ["index", run, "--vectors", tmp_path / "v.parquet", "--out", tmp_path / "g"]
    assert "vectors of size 8, but" in refused(capsys, *index)
    assert not (tmp_path / "g").exists()
