"""Embedding many files: bad ones named, stopped work continued, vectors written and read."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from proxygml.data.catalog import Catalog
from proxygml.data.images import ImageSettings
from proxygml.errors import GalleryError, ImageError, OverwriteError, RunError
from proxygml.models.embedder import Embedder, EmbedderSettings, fingerprint
from proxygml.models.embedding import ImageList, VectorFile, embed_images, write_vectors
from tests.helpers.pictures import write_picture


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small, untrained model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    Embedder(EmbedderSettings("conv4", "none", "avg", 8), ImageSettings(size=16, resize=16)).save(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(6):
        write_picture(tmp_path / "photos" / "deep" / f"{number}.png", number)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    write_picture(tmp_path / "photos" / ".hidden" / "x.png", 9)
    return tmp_path / "photos"


def test_folders_and_files_are_listed_once(photos: Path) -> None:
    images = ImageList.from_files([photos, photos / "deep" / "3.png"])
    assert images.paths == [str((photos / "deep" / f"{n}.png").resolve()) for n in range(6)]
    with pytest.raises(ImageError, match="there is no"):
        ImageList.from_files([photos / "none"])
    with pytest.raises(ImageError, match="no image is in"):
        (photos / "empty").mkdir()
        ImageList.from_files([photos / "empty"])


def test_a_bad_image_is_named_and_what_was_done_is_kept(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "deep" / "2.png").write_bytes(b"\x89PNG broken")
    images, embedder = ImageList.from_files([photos]), Embedder.load(run)
    with pytest.raises(ImageError, match=r"1 of 6 images cannot be embedded .*2\.png"):
        embed_images(embedder, "m", images, tmp_path / "work", workers=0)
    opened = []
    monkeypatch.setattr("proxygml.data.images.decode_image", _recorded(opened))
    embedded = embed_images(embedder, "m", images, tmp_path / "work", on_bad="drop", workers=0)
    assert [Path(path).name for path in opened] == ["2.png"], "only the bad image was tried again"
    vectors, table = embedded.whole()
    assert [Path(path).name for path in table["path"]] == ["0.png", "1.png", "3.png", "4.png", "5.png"]
    torch.testing.assert_close(torch.from_numpy(vectors), embedder.embed(list(table["path"])), atol=1e-6, rtol=0)
    opened.clear()
    write_picture(photos / "deep" / "2.png", 2)
    write_picture(photos / "deep" / "4.png", 44)
    whole, _ = embed_images(embedder, "m", images, tmp_path / "work", workers=0).whole()
    assert sorted(Path(path).name for path in opened) == ["2.png", "4.png"], "mended and changed files alone"
    torch.testing.assert_close(torch.from_numpy(whole), embedder.embed(images.paths), atol=1e-6, rtol=0)
    opened.clear()
    embed_images(embedder, "another model", images, tmp_path / "work", workers=0)
    assert len(opened) == 6, "nothing of another model is kept"


def _recorded(opened: list[str]):  # type: ignore[no-untyped-def]
    from proxygml.data.images import decode_image

    def decode(path: str):  # type: ignore[no-untyped-def]
        opened.append(path)
        return decode_image(path)

    return decode


def test_boxes_are_cut(run: Path, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", 0, (40, 30))
    table = pd.DataFrame(
        {"path": ["a.png"] * 2, "label": "x", "split": "test"}
        | {name: [value, None] for name, value in zip(("x_1", "y_1", "x_2", "y_2"), (3, 4, 20, 22), strict=True)}
    )
    images, embedder = ImageList.from_catalog(Catalog(table, tmp_path)), Embedder.load(run)
    vectors, _ = embed_images(embedder, "m", images, tmp_path / "work", workers=0).whole()
    boxes = np.array([[3, 4, 20, 22], [0, 0, 0, 0]])
    torch.testing.assert_close(torch.from_numpy(vectors), embedder.embed([path, path], boxes=boxes))


KILLED = """
import sys
from pathlib import Path
from proxygml.models import embedding
from proxygml.models.embedder import Embedder
import os, signal
embedding.BLOCK = 8
keep, kept = embedding._keep, []
def kill_after_three(*arguments):
    keep(*arguments)
    kept.append(1)
    if len(kept) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
embedding._keep = kill_after_three
images = embedding.ImageList.from_files([Path(sys.argv[2])])
embedding.embed_images(Embedder.load(sys.argv[1]), "m", images, Path(sys.argv[3]), workers=0, batch_size=4)
"""


def test_after_sigkill_it_goes_on_where_it_was(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(40):
        write_picture(tmp_path / "photos" / f"{number:02d}.png", number)
    arguments = [sys.executable, "-c", KILLED, str(run), str(tmp_path / "photos"), str(tmp_path / "work")]
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == -9
    images, embedder = ImageList.from_files([tmp_path / "photos"]), Embedder.load(run)
    vectors, _ = embed_images(embedder, "m", images, tmp_path / "work", workers=0).whole()
    assert "going on with 24 of 40 images" in capsys.readouterr().err
    torch.testing.assert_close(torch.from_numpy(vectors), embedder.embed(images.paths), atol=1e-6, rtol=0)


def test_only_one_process_works_in_a_folder(run: Path, photos: Path, tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from proxygml.files import exclusive_lock\n"
    code += "with exclusive_lock(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    lock = tmp_path / "work" / ".lock"
    other = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline()
        with pytest.raises(OverwriteError, match="another process"):
            embed_images(Embedder.load(run), "m", ImageList.from_files([photos]), tmp_path / "work", workers=0)
    finally:
        other.kill()
        other.wait()
    embed_images(Embedder.load(run), "m", ImageList.from_files([photos]), tmp_path / "work", workers=0)


def test_vectors_come_back_from_parquet_as_they_were(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    table = pd.DataFrame({"path": [f"{n}.png" for n in range(10)], "label": [None, *"abcdefghi"]})
    blocks = [(vectors[:6], table[:6]), (vectors[6:], table[6:])]
    write_vectors(tmp_path / "v.parquet", blocks, model="m", run="r")
    file = VectorFile(tmp_path / "v.parquet")
    assert (file.model, file.run, file.dimension) == ("m", "r", 4)
    read = list(file.blocks())
    assert np.array_equal(np.concatenate([part for part, _ in read]), vectors)
    pd.testing.assert_frame_equal(pd.concat([part for _, part in read], ignore_index=True), table)
    assert list(pd.read_parquet(tmp_path / "v.parquet").columns) == ["path", "label", "embedding"]
    with pytest.raises(OverwriteError):
        write_vectors(tmp_path / "v.parquet", blocks, model="m", run="r")
    table.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "n.parquet").write_text("no")
    for name, message in (("t", "no column of vectors"), ("n", "cannot be read"), ("x", "there is no")):
        with pytest.raises(GalleryError, match=message):
            VectorFile(tmp_path / f"{name}.parquet")


def test_fingerprints_tell_models_apart(run: Path, tmp_path: Path) -> None:
    Embedder.load(run).save(tmp_path)
    assert fingerprint(tmp_path) == fingerprint(run)
    embedder = Embedder.load(run)
    with torch.no_grad():
        embedder.head.linear.bias[0] += 1e-3  # type: ignore[index,operator]
    embedder.save(tmp_path)
    assert fingerprint(tmp_path) != fingerprint(run)
    with pytest.raises(RunError, match=r"no model\.json"):
        fingerprint(tmp_path / "none")
