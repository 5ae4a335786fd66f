"""Wrong input is named before anything slow is loaded, and words may stand in any order."""

import subprocess
import sys
from pathlib import Path

import pytest

from proxygml.cli.main import COMMANDS
from proxygml.cli.parser import Parser
from tests.helpers.commands import refused

MISSING = [
    "prepare folder --root nope --out a.parquet",
    "prepare cub200 --root nope --out a.parquet",
    "prepare table --root nope.csv --out a.parquet",
    "train --recipe photos --catalog nope.csv --run run",
    "train --recipe nope --run run",
    "train --resume nope",
    "evaluate nope",
    "evaluate . --catalog nope.csv",
    "audit nope --catalog c.csv --out a",
    "audit . --catalog nope.csv --out a",
    "embed nope --images . --out a.parquet",
    "embed . --images nope --out a.parquet",
    "embed . --catalog nope.csv --out a.parquet",
    "index nope --images . --out g",
    "index . --images nope --out g",
    "embed . --vectors nope.parquet --out a.parquet",
    "index . --vectors nope.parquet --out g",
    "index --out nope --verify",
    "index --out nope --remove id=4",
    "index --out nope --rebase a b",
    "index --out nope --add --images .",
    "push nope user/name",
    "train --from nope --catalog c.csv --run run",
    "search nope .",
    "search . nope.jpg",
    "search . --vectors nope.npy",
    "search . . --run nope",
    "cluster nope --images . --out c --num_clusters 3",
    "cluster . --images nope --out c --num_clusters 3",
    "cluster . --vectors nope.parquet --out c --num_clusters 3",
    "serve nope",
    "export nope --onnx a.onnx",
    "compare --recipe glyphs --catalog nope.csv --run run",
    "compare --from nope.csv --out out",
]


def test_a_missing_input_is_named_before_torch_is_loaded(tmp_path: Path) -> None:
    program = """
import sys
from proxygml.cli.main import main
for command in sys.argv[1:]:
    try:
        main(command.split())
    except SystemExit as stopped:
        print(command, stopped.code, "torch" in sys.modules, sep="|")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *MISSING], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines() == [f"{command}|2|False" for command in MISSING]
    messages = done.stderr.splitlines()
    assert len(messages) == len(MISSING)
    assert all("nope" in message and message.startswith("proxygml: ") for message in messages)
    assert not list(tmp_path.iterdir())


def test_every_command_with_an_input_is_among_them() -> None:
    assert {command.split()[0] for command in MISSING} == set(COMMANDS) - {"demo"}


@pytest.mark.parametrize(
    "words",
    [
        "G q.jpg r.jpg --where a=b c>=3 --k 5",
        "G --where a=b c>=3 q.jpg r.jpg --k 5",
        "--where a=b c>=3 G q.jpg r.jpg --k 5",
        "--k 5 --where a=b c>=3 -- G q.jpg r.jpg",
        "G q.jpg --k 5 r.jpg --where a=b c>=3",
        "G --k=5 q.jpg --where a=b c>=3 r.jpg --rerank",
        "--rerank G q.jpg r.jpg --where a=b c>=3 --k 5",
    ],
)
def test_queries_and_conditions_may_stand_in_any_order(words: str) -> None:
    parser = Parser("search", "")
    parser.add_argument("gallery")
    parser.add_argument("queries", nargs="+")
    parser.takes_conditions(parser.add_argument("--where", nargs="+", default=[]))
    parser.add_argument("--k", type=int)
    parser.add_argument("--rerank", action="store_true")
    options = parser.parse(words.split())
    assert (options.gallery, options.queries, options.k) == ("G", ["q.jpg", "r.jpg"], 5)
    assert options.where == ["a=b", "c>=3"]


def test_search_takes_queries_behind_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "search", tmp_path, "--where", "label=a", tmp_path / "nope.jpg")
    assert "nope.jpg: give image files" in message


@pytest.mark.parametrize("command", ["demo", "embed", "index", "prepare", "search"])
def test_work_of_one_process_is_not_repeated_by_several(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each would write the same files at the same time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = refused(capsys, command)
    assert "2 were launched" in message
    assert f"run proxygml {command} by itself" in message
    assert not list(tmp_path.iterdir())


def test_a_run_folder_may_stand_behind_the_images(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").touch()
    for words in (
        "RUN --images a b --k 5",
        "--images a b RUN --k 5",
        "--k 5 --images RUN a b",
        "--images a b --k 5 RUN",
    ):
        parser = Parser("embed", "")
        parser.takes_run(parser.add_argument("run"))
        parser.add_argument("--images", nargs="+", default=[])
        parser.add_argument("--k", type=int)
        run = str(tmp_path / "run")
        options = parser.parse(words.replace("RUN", run).split())
        assert (options.run, options.images, options.k) == (run, ["a", "b"], 5)


@pytest.mark.parametrize("command", ["embed", "cluster"])
def test_no_run_folder(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where none of the images is one, the message says where it belongs."""
    message = refused(capsys, command, "--images", tmp_path, tmp_path, "--out", tmp_path / "out")
    assert f"no run folder is given: put it first, as in `proxygml {command} RUN ...`" in message


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("search . q.jpg --where label", "--where is label"),
        ("search . --where label q.jpg", "--where is label"),
        ("search . q.jpg --where label = sparrow", "--where is label"),
        ("index --out . --remove label", "--remove is label"),
    ],
)
def test_a_condition_without_an_operator_is_named(words: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{option}, which has no operator: expected column=value" in refused(capsys, *words.split())


def test_a_word_behind_conditions_that_is_neither_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "search", tmp_path, "--where", "label=house", "sparrow")
    assert "there is no sparrow: give image files, or folders of them; or, for --where, column=value" in message
