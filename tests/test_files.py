"""Files that are written whole: what killed processes leave is removed, what living ones write is not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from proxygml.files import atomic_write, remove_leftovers
from tests.helpers.commands import run
from tests.helpers.models import untrained

WRITER = """
import sys
from pathlib import Path
from proxygml.files import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    sys.stdin.read()
"""


def start_writer(path: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process in the middle of writing a file, and its temporary file."""
    command = [sys.executable, "-c", WRITER, str(path)]
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
