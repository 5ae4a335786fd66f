"""Embedding many files: bad ones are named, and work that was stopped is continued."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from proxygml.data.catalog import Catalog
from proxygml.data.images.image_list import ImageList
from proxygml.data.images.settings import ImageSettings
from proxygml.errors import ImageError, OverwriteError, RunError, UserError
from proxygml.files import reserve_space
from proxygml.models.embed_images import embed_images
from proxygml.models.embedder import Embedder
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.models.model_files import fingerprint
from tests.helpers.pictures import folder_of_pictures, write_picture


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small, untrained model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    ImageEmbedder(EmbedderSettings("conv4", "none", "avg", 8), ImageSettings(size=16, resize=16)).save(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return folder_of_pictures(tmp_path / "photos")


def test_a_bad_image_is_named_and_what_was_done_is_kept(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "deep" / "2.png").write_bytes(b"\x89PNG broken")
    images, embedder = ImageList.from_files([photos]), Embedder.load(run)
    with pytest.raises(ImageError, match=r"1 of 6 images cannot be embedded .*2\.png"):
        embed_images(embedder, "m", images, tmp_path / "work", workers=0)
    opened = []
    monkeypatch.setattr("proxygml.data.images.tensors.decode_image", _recorded(opened))
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
    from proxygml.data.images.tensors import decode_image

    def decode(path: str, kept: bool):  # type: ignore[no-untyped-def]
        opened.append(path)
        return decode_image(path, kept=kept)

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
from proxygml.data.images.image_list import ImageList
from proxygml.models import embed_images
from proxygml.models.embedder import Embedder
import os, signal
embed_images.SAVED_AT_A_TIME = 8
keep, kept = embed_images._keep, []
def kill_after_three(*arguments):
    keep(*arguments)
    kept.append(1)
    if len(kept) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
embed_images._keep = kill_after_three
images = ImageList.from_files([Path(sys.argv[2])])
embed_images.embed_images(Embedder.load(sys.argv[1]), "m", images, Path(sys.argv[3]), workers=0, batch_size=4)
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


def test_fingerprints_tell_models_apart(run: Path, tmp_path: Path) -> None:
    Embedder.load(run).save(tmp_path)
    assert fingerprint(tmp_path) == fingerprint(run)
    embedder = Embedder.load(run)
    with torch.no_grad():
        embedder.head.linear.bias[0] += 1e-3  # type: ignore[index,operator]
    embedder.save(tmp_path)
    assert fingerprint(tmp_path) != fingerprint(run)
    with pytest.raises(RunError, match=r"there is no folder .*none"):
        fingerprint(tmp_path / "none")


def test_a_batch_holds_an_image_at_least(run: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--batch_size is 0, but must be 1 to 16,384"):
        embed_images(Embedder.load(run), "m", ImageList.from_files([photos]), tmp_path / "work", batch_size=0)
    assert not (tmp_path / "work").exists()


def test_the_room_on_the_disk_is_reserved_at_once(tmp_path: Path) -> None:
    """Else a full disk ends the process by a signal, in the middle."""
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system reserves no room")
    with (tmp_path / "file").open("wb") as file:
        file.truncate(10**6)
    reserve_space(tmp_path / "file")
    assert (tmp_path / "file").stat().st_blocks * 512 >= 10**6


@pytest.mark.parametrize(
    ("name", "fix"), [("V.NPY", "a file of vectors, which --vectors"), ("t.CSV", "a table, which")]
)
def test_a_table_or_vectors_given_as_an_image_is_called_so(run: Path, tmp_path: Path, name: str, fix: str) -> None:
    (tmp_path / name).write_bytes(b"path,label")
    images = ImageList(pd.DataFrame({"path": [str(tmp_path / name)]}))
    with pytest.raises(ImageError, match=f"this is no image, but {fix}"):
        embed_images(Embedder.load(run), "", images, tmp_path / "work", workers=0)
