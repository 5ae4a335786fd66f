"""The process of a cell: it measures the cell alone, brings errors back, and outlives nobody."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proxygml.comparison.cell import Cell
from proxygml.comparison.process import sendable, train_in_process
from proxygml.comparison.row import Key
from proxygml.errors import CatalogError, UserError
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from tests.helpers.comparisons import METHODS, write
from tests.helpers.descendants import descendants, wait_until_gone

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say what a process holds")


@linux
def test_memory_is_that_of_the_cell_alone(small_recipe: Recipe, tmp_path: Path) -> None:
    """Whatever is held beside it, and whichever comes first."""
    recipe, peaks = replace(small_recipe, epochs=1, warmup_epochs=0), []
    for seed in (0, 1):
        cell = Cell(Key("A", seed), RunFolder(tmp_path / str(seed)))
        held = np.ones(seed * 2**26)  # nothing, then half a GiB
        train_in_process(cell, recipe)
        peaks.append(cell.cost().peak_memory_mib)
        del held
    assert peaks[0] is not None
    assert peaks[1] == pytest.approx(peaks[0], rel=0.05)


def test_errors_come_back_as_they_are(small_recipe: Recipe, tmp_path: Path) -> None:
    cell = Cell(Key("A", 0), RunFolder(tmp_path / "run"))
    with pytest.raises(CatalogError, match="nowhere"):
        train_in_process(cell, replace(small_recipe, catalog=str(tmp_path / "nowhere.csv")))
    assert not cell.finished


class CellOfATruncatedFile(Cell):
    """Reading it fails as Python's readers of compressed and pickled files fail."""

    @property
    def cost_file(self) -> Path:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")


class CellThatTellsHowProcessesStart(Cell):
    @property
    def cost_file(self) -> Path:
        raise UserError(multiprocessing.get_start_method())


def test_loaders_start_their_workers_as_in_training_by_itself(small_recipe: Recipe, tmp_path: Path) -> None:
    """And not as the process of the cell was started, after which each would load PyTorch anew in every epoch."""
    usual = multiprocessing.get_context().get_start_method()
    with pytest.raises(UserError, match=f"^{usual}$"):
        train_in_process(CellThatTellsHowProcessesStart(Key("A", 0), RunFolder(tmp_path / "a")), small_recipe)


def test_a_bug_is_told_apart_from_the_end_of_the_work(small_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="failed with status 1: its traceback is above"):
        train_in_process(CellOfATruncatedFile(Key("A", 0), RunFolder(tmp_path / "run")), small_recipe)


@linux
@pytest.mark.parametrize("parallel", [1, 2])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_no_process_outlives_the_comparison(
    number: signal.Signals, status: int, parallel: int, content: dict[str, Any], tmp_path: Path
) -> None:
    long = content["recipe"] | {"epochs": 10_000, "warmup_epochs": 0}
    one = {"recipe": long, "seeds": [0, 1], "methods": {"ProxyGML": METHODS["ProxyGML"]}}
    command = [sys.executable, "-m", "proxygml", "compare", "--recipe", write(one, tmp_path / "mine.yaml")]
    command += ["--parallel", str(parallel)]
    metrics = tmp_path / "run" / "ProxyGML" / "seed-0" / "metrics.csv"
    with subprocess.Popen(
        [*command, "--run", tmp_path / "run"], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while not metrics.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        started = descendants(process.pid)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        errors = process.communicate(timeout=120)[1]
    assert metrics.exists()
    assert process.returncode == status
    assert started, "the cell was trained in the process itself"
    assert not wait_until_gone(started)
    assert "Traceback" not in errors


class NeedsMoreError(UserError):
    """Its message is made from what it is given, so that Python cannot make it anew from the message."""

    def __init__(self, path: str, *, found: int) -> None:
        super().__init__(f"{path} has {found}")


class NeedsMoreOSError(OSError):
    """The same for an error of the operating system."""

    def __init__(self, number: int, path: str, place: str) -> None:
        super().__init__(number, os.strerror(number), path)
        self.place = place


def test_an_error_that_cannot_be_made_anew_keeps_its_message() -> None:
    ours, theirs = Pipe()
    for error in (NeedsMoreError("x.csv", found=3), NeedsMoreOSError(errno.ENOSPC, "/disk/x", "there")):
        theirs.send(sendable(error))
        received = ours.recv()
        assert str(error) in str(received)
        assert isinstance(received, OSError if isinstance(error, OSError) else UserError)
    assert received.errno == errno.ENOSPC
    assert received.filename == "/disk/x"


def test_a_script_without_the_guard_is_told_what_to_do(content: dict[str, Any], tmp_path: Path) -> None:
    one = {"recipe": content["recipe"], "seeds": [0], "methods": {"ProxyGML": METHODS["ProxyGML"]}}
    plan = write(one, tmp_path / "mine.yaml")
    script = tmp_path / "script.py"
    script.write_text(f"import proxygml\nproxygml.compare({str(plan)!r}, {str(tmp_path / 'run')!r})\n")
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 1
    assert 'put the call under `if __name__ == "__main__":`' in found.stderr.splitlines()[-1]
    assert found.stderr.count("Traceback") == 1, "only that of the script itself"
