"""Reading, listing and writing at URLs, and the copies that are kept of what is read."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from proxygml import embed
from proxygml.data.catalog import Catalog
from proxygml.data.images.decode import read_file
from proxygml.data.images.image_list import ImageList, file_stamps
from proxygml.data.preparing.prepare import prepare
from proxygml.disk_cache import DiskCache, largest_size
from proxygml.errors import DatasetError, ImageError, OverwriteError, UserError
from proxygml.remote import check_free, files_below, local_file, read, read_kept, stamps, written
from proxygml.urls import Url, as_place, url_of
from tests.helpers.models import untrained
from tests.helpers.object_store import forget, put
from tests.helpers.pictures import encoded, gradient

PICTURE = encoded(gradient(), "PNG")


@pytest.mark.parametrize(
    ("url", "parent", "name", "suffix"),
    [
        ("s3://bucket/a/b.csv", "s3://bucket/a", "b.csv", ".csv"),
        ("s3://bucket/b", "s3://bucket", "b", ""),
        ("s3://bucket", "s3://bucket", "bucket", ""),
        ("memory://a.csv", "memory://", "a.csv", ".csv"),
        ("https://host/x/t.parquet?key=a/b.c#d", "https://host/x", "t.parquet", ".parquet"),
        ("s3://bucket/what?.png", "s3://bucket", "what?.png", ".png"),
    ],
)
def test_names_of_urls(url: str, parent: str, name: str, suffix: str) -> None:
    found = Url(url)
    assert (found.parent, found.name, found.suffix) == (parent, name, suffix)


@pytest.mark.parametrize(
    ("url", "name", "expected"),
    [
        ("s3://bucket/a", "b/c.png", "s3://bucket/a/b/c.png"),
        ("s3://bucket/a", "../c.png", "s3://bucket/c.png"),
        ("s3://bucket/a", "../../../../c.png", "s3://bucket/c.png"),
        ("s3://bucket/a", "b/../../..", "s3://bucket"),
        ("s3://bucket/a", "./b//c.png", "s3://bucket/a/b/c.png"),
        ("https://host/a", "b 1?.png", "https://host/a/b%201%3F.png"),
        ("memory://", "a.png", "memory://a.png"),
    ],
)
def test_relative_paths_from_a_url(url: str, name: str, expected: str) -> None:
    assert Url(url) / name == expected


def test_urls_are_found_as_pathlib_and_users_write_them(tmp_path: Path) -> None:
    for text in ("S3://bucket/x/", Path("s3://bucket/x"), Url("s3://bucket/x")):
        assert as_place(text, "--root") == "s3://bucket/x"
    assert as_place(tmp_path, "--root") == tmp_path and url_of("C:/x") is None and url_of("a:b") is None


def test_what_is_not_there_and_what_cannot_be_written_is_named(store: str) -> None:
    put(store, {"a.txt": b"a"})
    missing = Url(f"{store}/b")
    for call in (lambda: read(missing, 9), lambda: local_file(missing), lambda: read_kept(missing, 9)):
        with pytest.raises(UserError, match=f"there is no {store}/b"):
            call()
    with pytest.raises(UserError, match="has more than 0 bytes"):
        read(Url(f"{store}/a.txt"), 0)
    with pytest.raises(UserError, match="is a folder, but must be a file"):
        local_file(Url(store))
    with pytest.raises(OverwriteError, match="give --force"):
        check_free(Url(f"{store}/a.txt"), force=False)
    check_free(Url(f"{store}/a.txt"), force=True)
    assert list(files_below(Url(store))) == ["a.txt"]


def test_a_bucket_that_is_not_there_is_named_before_anything_is_embedded(s3: str, few: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"s3://nobody/v\.parquet cannot be written: there is no such bucket"):
        embed(untrained(tmp_path / "run"), "s3://nobody/v.parquet", catalog=few)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImageError, match=r"gs://bucket/a\.png: gs:// needs the package gcsfs: pip install gcsfs"):
        read_file("gs://bucket/a.png")


def test_listing_goes_through_all_pages_in_the_order_of_folders(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxygml.remote.PAGE", 8)
    store = "s3://bucket/many"
    put(store, {f"{number % 3}/{number:04d}.png": b"" for number in range(30)} | {"1-x.png": b"", "2/": b""})
    found = ImageList.from_files([Url(store)]).paths
    names = [path.removeprefix(f"{store}/") for path in found]
    assert len(names) == 31 and names == sorted(names, key=lambda name: name.split("/"))
    assert all(stamp > 0 for stamp in file_stamps(found))
    forget(store)


def test_stamps_change_with_the_file_and_are_the_same_singly_and_in_a_listing(store: str) -> None:
    put(store, {f"{number}.png": str(number).encode() for number in range(20)})
    urls = [Url(f"{store}/{number}.png") for number in (*range(20), 99)]
    together, apart = stamps(urls), [stamps([url])[0] for url in urls]
    assert together == apart and together[-1] == 0 and 0 not in together[:-1]
    put(store, {"7.png": b"other"})
    assert [one != other for one, other in zip(stamps(urls), together, strict=True)] == [n == 7 for n in range(21)]


def test_what_is_left_out_is_named(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a/b.png", ".git/x.png", ".git/y.png", "Thumbs.db", "notes.txt", "c/.DS_Store")
    put(store, dict.fromkeys(names, b""))
    assert ImageList.from_files([Url(store), Url(f"{store}/a/b.png")]).paths == [f"{store}/a/b.png"]
    message = re.sub(r"\s+", " ", capsys.readouterr().err)
    for words in (
        "hidden: 2 (.git, c/.DS_Store)",
        "not named like an image: 1 (notes.txt)",
        "listed already: 1",
        "left by a file manager: 1 (Thumbs.db)",
    ):
        assert words in message
    with pytest.raises(ImageError, match=f"there is no {store}/none"):
        ImageList.from_files([Url(f"{store}/none")])


def test_bad_images_are_reported_as_those_on_this_machine(store: str, tmp_path: Path) -> None:
    files = {f"{label}/{n}.png": encoded(gradient(20 + n, 20 + label), "PNG") for label in range(4) for n in range(3)}
    bad = {"0/bad.png": b"none", "1/empty.png": b"", "stray.png": PICTURE, "2/twice.png": files["2/0.png"]}
    put(store, files | bad)
    options = {"test_classes": "half"}
    with pytest.raises(DatasetError, match=r"unreadable \(0/bad\.png, 1/empty\.png\).*duplicated \(2/twice\.png\)"):
        prepare("folder", store, tmp_path / "c.csv", options=options)
    assert not (tmp_path / "c.csv").exists()
    catalog = prepare("folder", store, tmp_path / "c.csv", options=options, on_bad="drop")
    assert len(catalog) == len(files)
    forget(f"{store}/3/1.png")
    run = untrained(tmp_path / "run")
    with pytest.raises(ImageError, match=rf"1 of 12 images cannot be embedded \({store}/3/1\.png\)"):
        embed(run, tmp_path / "v.parquet", catalog=tmp_path / "c.csv", workers=0)
    assert embed(run, tmp_path / "v.parquet", catalog=tmp_path / "c.csv", workers=0, on_bad="drop").rows == 11


def test_a_table_is_fetched_again_only_when_it_has_changed(store: str, own_cache: Path) -> None:
    put(store, {"t.csv": b"path,label,split\na.png,a,train\n"})
    url = Url(f"{store}/t.csv")
    first = local_file(url)
    assert local_file(url) == first and [path.name for path in own_cache.rglob("*") if path.is_file()] == ["t.csv"]
    put(store, {"t.csv": b"path,label,split\nb.png,a,train\n"})
    assert Catalog.read(url).paths == [f"{store}/b.png"]


def test_a_file_appears_at_a_url_whole_or_not_at_all(store: str, own_cache: Path) -> None:
    put(store, {"x": b""})
    with pytest.raises(RuntimeError), written(Url(f"{store}/new")) as path:
        path.write_bytes(b"half")
        raise RuntimeError
    with written(Url(f"{store}/new")) as path:
        path.write_bytes(b"whole")
        assert list(files_below(Url(store))) == ["x"]
    assert read(Url(f"{store}/new"), 9) == b"whole"
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_images_are_kept_for_a_day(own_cache: Path) -> None:
    put("memory://kept", {"a.png": b"one"})
    url = Url("memory://kept/a.png")
    assert read_kept(url, 9) == b"one"
    put("memory://kept", {"a.png": b"two"})
    assert read_kept(url, 9) == b"one" and read(url, 9) == b"two"
    (copy,) = (path for path in own_cache.rglob("*") if path.is_file())
    os.utime(copy, (time.time(), time.time() - 25 * 3600))
    assert read_kept(url, 9) == b"two"
    forget("memory://kept")


def test_the_disk_cache_stays_within_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYGML_CACHE_GB", "0.0001")  # 100 kB
    old = time.time() - 10**7
    for number in range(12):
        cache = DiskCache(tmp_path)
        path = cache.path(f"key {number}", "image")
        cache.keep(path, bytes(20_000))
        if path.exists():
            os.utime(path, (old + number, old + number))
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(sizes) <= 120_000 and cache.recent(path, 10**9) is not None
    held = cache.fetch(cache.path("file", "a.bin"), lambda target: target.write_bytes(bytes(90_000)) and None)
    os.utime(held, (old - 1, old - 1))
    DiskCache(tmp_path).keep(tmp_path / "x" / "y" / "image", bytes(10))
    assert held.is_file()
    monkeypatch.setenv("PROXYGML_CACHE_GB", "0")
    cache.keep(tmp_path / "z" / "y" / "image", bytes(10))
    assert not (tmp_path / "z").exists()
    monkeypatch.setenv("PROXYGML_CACHE_GB", "much")
    with pytest.raises(UserError, match="PROXYGML_CACHE_GB is 'much'"):
        largest_size()


def test_nothing_of_fsspec_is_loaded_without_a_url() -> None:
    code = "import sys, proxygml.cli.main, proxygml.remote; assert not {'fsspec', 's3fs'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert fsspec.filesystem("memory")
