"""Files that are written whole: what killed processes leave is removed, what living ones write is not."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from proxygml import files
from proxygml.errors import OverwriteError, UserError
from proxygml.files import (
    atomic_folder,
    atomic_write,
    exclusive_lock,
    remove_leftovers,
    temporary_folder,
    translating_os_errors,
)
from tests.helpers.commands import run
from tests.helpers.kills import survives_kills
from tests.helpers.models import untrained
from tests.helpers.pictures import write_picture

WRITER = """
import sys
import tempfile
from pathlib import Path
from proxygml.files import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    sys.stdin.read()
"""


FOLDER_WRITER = """
import sys
import tempfile
from pathlib import Path
from proxygml.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as temporary:
    (temporary / "deep").mkdir()
    (temporary / "deep" / "a.txt").write_text("half")
    print(temporary, flush=True)
    sys.stdin.read()
"""


def start_writer(path: Path, program: str = WRITER) -> tuple[subprocess.Popen[str], Path]:
    """A process in the middle of writing a file or folder, and its temporary one."""
    command = [sys.executable, "-c", program, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    killed, leftover = start_writer(path)
    living, being_written = start_writer(path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert leftover.exists()
    for file in (leftover, being_written):
        os.utime(file, (0, 0))  # those of the last minute are left in any case
    with atomic_write(tmp_path / "b.txt") as temporary:
        temporary.write_text("whole")
        assert not leftover.exists()
        assert being_written.exists()
    living.communicate("")
    assert path.read_text() == "half"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_leftover_folders_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    killed, leftover = start_writer(tmp_path / "a", FOLDER_WRITER)
    living, being_written = start_writer(tmp_path / "a", FOLDER_WRITER)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert (leftover / "deep" / "a.txt").exists()
    for folder in (leftover, being_written):
        os.utime(folder, (0, 0))
    with temporary_folder(tmp_path / "b") as temporary:
        assert not leftover.exists()
        assert being_written.exists()
        os.utime(temporary, (0, 0))
        remove_leftovers(tmp_path)
        assert temporary.exists()
    living.communicate("")
    assert (tmp_path / "a" / "deep" / "a.txt").read_text() == "half"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def write_folder(path: Path, content: str) -> None:
    with atomic_folder(path) as folder:
        for name in ("a", "b"):
            (folder / name).write_text(content)


def content_of(path: Path) -> set[str]:
    """What is in the two files of a folder that write_folder wrote."""
    return {(path / name).read_text() for name in ("a", "b")}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_is_replaced_whole_whenever_its_writer_is_killed(
    tmp_path: Path, swaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:  # as on a network file system
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: None)

    def check(step: int) -> None:
        remove_leftovers(tmp_path / str(step))  # as the next command does
        path = tmp_path / str(step) / "folder"
        assert content_of(path) in ({"old"}, {"new"})
        write_folder(path, "next")
        assert content_of(path) == {"next"}

    for step in range(20):
        write_folder(tmp_path / str(step) / "folder", "old")
    killed = survives_kills(lambda step: write_folder(tmp_path / str(step) / "folder", "new"), check)
    assert 2 <= killed < 20
    assert content_of(tmp_path / str(killed) / "folder") == {"next"}


@pytest.mark.parametrize("swaps", [True, False])
def test_what_fails_or_is_a_link_leaves_a_folder_as_it_was(
    tmp_path: Path, swaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: None)
    write_folder(tmp_path / "folder", "old")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "folder") as folder:
        (folder / "a").touch()
        raise KeyError
    assert content_of(tmp_path / "folder") == {"old"}
    write_folder(tmp_path / "link", "new")  # in the place of the link, not of what it points at
    assert content_of(tmp_path / "folder") == {"old"}
    assert content_of(tmp_path / "link") == {"new"}
    with pytest.raises(OverwriteError, match="repeat the command"), atomic_folder(tmp_path / "folder", replace=False):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link"]


def test_a_file_put_in_place_of_the_temporary_one_is_kept(tmp_path: Path) -> None:
    """As safetensors does, which renames; another writer of the folder may tidy at any time."""
    with atomic_write(tmp_path / "a.safetensors") as temporary:
        save_file({"a": torch.ones(2)}, temporary)
        with atomic_write(tmp_path / "b.txt", tidy=False) as other:
            other.touch()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.txt"]


def test_only_temporary_files_of_ours_are_removed(tmp_path: Path) -> None:
    kept = [".a.tmp", ".a.1234567.tmp", "a.12345678.tmp", ".a.12345678.tmp.txt", ".a.1234567g.tmp"]
    for name in (*kept, ".a.12345678.tmp", ".a b.json.abcdef01.tmp"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".folder.12345678.tmp").mkdir()
    (tmp_path / ".new.12345678.tmp").touch()
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "nowhere")
    assert {file.name for file in tmp_path.iterdir()} == {*kept, ".folder.12345678.tmp", ".new.12345678.tmp"}
    with atomic_write(tmp_path / "mine", tidy=False) as mine:
        remove_leftovers(tmp_path, fresh=True)
        assert {file.name for file in tmp_path.iterdir()} == {*kept, mine.name}


def test_a_command_removes_what_a_killed_one_left_where_it_writes(tmp_path: Path) -> None:
    model = untrained(tmp_path / "run")
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (20, 20)).save(images / "a.png")
    (tmp_path / ".vectors.parquet.0123abcd.tmp").touch()
    os.utime(tmp_path / ".vectors.parquet.0123abcd.tmp", (0, 0))
    run("embed", model, "--images", images, "--out", tmp_path / "vectors.parquet")
    assert (tmp_path / "vectors.parquet").exists()
    assert not (tmp_path / ".vectors.parquet.0123abcd.tmp").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
@pytest.mark.parametrize("command", ["search", "prepare", "cluster"])
def test_a_command_removes_the_folder_that_a_killed_one_left_where_it_writes(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the system's folder for temporary files
    model, images = untrained(tmp_path / "run"), tmp_path / "images"
    for number in range(8):
        write_picture(images / f"{number // 2}" / f"{number}.png", number)
    leftover = tmp_path / ".data.0123abcd.tmp"
    write_picture(leftover / "deep" / "a.png", 0)
    os.utime(leftover, (0, 0))
    if command == "search":
        run("index", model, "--images", images, "--out", tmp_path / "elsewhere" / "gallery")
        assert leftover.exists()
        run("search", tmp_path / "elsewhere" / "gallery", images / "0")
    elif command == "cluster":
        run("cluster", model, "--images", images, "--out", tmp_path / "clusters", "--num_clusters", 2)
    else:
        run("prepare", "folder", "--root", images, "--test_classes", "half", "--out", tmp_path / "catalog.csv")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_who_holds_a_lock_is_written_through_no_link(tmp_path: Path) -> None:
    """A gallery or a run folder may come from a stranger, and with it a link under the name of that file."""
    secret = tmp_path / "secret"
    secret.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock-holder").symlink_to(secret)
    with exclusive_lock(folder / ".lock"):
        assert (folder / ".lock-holder").read_text().startswith(f"{os.getpid()} on")
    assert secret.read_text() == "mine"


@pytest.mark.parametrize("left", [None, b"\xff\xfe", b"x" * 10_000])
def test_a_held_lock_is_named_whatever_its_holder_has_written(left: bytes | None, tmp_path: Path) -> None:
    """It writes its name after it has the lock, and removes it before it gives the lock back."""
    with exclusive_lock(tmp_path / ".lock"):
        (tmp_path / ".lock-holder").unlink()
        if left is not None:
            (tmp_path / ".lock-holder").write_bytes(left)
        with pytest.raises(OverwriteError, match="another process .*just started"), exclusive_lock(tmp_path / ".lock"):
            pass


@pytest.mark.parametrize("named", ["", "temporary"])
@pytest.mark.parametrize("write", [atomic_write, atomic_folder])
def test_an_error_of_the_disk_names_the_file_that_was_to_be_written(
    write: Callable[[Path], AbstractContextManager[Path]], named: str, tmp_path: Path
) -> None:
    """What writes the file may name nothing, or the temporary file, and may word the error in its own way."""
    path = tmp_path / "out.parquet"
    with pytest.raises(UserError) as stopped, translating_os_errors(), write(path) as temporary:
        raise OSError(errno.ENOSPC, "Detail: [errno 28]", *([str(temporary / "x")] if named else []))
    assert str(stopped.value).startswith(f"{path}: No space left on device: make room")
    assert not list(tmp_path.iterdir())
