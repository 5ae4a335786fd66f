"""A gallery's folder as a stranger may have made it: read as data, and nothing outside of it is written to."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from proxygml import Gallery
from proxygml.errors import GalleryError, UserError
from proxygml.gallery.kinds import Kind
from tests.helpers.commands import refused
from tests.helpers.commands import run as command
from tests.helpers.vectors import clustered, items

INDEXED: tuple[Kind, ...] = ("hnsw", "ivfpq", "int8", "binary", "ivfbinary")


@pytest.fixture(scope="module")
def galleries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("galleries")
    kinds: tuple[Kind, ...] = ("exact", *INDEXED)
    for kind in kinds:
        Gallery.create(clustered(1200), items(1200), kind).save(folder / kind)
    return folder


@pytest.fixture
def crafted(galleries: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(galleries / kind, tmp_path / kind))


def changed(folder: Path, **values: Any) -> None:
    """Change gallery.json, and let the sizes and checksums be those of the files."""
    manifest = folder / "gallery.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | values))


def with_index(folder: Path, data: bytes) -> None:
    (index,) = folder.glob("index-*")
    index.write_bytes(data)
    files = json.loads((folder / "gallery.json").read_text())["files"]
    changed(folder, files=files | {index.name: {"size": len(data), "sha256": []}})


def on_disk(folder: Path, outside: Path) -> bytes:
    """The folder's IVF index, with its lists in another file."""
    (path,) = folder.glob("index-*")
    index = faiss.read_index(str(path))
    inner = faiss.downcast_index(index.index)
    lists = faiss.OnDiskInvertedLists(inner.nlist, inner.code_size, str(outside))
    lists.merge_from_1(inner.invlists)
    inner.replace_invlists(lists, False)
    return bytes(faiss.serialize_index(index))


def test_an_index_whose_lists_are_in_another_file_is_refused_and_that_file_stays(
    crafted: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, victim = crafted("ivfpq"), tmp_path / "precious.txt"
    data = on_disk(folder, victim)
    victim.write_bytes(b"precious")
    with_index(folder, data)
    with pytest.raises(GalleryError, match="'ilod', which no index of ours has"):
        Gallery.load(folder)
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("text", ["IDMap,Flat", "PCA8,Flat", "IVF4,Flat", "SQ8", "HNSW8,SQ8", "IVF4,SQ8", "NSG8,Flat"])
def test_other_kinds_of_indexes_are_refused(text: str, crafted: Callable[[str], Path]) -> None:
    folder = crafted("hnsw")
    index = faiss.index_factory(16, text, faiss.METRIC_INNER_PRODUCT)
    index.train(clustered(1200))
    index.add_with_ids(clustered(1200), np.arange(1200)) if "IDMap" in text else index.add(clustered(1200))
    with_index(folder, bytes(faiss.serialize_index(index)))
    with pytest.raises(GalleryError, match="cannot be read as an index"):
        Gallery.load(folder)


@pytest.mark.parametrize("kind", INDEXED)
def test_an_index_of_other_vectors_is_refused(kind: Kind, crafted: Callable[[str], Path], tmp_path: Path) -> None:
    folder = crafted(kind)
    for vectors, message in ((clustered(1200, 8), "size 8"), (clustered(1300), "1,300 vectors")):
        Gallery.create(vectors, items(len(vectors)), kind).save(tmp_path / f"{len(vectors)}-{vectors.shape[1]}")
        (other,) = (tmp_path / f"{len(vectors)}-{vectors.shape[1]}").glob("index-*")
        with_index(folder, other.read_bytes())
        with pytest.raises(GalleryError, match=message):
            Gallery.load(folder)


@pytest.mark.parametrize("kind", INDEXED)
def test_an_index_with_any_number_changed_is_refused_or_searched_without_harm(
    kind: Kind, crafted: Callable[[str], Path]
) -> None:
    """Sizes, counts and links of an index: huge, negative, or one beyond what is there."""
    folder = crafted(kind)
    (index,) = folder.glob("index-*")
    whole, random = index.read_bytes(), np.random.default_rng(0)
    anywhere = random.integers(0, len(whole) - 8, 150 if kind in ("hnsw", "ivfpq") else 30)
    heads = [0, *(place for name in (b"IwPQ", b"Ixrq", b"Iwrq") if (place := whole.find(name)) > 0)]  # after rotations
    places = [place for head in heads for place in range(head, head + 400, 4)] + anywhere.tolist()
    for place in places:
        for value in (struct.pack("<q", 2**39), struct.pack("<i", -7), struct.pack("<i", 1200)):
            with_index(folder, whole[:place] + value + whole[place + len(value) :])
            try:
                found = Gallery.load(folder).search(clustered(2), 3).ids
            except UserError:
                continue
            assert found.shape == (2, 3)
    for length in (0, 3, 4, 100, len(whole) // 2, len(whole) - 1):
        with_index(folder, whole[:length])
        with pytest.raises(GalleryError):
            Gallery.load(folder)


@pytest.mark.parametrize("name", ["vectors", "items", "index"])
def test_a_link_in_a_gallery_is_refused_before_anything_is_written(
    name: str, crafted: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, victim = crafted("hnsw"), tmp_path / "victim"
    (file,) = folder.glob(f"{name}-*")
    shutil.move(file, victim)
    before = victim.read_bytes()
    file.symlink_to(victim)
    with pytest.raises(GalleryError, match="is a link"):
        Gallery.load(folder)
    with pytest.raises(GalleryError, match="is a link"):
        Gallery.build(folder, [(clustered(5), items(5))], force=True)
    assert victim.read_bytes() == before


@pytest.mark.parametrize("place", ["images", ".partial", ".partial/vectors.npy", ".lock-holder", "vectors-0.f32"])
def test_other_links_are_refused_too(place: str, crafted: Callable[[str], Path], tmp_path: Path) -> None:
    folder = crafted("exact")
    (tmp_path / "elsewhere").mkdir()
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GalleryError, match="is a link"):
        Gallery.load(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"rows": "many"}, {"rows": -1}, {"rows": 1.5}, {"rows": True}, {"rows": 10**30}, {"rows": 1201}, {"rows": 1199},
        {"dimension": 0}, {"dimension": 10**9}, {"dimension": None}, {"dimension": 17}, {"next_id": 5},
        {"next_id": []}, {"generation": "1"}, {"kind": "flat"}, {"kind": 3}, {"index": "items-0.parquet"},
        {"threshold": 0.5}, {"threshold": {"score": "x"}}, {"threshold": []}, {"recall": float("nan")}, {"recall": 7},
        {"threshold": {"score": 0.5, "false_accept_rate": 0.1, "true_accept_rate": None, "queries": 1, "classes": {}}},
        {"columns": []}, {"columns": {"path": "strange"}}, {"columns": {"path": 3}}, {"columns": {"path": "str"}},
        {"columns": {"path": "str", "label": "str", "size": "time[us, Nowhere/At_All]"}},
        {"columns": {"path": "int64", "label": "str", "size": "int64"}}, {"model": 3}, {"run": None}, {"extra": 1},
        {"vectors": "../x"}, {"vectors": "gallery.json"}, {"items": "/etc/passwd"}, {"vectors": "vectors-0.f32\n"},
        {"files": {}}, {"files": {"x": {"size": 1, "sha256": []}}},
    ],
)  # fmt: skip
def test_a_manifest_with_impossible_values_is_refused(values: dict[str, Any], crafted: Callable[[str], Path]) -> None:
    folder = crafted("exact")
    changed(folder, **values)
    with pytest.raises(GalleryError, match="build|cannot be"):
        Gallery.load(folder)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"[]", b"3", b"\xff\xfe", b"{}", b'{"format": 2}', b"null"])
def test_a_manifest_that_is_none_is_refused(text: bytes, crafted: Callable[[str], Path]) -> None:
    folder = crafted("exact")
    (folder / "gallery.json").write_bytes(text)
    with pytest.raises(GalleryError, match="build"):
        Gallery.load(folder)


def test_a_huge_manifest_is_refused_unread(crafted: Callable[[str], Path]) -> None:
    folder = crafted("exact")
    with (folder / "gallery.json").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(GalleryError, match="at most"):
        Gallery.load(folder)


@pytest.mark.parametrize("change", ["fewer", "falling", "column", "null", "text"])
def test_items_that_do_not_fit_are_refused(change: str, crafted: Callable[[str], Path]) -> None:
    folder = crafted("exact")
    (path,) = folder.glob("items-*")
    table = pq.read_table(path).to_pandas()
    table = {
        "fewer": table[1:],
        "falling": table.assign(id=table["id"][::-1].to_numpy()),
        "column": table.assign(more=1),
        "null": table.assign(id=table["id"].astype("Int64").where(table["id"] != 5)),
        "text": table.assign(size="x"),
    }[change]
    table.to_parquet(path, index=False)
    files = json.loads((folder / "gallery.json").read_text())["files"]
    changed(folder, files=files | {path.name: {"size": path.stat().st_size, "sha256": []}})
    with pytest.raises(GalleryError):
        Gallery.load(folder)


@pytest.mark.parametrize("name", ["vectors", "items", "index"])
def test_a_flipped_bit_is_found_by_verify(
    name: str, crafted: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = crafted("hnsw")
    gallery = Gallery.load(folder)
    gallery.add(clustered(7), items(7))
    gallery.remove([2])
    gallery.save()
    command("index", "--verify", "--out", folder)
    assert "1,206 items, nothing has changed" in capsys.readouterr().out
    (path,) = folder.glob(f"{name}-*")
    data = bytearray(path.read_bytes())
    for place in (100, len(data) // 2, len(data) - 1):
        data[place] ^= 1
        path.write_bytes(data)
        if name == "vectors":
            assert f"{path} has changed" in refused(capsys, "index", "--verify", "--out", folder)
        else:
            refused(capsys, "index", "--verify", "--out", folder)
        data[place] ^= 1
    path.write_bytes(data[:-1])
    photo = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(photo)
    assert "bytes instead of" in refused(capsys, "search", folder, photo)


def test_checksums_of_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what was appended is read again."""
    monkeypatch.setattr("proxygml.gallery.folder.checksums._PART", 1000)
    gallery = Gallery.create(clustered(100), items(100))
    gallery.save(tmp_path / "g")
    for _ in range(3):
        gallery.add(clustered(13), items(13))
        gallery.save()
        Gallery.load(tmp_path / "g").verify()
    assert isinstance(pd.read_parquet(next((tmp_path / "g").glob("items-*"))), pd.DataFrame)
