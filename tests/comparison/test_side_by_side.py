"""A comparison whose trials and cells train side by side on this machine: the rows of one after the other."""

import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch

from proxygml.comparison import side_by_side
from proxygml.comparison.plan import Comparison
from proxygml.comparison.row import read_rows
from proxygml.comparison.runner import Runner
from proxygml.comparison.side_by_side import Processes, run_side_by_side, visible_gpus
from tests.helpers.comparisons import METHODS, assert_same_cells, compare, table_of, write


def test_the_rows_are_those_of_one_after_the_other(
    small_comparison: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With as many threads, since these decide how sums are rounded."""
    parallel, threads = 3, torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: parallel * threads)
    rows = compare(small_comparison, tmp_path / "run", "--parallel", parallel)
    assert_same_cells(rows, table_of(finished / "cells.csv"))
    assert "9/9" in capsys.readouterr().err, "the progress is over all"
    assert not list((tmp_path / "run").rglob("checkpoints")), "what a finished cell does without is left"


def test_processes_that_train_several_cells_leave_the_same_rows(
    small_comparison: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do on a GPU. The peak of memory is then that of all cells so far."""
    monkeypatch.setattr(side_by_side, "visible_gpus", lambda: ["0"])
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2 * threads)
    rows = compare(small_comparison, tmp_path / "run", "--parallel", 2)
    assert_same_cells(rows, table_of(finished / "cells.csv"))


@pytest.mark.parametrize("gpus", [[], ["0"]])
def test_processes_train_one_comparison_after_the_other(
    gpus: list[str], content: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same processes where there is a GPU; the rows are those of either comparison alone."""
    monkeypatch.setattr(side_by_side, "visible_gpus", lambda: gpus)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2 * threads)
    methods = {name: METHODS[name] for name in ("ProxyGML", "N-pair")}
    small = content | {"methods": methods, "trials": 0}
    kept = [replace(row, cost=None) for row in read_rows([finished / "cells.csv"]) if row.method in methods]
    used = []
    with Processes(2) as processes:
        for seed in content["seeds"]:
            plan = Comparison.read(write(small | {"seeds": [seed]}, tmp_path / f"{seed}.yaml"))
            runner = Runner(plan, tmp_path / f"run-{seed}")
            run_side_by_side(runner, processes)
            used.append({process.pid for process in multiprocessing.active_children()})
            rows = [replace(row, cost=None) for row in runner.rows()]
            assert rows == [row for row in kept if row.seed == seed]
    first, second = used
    assert first == second and len(first) == (2 if gpus else 0)  # on a CPU, each cell had one of its own
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("parallel", "each"), [(2, 4), (3, 2), (99, 1)])
def test_cells_divide_the_threads_that_one_would_have(
    parallel: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of OMP_NUM_THREADS or of the processors that this process may use, and not all of the machine."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    shares = side_by_side.Processes(parallel)._free
    assert [share.threads for share in shares] == [each] * parallel


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_all_processes_are_stopped_before_one_is_waited_for() -> None:
    """A process may take a while to end; the others must not go on meanwhile."""
    workers = side_by_side.Processes(2)
    slow, other = workers._new(), workers._new()
    assert slow._process.pid is not None
    os.kill(slow._process.pid, signal.SIGSTOP)
    stopping = threading.Thread(target=workers.stop)
    stopping.start()
    try:
        assert wait([other._process.sentinel], timeout=30)
        assert stopping.is_alive()
    finally:
        os.kill(slow._process.pid, signal.SIGCONT)
        stopping.join()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--parallel", 0), "--parallel is 0, but must be 1 or more"),
        (("--parallel", 2, "--ray"), "--parallel is for one machine, --ray for a cluster: give one of them"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    options: tuple[object, ...],
    message: str,
    small_comparison: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        compare(small_comparison, tmp_path / "run", *options)
    assert message in capsys.readouterr().err


def test_gpus_are_taken_as_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert visible_gpus() == ["3", "GPU-5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1"]
