"""A comparison's folder and plan with damaged, wrongly typed or hostile content: a message that names the file."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxygml.comparison.plan import Comparison
from proxygml.comparison.row import Key, read_rows
from proxygml.comparison.runner import Runner
from proxygml.errors import UserError
from tests.helpers.comparisons import write

NASTY: tuple[Any, ...] = (
    None, True, -1, 0.5, 10**400, 2**64, float("nan"), float("inf"), "", "x", "\0", "../..", "x" * 300, [], [[]],
    [None], {}, {"": 1}, {"a": {"b": [1]}}, [1, "a"],
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within nested dictionaries and lists."""
    if not isinstance(value, dict | list):
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def without(value: Any, path: tuple[Any, ...]) -> Any:
    """A copy without the key at a path."""
    copy = value.copy()
    if len(path) > 1:
        copy[path[0]] = without(value[path[0]], path[1:])
    elif path[0] in copy or isinstance(copy, list):
        del copy[path[0]]
    return copy


def variants(content: Any, count: int) -> list[Any]:
    """The content with one value replaced by a nasty one, or left out: `count` of them, always the same."""
    chosen = random.Random(0)
    found = places(content)
    changed = [replaced(content, chosen.choice(found), chosen.choice(NASTY)) for _ in range(count)]
    return [*changed, *(without(content, path) for path in found if path)]


@pytest.fixture
def runner(content: dict[str, Any], finished: Path, tmp_path: Path) -> Runner:
    shutil.copytree(finished, tmp_path / "run")
    return Runner(Comparison.read(write(content, tmp_path / "mine.yaml")), tmp_path / "run")


CELL, TRIAL = "ProxyGML/seed-0", "Proxy-Anchor/tune/01"


@pytest.mark.parametrize("name", [f"{CELL}/cost.json", f"{CELL}/evaluation.json", f"{TRIAL}/cost.json", "data.json"])
def test_a_changed_json_file_is_named_or_used_as_it_is(name: str, runner: Runner) -> None:
    cell = runner.store.cell(Key("Proxy-Anchor", 0, 1) if name.startswith(TRIAL) else Key("ProxyGML", 0))
    read: Callable[[], object] = {
        "cost.json": cell.cost,
        "evaluation.json": lambda: (cell.metrics(), cell.protocol()),
        "data.json": runner.store.inputs,
    }[name.rpartition("/")[2]]
    path = runner.store.folder / name
    original = path.read_bytes()
    refused = 0
    for content in variants(json.loads(original), 150):
        path.write_text(json.dumps(content))
        try:
            read()
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 20
    for wrong in (b"", b"\xff\xfe", b"{", original[: len(original) // 2], b"[" * 5000, b"\0" * 100, b"NaN"):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=path.name):
            read()
    with pytest.raises(UserError, match=path.name):
        runner.rows()


@pytest.mark.parametrize("name", [f"{CELL}/metrics.csv", f"{TRIAL}/metrics.csv"])
def test_a_changed_history_is_named(name: str, runner: Runner) -> None:
    path = runner.store.folder / name
    header, first, *rest = path.read_text().splitlines()
    wrong = [
        "", "\0", "a,b", "\xff", f"{header}\n{first},1,2", "\n".join([header, first.replace(first.split(",")[0], "x")]),
        f"{header}\n" + ",".join(["nan"] * len(header.split(","))), header.replace("seconds", "second") + f"\n{first}",
    ]  # fmt: skip
    for text in wrong:
        path.write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match="metrics.csv"):
            runner.rows()
    assert rest


def test_a_folder_or_a_pipe_in_place_of_a_file_is_named(runner: Runner) -> None:
    for name in (f"{CELL}/cost.json", f"{CELL}/evaluation.json", "data.json", "cells.csv"):
        path = runner.store.folder / name
        original = path.read_bytes()
        for make in (os.mkfifo, os.mkdir):
            path.unlink()
            make(path)
            with pytest.raises(UserError, match=path.name):
                runner.rows()
            path.rmdir() if path.is_dir() else path.unlink()
            path.write_bytes(original)


def test_a_note_in_another_encoding_is_read(runner: Runner) -> None:
    (runner.store.folder / CELL / "diverged.txt").write_bytes(b"the loss became \xff; more")
    notes = [row.note for row in runner.rows() if row.key == Key("ProxyGML", 0)]
    assert notes == ["the loss became \N{REPLACEMENT CHARACTER}"]


def test_a_changed_table_of_cells_is_named_or_read(finished: Path, tmp_path: Path) -> None:
    """Rows that are read can be drawn: nothing impossible gets through."""
    lines = [line.split(",") for line in (finished / "cells.csv").read_text().splitlines()]
    chosen, path = random.Random(0), tmp_path / "cells.csv"
    values = ["", "-1", "1e999", "nan", "9" * 5000, "[" * 3000, '"[1' + "0" * 400 + ']"', "\0", "x" * 200_000, '"']
    for _ in range(300):
        copy = [line.copy() for line in lines]
        line = chosen.randrange(len(copy))
        copy[line][chosen.randrange(len(copy[line]))] = chosen.choice(values)
        path.write_text("\n".join(map(",".join, copy)) + "\n")
        try:
            read_rows([path])
        except UserError as error:
            assert str(path) in str(error)
    for text in (
        (finished / "cells.csv").read_text().replace("device", "seed", 1),
        "recall_at_" + "9" * 5000 + "," + (finished / "cells.csv").read_text(),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match="cells.csv"):
            read_rows([path])


def test_a_changed_plan_is_refused_or_read(content: dict[str, Any], tmp_path: Path) -> None:
    content = content | {"methods": content["methods"] | {"Swept": {"vary": {"proxy_lr": [0.1, 0.2]}}}}
    content |= {"chosen": {"Proxy-Anchor": {"proxy_lr": 0.1}}, "tune_on": 0.25, "trials": 0}
    path = tmp_path / "plan.yaml"
    refused = 0
    for changed in variants(content, 60):
        path.write_text(yaml.safe_dump(changed))
        try:
            Comparison.read(path)
        except UserError as error:
            refused += 1
            assert "plan.yaml" in str(error)
    assert refused > 50


@pytest.mark.parametrize("key", ["tune", "vary"])
def test_combinations_without_end_are_refused(key: str, content: dict[str, Any], tmp_path: Path) -> None:
    keys = ("proxy_lr", "embedding_lr", "backbone_lr", "weight_decay", "eps", "loss.scale", "loss.proxy_weight")
    method = {key: {name: [0.1 * number for number in range(1, 40)] for name in keys}}
    plan = content | {"methods": {"A": method}, "trials": 3 if key == "tune" else 0}
    with pytest.raises(UserError, match=f"{key} has 137,231,006,679 combinations of values, but may have at most"):
        Comparison.read(write(plan, tmp_path / "mine.yaml"))


def test_a_diverged_cell_keeps_no_checkpoints(content: dict[str, Any], tmp_path: Path) -> None:
    wild = {"loss": {"name": "NPairsLoss"}, "backbone_lr": 1e30, "embedding_lr": 1e30}
    shared = content["recipe"] | {"warmup_epochs": 1, "epochs": 3}
    plan = {"recipe": shared, "seeds": [0], "methods": {"Wild": wild}}
    runner = Runner(Comparison.read(write(plan, tmp_path / "mine.yaml")), tmp_path / "run")
    runner.run()
    cell = runner.store.cell(Key("Wild", 0))
    assert cell.diverged
    assert not cell.run.checkpoints.exists()
