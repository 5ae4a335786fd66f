"""Smaller copies: the right size, the right pixels, the right boxes, and nothing done twice or by halves."""

import os
import resource
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torchvision.transforms import v2

from proxygml.console import console
from proxygml.data.catalog import Catalog
from proxygml.data.columns import BOX_COLUMNS
from proxygml.data.datasets import Dataset, folder, table
from proxygml.data.images.folders import ImageFolders
from proxygml.data.images.tensors import decode_image
from proxygml.data.images.transforms import cut_box
from proxygml.data.preparing.prepare import prepare
from proxygml.data.preparing.resize import Size, copy_smaller
from proxygml.errors import DatasetError
from tests.helpers.pictures import write_picture

FOLDER = Dataset("folder", partial(folder.read, test_classes="half"), strays=folder.strays)


@pytest.fixture(autouse=True)
def _wide_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 200)


def catalog_of(root: Path, names: Sequence[str], boxes: Sequence[tuple[int, int, int, int] | None] = ()) -> Catalog:
    rows = pd.DataFrame({"path": names, "label": [f"class {i // 2}" for i in range(len(names))], "split": "train"})
    if boxes:
        edges = pd.DataFrame([box or (pd.NA,) * 4 for box in boxes], columns=list(BOX_COLUMNS))
        rows = pd.concat([rows, edges], axis=1)
    return Catalog(rows, root)


def copied(catalog: Catalog, folder: Path, shorter_side: int) -> Catalog:
    sizes = {path: Size(*decode_image(path).shape[1:]) for path in catalog.paths}
    return copy_smaller(catalog, sizes, folder, shorter_side)


def difference(copy: Path, source: Path, size: tuple[int, int]) -> float:
    """Mean difference from torchvision's own scaling, in grey levels."""
    expected = v2.functional.resize(decode_image(source), list(size), v2.InterpolationMode.BICUBIC, antialias=True)
    found = decode_image(copy)
    assert found.shape == expected.shape
    return float((found.int() - expected.int()).abs().float().mean())


def test_copies_are_scaled_and_kept_as_their_sources_were(tmp_path: Path) -> None:
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)).resize((90, 61))
    names = ["a.jpg", "b.JPEG", "c.png", "d.bmp", "deep/er/e.webp", "f.data"]
    (tmp_path / "deep/er").mkdir(parents=True)
    for name in names[:-1]:
        smooth.save(tmp_path / name, **({"quality": 95} if name.lower().endswith("eg") else {}))  # type: ignore[arg-type]
    smooth.save(tmp_path / "f.data", "JPEG")
    catalog = copied(catalog_of(tmp_path, names), tmp_path / "copies", 20)
    assert list(catalog.table["path"]) == ["a.jpg", "b.JPEG", "c.png", "d.bmp.png", "deep/er/e.webp.jpg", "f.data.jpg"]
    for copy, name in zip(catalog.paths, names, strict=True):
        lossless = copy.suffix == ".png"
        assert difference(copy, tmp_path / name, (20, 29)) <= (0 if lossless else 6)
    assert catalog.labels == ["class 0", "class 0", "class 1", "class 1", "class 2", "class 2"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photos_are_stored_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)).resize((90, 60))
    smooth.save(tmp_path / "a.jpg", exif=exif, quality=95)
    size = (20, 30) if orientation < 5 else (30, 20)
    catalog = copied(catalog_of(tmp_path, ["a.jpg"]), tmp_path / "copies", 20)
    assert difference(catalog.paths[0], tmp_path / "a.jpg", size) < 6


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "I;16"])
def test_odd_modes_are_stored_as_they_decode(tmp_path: Path, mode: str) -> None:
    levels = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30)
    image = Image.fromarray(levels * 50) if mode == "I;16" else Image.fromarray((levels // 5).astype(np.uint8))
    (image if mode == "I;16" else image.convert(mode)).save(tmp_path / "a.png")
    catalog = copied(catalog_of(tmp_path, ["a.png"]), tmp_path / "copies", 15)
    assert difference(catalog.paths[0], tmp_path / "a.png", (20, 15)) == 0


def test_images_are_never_enlarged(tmp_path: Path) -> None:
    small = write_picture(tmp_path / "a.png", 0, (24, 16))
    catalog = copied(catalog_of(tmp_path, ["a.png"]), tmp_path / "copies", 16)
    assert catalog.paths[0].read_bytes() == small.read_bytes()


def test_boxes_show_the_same_part(tmp_path: Path) -> None:
    """A red rectangle and the box around it; the image is there twice, and once without a box."""
    pixels = np.full((300, 401, 3), 255, dtype=np.uint8)
    pixels[90:210, 101:302] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    boxes = [(101, 90, 302, 210), (0, 0, 401, 300), None, (400, 299, 401, 300)]
    catalog = copied(catalog_of(tmp_path, ["a.png"] * 4, boxes), tmp_path / "copies", 100)
    assert catalog.boxes is not None
    assert catalog.boxes.tolist() == [[33, 30, 101, 70], [0, 0, 133, 100], [0] * 4, [132, 99, 133, 100]]
    assert catalog.table[list(BOX_COLUMNS)].iloc[2].isna().all()
    red = cut_box(decode_image(catalog.paths[0]), (34, 31, 100, 69), "a")
    assert (red[0].float().mean() > 250) & (red[1:].float().mean() < 5)
    assert len(list((tmp_path / "copies").iterdir())) == 1


def test_a_second_run_makes_only_what_is_missing_or_out_of_date(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        write_picture(tmp_path / f"{name}.png", seed, (60, 40))
    catalog = catalog_of(tmp_path, ["a.png", "b.png", "c.png"])
    first = copied(catalog, tmp_path / "copies", 20)
    kept, missing, changed = first.paths
    for path in first.paths:
        path.with_name(f"{path.name}.mark").touch()
    inode = kept.stat().st_ino
    missing.unlink()
    write_picture(tmp_path / "c.png", 9, (60, 40))
    os.utime(tmp_path / "c.png", (1, 1))  # older than its copy, but another
    again = copied(catalog, tmp_path / "copies", 20)
    pd.testing.assert_frame_equal(again.table, first.table)
    assert kept.stat().st_ino == inode
    assert difference(missing, tmp_path / "b.png", (20, 30)) == 0
    assert difference(changed, tmp_path / "c.png", (20, 30)) == 0
    assert not list((tmp_path / "copies").glob(".*"))


def test_images_from_elsewhere_keep_apart(tmp_path: Path) -> None:
    one, two = (write_picture(tmp_path / name / "a.png", seed, (60, 40)) for seed, name in enumerate(("one", "two")))
    catalog = copied(catalog_of(tmp_path / "one", [str(one), "../two/a.png"]), tmp_path / "one" / "copies", 20)
    assert difference(catalog.paths[0], one, (20, 30)) == 0
    assert difference(catalog.paths[1], two, (20, 30)) == 0
    assert all(path.resolve().is_relative_to(tmp_path / "one" / "copies") for path in catalog.paths)


def test_two_images_with_one_copy_are_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.bmp", 0, (60, 40))
    write_picture(tmp_path / "a.bmp.png", 1, (60, 40))
    with pytest.raises(DatasetError, match=r"a\.bmp and .*a\.bmp\.png would both be copied"):
        copied(catalog_of(tmp_path, ["a.bmp", "a.bmp.png"]), tmp_path / "copies", 20)


def test_a_copy_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 0, (60, 40))
    (tmp_path / "copies").touch()
    with pytest.raises(DatasetError, match=r"copies/a\.png cannot be written"):
        copied(catalog_of(tmp_path, ["a.png"]), tmp_path / "copies", 20)


def test_prepare_points_the_catalog_at_the_copies(tmp_path: Path) -> None:
    for seed in range(8):
        write_picture(tmp_path / "data" / "abcd"[seed // 2] / f"{seed}.png", seed, (60, 40))
    (tmp_path / "data" / "a" / "cut.png").write_bytes(b"\x89PNG")
    out = tmp_path / "made" / "catalog.csv"
    with pytest.raises(DatasetError, match=r"unreadable \(a/cut\.png\)"):
        prepare(FOLDER, tmp_path / "data", out, resize=20)
    assert not (tmp_path / "made").exists()
    catalog = prepare(FOLDER, tmp_path / "data", out, resize=20, on_bad="drop")
    assert catalog.table["path"][0] == "catalog.20px/a/0.png"
    assert {tuple(decode_image(path).shape) for path in catalog.paths} == {(3, 20, 30)}
    assert catalog.labels == list("aabbccdd")


def test_prepare_scales_the_boxes_of_a_table(tmp_path: Path) -> None:
    for seed in range(8):
        write_picture(tmp_path / "data" / f"{seed}.png", seed, (60, 40))
    rows = {"path": [f"{i}.png" for i in range(8)], "label": list("aabbccdd"), "split": ["train"] * 4 + ["test"] * 4}
    boxes = {"x_1": 6, "y_1": 10, "x_2": 60, "y_2": 40}
    pd.DataFrame(rows | boxes).to_csv(tmp_path / "data" / "own.csv", index=False)
    own = Dataset("table", table.read)
    catalog = prepare(own, tmp_path / "data" / "own.csv", tmp_path / "out.parquet", resize=20)
    assert catalog.boxes is not None
    assert catalog.boxes.tolist() == [[3, 5, 30, 20]] * 8


def test_impossible_copies_are_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "data" / "a" / "0.png", 0)
    with pytest.raises(DatasetError, match="resize is 0, but must be 1 to "):
        prepare(FOLDER, tmp_path / "data", tmp_path / "out.csv", resize=0)
    with pytest.raises(DatasetError, match="among the images"):
        prepare(FOLDER, tmp_path / "data", tmp_path / "data" / "out.csv", resize=20)


def test_a_folder_that_cannot_be_begun_is_not_there(tmp_path: Path) -> None:
    """A limit on the size of files fails a write as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match=r"c\.16px"):
            ImageFolders(tmp_path / "c.16px").started("origin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
