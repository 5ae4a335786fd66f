"""From a download to a catalog: what is good comes out, what is not is named, and nothing is written by halves."""

import os
import shutil
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from proxygml.console import console
from proxygml.data.catalog.catalog import Catalog, Count
from proxygml.data.datasets import DATASETS, Dataset, folder
from proxygml.data.images import inspection
from proxygml.data.images.decoder_pool import DecoderPool
from proxygml.data.images.inspection import inspect
from proxygml.data.preparing.prepare import prepare
from proxygml.errors import CatalogError, DatasetError, OverwriteError
from tests.helpers.kills import RENAMES, survives_kills
from tests.helpers.pictures import write_picture
from tests.helpers.shared import shared_file

OWN = Dataset("folder", partial(folder.read, test_classes="half"), strays=folder.strays)
BENCHMARK = replace(OWN, published={"train": Count(6, 2), "test": Count(6, 2)})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four classes of three images each."""
    for seed in range(12):
        write_picture(tmp_path / "data" / "abcd"[seed // 3] / f"{seed}.png", seed)
    return tmp_path / "data"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "catalog.parquet"


@pytest.fixture(autouse=True)
def _wide_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are printed without folding their cells."""
    monkeypatch.setattr(console, "width", 200)


def dataset(name: str) -> Dataset:
    return next(dataset for dataset in DATASETS if dataset.name == name)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to the screen, without the line breaks and frames of tables."""
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_what_is_wrong_with_the_table_is_said_before_images_are_opened(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "own.csv"
    for content, message in (
        (
            "path,label,split\na.jpg,cat,train\nb.jpg,cat,test\nc.jpg,dog,train\n",
            r"1 class in both train and test \(cat\)",
        ),
        ("path,label,split\n", "the catalog has no rows"),
        ("path,label\na.jpg,cat\n", "has no column 'split' of train, val or test; add it, or rename"),
    ):
        table.write_text(content)
        with pytest.raises(CatalogError, match=message):
            prepare("table", table, out)
        assert "Opening images" not in printed(capsys)


def test_a_good_folder_becomes_a_catalog(root: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = prepare(OWN, root, out)
    assert catalog.counts == {"train": Count(6, 2), "test": Count(6, 2)}
    pd.testing.assert_frame_equal(catalog.table, Catalog.read(out).table)
    assert all(path.is_file() for path in catalog.paths)
    assert {path.name for path in out.parent.iterdir()} == {"data", "catalog.parquet"}
    assert "train 6 2 test 6 2" in printed(capsys)


def test_an_archive_is_unpacked_beside_the_catalog(root: Path, out: Path) -> None:
    archive = root.parent / "pictures.tgz"
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(root, "pictures")
    catalog = prepare(OWN, archive, out)
    assert catalog.table["path"][0] == "catalog/pictures/a/0.png"
    assert all(path.is_file() for path in catalog.paths)


def spoil(root: Path) -> None:
    """One file of each bad kind, beside the twelve good ones."""
    good = (root / "a" / "0.png").read_bytes()
    (root / "a" / "cut.png").write_bytes(good[: len(good) // 2])
    (root / "b" / "empty.jpg").touch()
    (root / "c" / "notes.txt").write_text("no image")
    (root / "a" / "again.png").write_bytes(good)
    (root / "loose.txt").touch()


def test_bad_files_are_named_and_nothing_is_written(root: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(root)
    with pytest.raises(DatasetError) as raised:
        prepare(OWN, root, out)
    message = str(raised.value)
    assert "1 of 17 files is out of place (loose.txt)" in message
    assert "3 of 17 files are unreadable (a/cut.png, b/empty.jpg, c/notes.txt)" in message
    assert "1 of 17 files is duplicated (a/again.png)" in message
    assert "--on_bad drop" in message
    assert {path.name for path in out.parent.iterdir()} == {"data"}
    table = printed(capsys)
    for name in ("loose.txt", "a/cut.png", "b/empty.jpg", "c/notes.txt", "a/again.png", "is the same image as"):
        assert name in table


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_links_to_nothing_pipes_and_hidden_files_are_named(
    root: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "a" / "gone.png").symlink_to("nowhere.png")
    (root / "gone").symlink_to("nowhere")
    os.mkfifo(root / "b" / "pipe.png")
    (root / "b" / ".DS_Store").touch()
    (root / "Thumbs.db").touch()
    with pytest.raises(
        DatasetError, match=r"out of place \(gone\); .* missing \(a/gone.png\); .*unreadable \(b/pipe.png"
    ):
        prepare("folder", root, out, options={"test_classes": "half"})
    catalog = prepare("folder", root, out, options={"test_classes": "half"}, on_bad="drop")
    assert len(catalog) == 12
    text = printed(capsys)
    assert f"{root}: 2 left out: left by a file manager: 1 (Thumbs.db), hidden: 1 (b/.DS_Store)" in text
    dropped = pd.read_csv(out.with_suffix(".dropped.csv"))
    assert dict(zip(dropped["path"], dropped["problem"], strict=True)) == {
        "gone": "is a link to nothing",
        "a/gone.png": "is a link to nothing",
        "b/pipe.png": "is a device or a pipe",
    }


def test_bad_files_are_dropped_by_name(root: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(root)
    catalog = prepare(OWN, root, out, on_bad="drop")
    assert sorted(path.name for path in catalog.paths) == sorted(f"{seed}.png" for seed in range(12))
    dropped = pd.read_csv(out.with_suffix(".dropped.csv"))
    assert set(dropped["path"]) == {"loose.txt", "a/cut.png", "b/empty.jpg", "c/notes.txt", "a/again.png"}
    assert dict(zip(dropped["path"], dropped["problem"], strict=True))["a/again.png"] == "is the same image as a/0.png"
    assert "dropped" in printed(capsys)


def test_the_same_image_in_two_classes_goes_whole(root: Path, out: Path) -> None:
    """Nobody knows which class is right; across the splits it would be a leak."""
    (root / "d" / "leak.png").write_bytes((root / "a" / "0.png").read_bytes())
    with pytest.raises(DatasetError, match=r"2 of 13 files are duplicated \(a/0.png, d/leak.png\)"):
        prepare(OWN, root, out)
    catalog = prepare(OWN, root, out, on_bad="drop")
    assert len(catalog) == 11
    assert not {"0.png", "leak.png"} & {path.name for path in catalog.paths}
    problems = pd.read_csv(out.with_suffix(".dropped.csv"))["problem"].tolist()
    assert problems[0] == "is of class 'a', but the same image as d/leak.png of class 'd'"


def test_a_benchmark_keeps_what_is_there_twice(root: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "a" / "1.png").write_bytes((root / "a" / "0.png").read_bytes())
    assert len(prepare(BENCHMARK, root, out)) == 12
    assert "is the same image as a/0.png kept" in printed(capsys)


def test_a_difference_from_the_published_counts_is_named(
    root: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(BENCHMARK, root, out)
    assert "warning" not in printed(capsys)
    (root / "a" / "0.png").unlink()
    prepare(BENCHMARK, root, out, force=True)
    text = printed(capsys)
    assert "folder train has 5 images of 2 classes, but 6 of 2 were published" in text
    assert "folder test" not in text


def test_missing_images_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A download of which only a part arrived: the lists are whole, the photos are not."""
    archive, out = shared_file("cub200-2011-lists-and-200-photos.tgz"), tmp_path / "cub200.parquet"
    cub200 = dataset("cub200")
    with pytest.raises(
        DatasetError, match=r"11,588 of 11,788 files are missing \(images/001\.\S+, images/001\.\S+, im"
    ):
        prepare(cub200, archive, out)
    assert "11,578 more are missing" in printed(capsys)
    assert not out.exists()
    catalog = prepare(cub200, archive, out, on_bad="drop")
    assert catalog.counts == {"train": Count(200, 25)}
    assert all(path.is_file() for path in catalog.paths)
    text = printed(capsys)
    assert "has 200 images of 25 classes, but 5,864 of 100 were published" in text
    assert "no test split" in text


def write_table(root: Path, *boxes: tuple[int, int, int, int] | None) -> Path:
    """The twelve images of 24 x 16 pixels, the first of them with these boxes."""
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    rows = [(path, path[0], "train" if path < "c" else "test") for path in paths]
    table = pd.DataFrame(rows, columns=["path", "label", "split"])
    given = [*boxes, *([None] * (len(rows) - len(boxes)))]
    for edge, name in enumerate(("x_1", "y_1", "x_2", "y_2")):
        table[name] = pd.array([None if box is None else box[edge] for box in given], dtype="Int64")
    table.to_csv(root / "table.csv", index=False)
    return root / "table.csv"


def test_boxes_are_held_against_their_images(root: Path, out: Path) -> None:
    table = write_table(root, (0, 0, 24, 16), (5, 5, 5, 9), (-1, 0, 5, 5), (0, 0, 25, 16), (30, 0, 40, 9))
    with pytest.raises(DatasetError, match="4 of 12 files are wrongly boxed"):
        prepare(dataset("table"), table, out)
    catalog = prepare(dataset("table"), table, out, on_bad="drop")
    assert len(catalog) == 8
    assert catalog.boxes is not None
    assert catalog.boxes[:2].tolist() == [[0, 0, 24, 16], [0, 0, 0, 0]]
    problems = pd.read_csv(out.with_suffix(".dropped.csv"))["problem"].tolist()
    assert problems[0] == "has the box (5, 5, 5, 9), which has no area"
    assert problems[2] == "has the box (0, 0, 25, 16), which reaches beyond its 24 x 16 pixels"


def test_a_benchmarks_boxes_are_cut_to_their_images(root: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(root, (-1, 0, 5, 5), (0, 0, 25, 17))
    benchmark = replace(dataset("table"), published={})
    boxes = prepare(benchmark, table, out).boxes
    assert boxes is not None
    assert boxes[:3].tolist() == [[0, 0, 5, 5], [0, 0, 24, 16], [0, 0, 0, 0]]
    assert "cut to (0, 0, 24, 16) kept" in printed(capsys)


def test_two_boxes_of_one_image_are_two_images(root: Path, out: Path) -> None:
    table = write_table(root, (0, 0, 12, 16), (12, 0, 24, 16))
    rows = pd.read_csv(table)
    rows.loc[1, "path"] = rows.loc[0, "path"]
    rows.to_csv(table, index=False)
    assert len(prepare(dataset("table"), table, out)) == 12


def test_nothing_is_overwritten_without_force(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.write_bytes(b"precious")
    opened = []
    monkeypatch.setattr(inspection, "inspect", lambda _, path: opened.append(path))
    with pytest.raises(OverwriteError, match="--force"):
        prepare(OWN, root, out)
    assert out.read_bytes() == b"precious"
    assert not opened  # refused before any work


def test_force_takes_the_list_of_an_earlier_run_away(root: Path, out: Path) -> None:
    (root / "b" / "empty.jpg").touch()
    prepare(OWN, root, out, on_bad="drop")
    (root / "b" / "empty.jpg").unlink()
    prepare(OWN, root, out, force=True)
    assert {path.name for path in out.parent.iterdir()} == {"data", "catalog.parquet"}


def test_a_catalog_of_no_use_is_not_written(root: Path, out: Path) -> None:
    for name in "cd":
        for path in sorted((root / name).iterdir())[1:]:
            path.unlink()
    with pytest.raises(CatalogError, match="nothing can be retrieved"):
        prepare(OWN, root, out)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="no image is left"):
        prepare(OWN, root, out, on_bad="drop")
    assert not out.exists()


def test_a_class_that_cannot_be_retrieved_is_named(root: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((root / "c").iterdir())[1:]:
        path.unlink()
    prepare(OWN, root, out)
    assert "test class 'c' has one image and cannot be retrieved" in printed(capsys)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing(
    root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def interrupted(decoders: DecoderPool, path: Path, kept: bool) -> inspection.Inspection:
        if path.name == "3.png":
            raise stop
        return inspect(decoders, path, kept)

    monkeypatch.setattr(inspection, "inspect", interrupted)
    with pytest.raises(stop):
        prepare(OWN, root, out, workers=1)
    assert {path.name for path in out.parent.iterdir()} == {"data"}


def test_what_cannot_be_prepared_is_named(root: Path, tmp_path: Path, out: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no .*nowhere"):
        prepare(OWN, tmp_path / "nowhere", out)
    with pytest.raises(DatasetError, match="needs --root"):
        prepare(OWN, None, out)
    with pytest.raises(CatalogError, match=r"a \.csv or a \.parquet"):
        prepare(OWN, root, tmp_path / "catalog.xlsx")
    with pytest.raises(DatasetError, match="workers is 0"):
        prepare(OWN, root, out, workers=0)


def test_images_that_are_made_lie_beside_the_catalog(root: Path, out: Path) -> None:
    def make(target: Path) -> Catalog:
        for seed in range(8):
            write_picture(target / "abcd"[seed // 2] / f"{seed}.png", seed)
        return folder.read(target, test_classes="half")

    made = Dataset("made", make, makes_images=True)
    assert prepare(made, None, out).table["path"][0] == "catalog/a/0.png"
    with pytest.raises(OverwriteError, match="--force"):
        prepare(made, None, out)
    assert len(prepare(made, None, out, force=True)) == 8
    with pytest.raises(OverwriteError, match="another --out"):  # not ours to replace
        prepare(made, None, root.with_suffix(".csv"), force=True)


@pytest.fixture
def decoders() -> Iterator[DecoderPool]:
    with DecoderPool(1) as pool:
        yield pool


def test_every_kind_of_image_opens(tmp_path: Path, decoders: DecoderPool) -> None:
    """What comes out of a JPEG that lies on its side is as high as the upright image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16)).save(tmp_path / "side.jpg", exif=exif)
    assert (inspect(decoders, tmp_path / "side.jpg").width, inspect(decoders, tmp_path / "side.jpg").height) == (16, 24)
    for mode in ("L", "P", "CMYK", "I;16", "RGBA", "1"):
        path = tmp_path / f"{mode.replace(';', '')}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (24, 16)).save(path)
        inspection = inspect(decoders, path)
        assert (inspection.width, inspection.height, inspection.problem) == (24, 16, "")


def test_a_folder_in_place_of_an_image_is_named(tmp_path: Path, decoders: DecoderPool) -> None:
    assert inspect(decoders, tmp_path).kind == "unreadable"
    assert inspect(decoders, tmp_path / "none.jpg").kind == "missing"


def put_archive(root: Path, archive: Path, seed: int) -> None:
    """An archive of three classes of two images each, others for every seed."""
    for number in range(6):
        write_picture(root / "abc"[number // 2] / f"{number}.png", seed + number, (60, 40))
    with tarfile.open(archive, "w") as opened:
        opened.add(root, "pictures")


def make_pictures(target: Path, *, first: int = 0) -> Catalog:
    """Images that are made for a catalog."""
    for number in range(6):
        write_picture(target / "abc"[number // 2] / f"{number}.png", first + number)
    return folder.read(target, test_classes="half")


def contents(out: Path) -> list[bytes]:
    return [path.read_bytes() for path in Catalog.read(out).paths]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
@pytest.mark.parametrize("kind", ["unpacked", "made", "copied"])
def test_a_kill_at_any_step_of_force_leaves_a_catalog_with_all_of_its_images(tmp_path: Path, kind: str) -> None:
    """And the next call of the same command leaves nothing but the new ones."""
    start = tmp_path / "start"
    start.mkdir()
    made = Dataset("made", make_pictures, makes_images=True)
    resize = 20 if kind == "copied" else None

    def prepare_in(place: Path, first: int, force: bool) -> None:
        if kind == "made":
            prepare(made, None, place / "catalog.csv", options={"first": first}, force=force, workers=1)
        else:
            root = tmp_path / f"{first}.tar"
            if kind == "copied":  # from a folder of one's own, whose images change in place
                root = place / "data" / "pictures"
            prepare(OWN, root, place / "catalog.csv", force=force, workers=1, resize=resize)

    def put(place: Path, first: int) -> None:
        put_archive(place / "data" / "pictures", tmp_path / f"{first}.tar", first)

    put(start, 0)
    prepare_in(start, 0, force=False)
    old = contents(start / "catalog.csv")
    put(start, 100)
    shutil.copytree(start, tmp_path / "new")
    prepare_in(tmp_path / "new", 100, force=True)
    new = contents(tmp_path / "new" / "catalog.csv")
    assert not set(old) & set(new)
    for step in range(20):
        shutil.copytree(start, tmp_path / str(step))

    def check(step: int) -> None:
        place = tmp_path / str(step)
        assert contents(place / "catalog.csv") in (old, new)

    killed = survives_kills(lambda step: prepare_in(tmp_path / str(step), 100, force=True), check, RENAMES)
    assert 3 <= killed < 20
    assert contents(tmp_path / str(killed) / "catalog.csv") == new
    for step in range(0, killed, 4):
        place = tmp_path / str(step)
        for leftover in place.glob(".*.tmp"):
            os.utime(leftover, (0, 0))  # those of the last minute are left in any case
        prepare_in(place, 100, force=True)
        assert contents(place / "catalog.csv") == new
        used = Catalog.read(place / "catalog.csv").table["path"][0].partition("/")[0]
        assert [path.name for path in place.iterdir() if path.is_dir() and path.name != "data"] == [used]
        assert not list(place.glob(".*.tmp"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
@pytest.mark.parametrize("kind", ["unpacked", "made", "dropped"])
def test_a_command_that_was_killed_at_any_step_can_be_repeated(tmp_path: Path, kind: str) -> None:
    """Without force: there is no catalog yet."""
    put_archive(tmp_path / "data", tmp_path / "a.tar", 0)
    if kind == "dropped":
        (tmp_path / "data" / "a" / "cut.png").write_bytes(b"no image")
    places = {"unpacked": tmp_path / "a.tar", "made": None, "dropped": tmp_path / "data"}
    dataset = Dataset("made", make_pictures, makes_images=True) if kind == "made" else OWN

    def prepare_in(step: int) -> None:
        out = tmp_path / str(step) / "catalog.csv"
        prepare(dataset, places[kind], out, on_bad="drop", workers=1)

    def check(step: int) -> None:
        out = tmp_path / str(step) / "catalog.csv"
        if not out.exists():
            prepare_in(step)
        assert len(contents(out)) == 6
        assert out.with_suffix(".dropped.csv").exists() == (kind == "dropped")

    assert 2 <= survives_kills(prepare_in, check) < 40


def test_what_force_cannot_replace_stays_with_its_images(tmp_path: Path, out: Path) -> None:
    put_archive(tmp_path / "a", tmp_path / "a.tar", 0)
    put_archive(tmp_path / "b", tmp_path / "b.tar", 100)
    (tmp_path / "b" / "a" / "cut.png").write_bytes(b"no image")
    with tarfile.open(tmp_path / "b.tar", "w") as opened:
        opened.add(tmp_path / "b", "pictures")
    prepare(OWN, tmp_path / "a.tar", out)
    before = contents(out)
    with pytest.raises(DatasetError, match="unreadable"):
        prepare(OWN, tmp_path / "b.tar", out, force=True)
    assert contents(out) == before
    prepare(OWN, tmp_path / "b.tar", out, on_bad="drop", force=True)
    assert sorted(path.name for path in out.parent.iterdir() if path.is_dir()) == ["a", "b", "catalog.2"]
    prepare(OWN, tmp_path / "a.tar", out.with_suffix(".csv"), force=True)  # which may still use the other's images
    prepare(OWN, tmp_path / "a.tar", out, force=True)
    assert sorted(path.name for path in out.parent.iterdir() if path.is_dir()) == ["a", "b", "catalog", "catalog.2"]


def test_a_list_that_a_killed_command_left_is_replaced_and_another_file_is_not(root: Path, out: Path) -> None:
    dropped = out.with_suffix(".dropped.csv")
    dropped.write_text("path,problem\na.png,is empty\n")
    prepare(OWN, root, out)
    assert not dropped.exists()
    dropped.write_text("name,price\n")
    with pytest.raises(OverwriteError, match="dropped"):
        prepare(OWN, root, out.with_suffix(".csv"))
    assert dropped.read_text() == "name,price\n"


def test_every_dataset_has_a_name_of_its_own() -> None:
    names = [dataset.name for dataset in DATASETS]
    images = ["cub200", "cars196", "sop", "inshop", "market1501", "omniglot", "folder", "table"]
    assert names == [*images, "vectors", "glyphs"]
