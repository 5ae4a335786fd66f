"""A comparison whose trials and cells are tasks of Ray: the rows of one process, whoever is killed."""

import os
from pathlib import Path
from typing import Any

import pytest

from proxygml.comparison.on_ray import RayOptions
from proxygml.errors import UserError
from tests.helpers.comparisons import METHODS, assert_same_cells, compare, write
from tests.helpers.ray_workers import killing_one

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture
def tuned(content: dict[str, Any], tmp_path: Path) -> Path:
    """A method with two trials and a cell, each of three epochs."""
    few = {"recipe": content["recipe"] | {"epochs": 3}, "seeds": [0], "trials": 2}
    return write(few | {"methods": {"Proxy-Anchor": METHODS["Proxy-Anchor"]}}, tmp_path / "mine.yaml")


def test_a_lost_cell_runs_again_and_the_rows_are_those_of_one_process(
    ray: Any, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())  # sums are rounded alike with as many threads
    with killing_one(lambda: any(run.rglob("metrics.csv"))) as killed:
        rows = compare(tuned, run, "--ray", "--ray_cpus", threads)
    assert killed, "the command ended before a process could be killed"
    assert rows["trial"].tolist()[:2] == [0, 1]
    assert "3/3" in capsys.readouterr().err, "the progress is over all"
    assert_same_cells(rows, compare(tuned, tmp_path / "alone"))
    assert not list(run.rglob("checkpoints")), "what a finished cell does without is left"
    with pytest.raises(SystemExit):
        compare(tuned, tmp_path / "other", "--ray", "--ray_cpus", 1000)
    assert "--ray_cpus is 1000, but no machine of the cluster has more than" in capsys.readouterr().err


def test_what_no_cell_can_take_is_named() -> None:
    with pytest.raises(UserError, match="--ray_cpus is 0, but must be 1 or more"):
        RayOptions("auto", cpus=0)
    with pytest.raises(UserError, match=r"--ray_gpus is 1.5, but must be a share of one GPU"):
        RayOptions("auto", gpus=1.5)
