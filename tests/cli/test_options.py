"""How commands read their options."""

import errno
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from proxygml.cli.main import COMMANDS
from proxygml.cli.parser import Parser
from proxygml.data.datasets import DATASETS
from proxygml.errors import UserError
from proxygml.files import ADVICE, translating_os_errors
from tests.helpers.commands import refused, run


def printed_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *command: str) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        run(*command, "--help")
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [[name] for name in COMMANDS if name != "prepare"] + [["prepare", data.name] for data in DATASETS],
    ids=str,
)
def test_help_is_in_words(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Python types, every option explained, one spelling."""
    text = printed_help(capsys, monkeypatch, *command)
    for raw in ("<class", "Path |", "Literal[", "NoneType", "default: null", "type:"):
        assert raw not in text
    options = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert not [option for option in options if "-" in option.removeprefix("--")]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from proxygml import __version__

    run("--version")
    assert capsys.readouterr().out == f"proxygml {__version__}\n"


def test_help_of_all_commands_loads_no_parser_and_no_torch() -> None:
    code = (
        "import sys, proxygml.cli.main as cli; cli.main(['--help']); "
        "print(*{'torch', 'jsonargparse', 'numpy', 'pandas'} & set(sys.modules), file=sys.stderr, end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("spelling", ["--false-accept-rate=0.2", "--false_accept_rate=0.2"])
def test_either_dash_spells_an_option(spelling: str) -> None:
    parser = Parser("index", "")
    parser.add_argument("--false_accept_rate", type=float)
    assert parser.parse([spelling]).false_accept_rate == 0.2


@pytest.mark.parametrize("value", ["one-cycle", "one_cycle"])
def test_either_dash_spells_a_value(value: str) -> None:
    from proxygml.training.recipe import Recipe

    parser = Parser("train", "")
    parser.add_class_arguments(Recipe, as_group=False)
    assert parser.parse(["--schedule", value]).schedule == "one_cycle"


def test_options_replace_keys_of_the_recipe_wherever_they_stand(tmp_path: Path) -> None:
    from proxygml.cli.options import recipe_with
    from proxygml.training.recipe import Recipe

    parser = Parser("train", "")
    parser.add_argument("--recipe", default="")
    parser.add_class_arguments(Recipe, as_group=False)
    content = {"epochs": 7, "loss": {"scale": 3.0, "proxies_per_class": 5}, "milestones": [5]}
    for arguments in (["--recipe", "x", "--loss.scale", "4"], ["--loss.scale=4", "--recipe=x"]):
        recipe = recipe_with(content, parser.parse(arguments, only_given=True), ["recipe"], "x")
        assert (recipe.epochs, recipe.loss.scale, recipe.loss.proxies_per_class, recipe.milestones) == (7, 4.0, 5, (5,))
    other = ["--loss.name", "ArcFaceLoss", "--loss.arguments.margin", "28.6", "--milestones", "[2,3]"]
    recipe = recipe_with(content, parser.parse(other, only_given=True), ["recipe"], "x")
    assert (recipe.loss.name, dict(recipe.loss.arguments), recipe.milestones) == (
        "ArcFaceLoss",
        {"margin": 28.6},
        (2, 3),
    )


@pytest.mark.parametrize("number", sorted(ADVICE))
def test_an_error_of_the_system_names_its_path_and_what_to_do(number: int) -> None:
    with pytest.raises(UserError, match=r"runs/photos: .+: .+"), translating_os_errors():
        raise OSError(number, os.strerror(number), "runs/photos")


def test_other_errors_of_the_system_stay_as_they_are() -> None:
    with pytest.raises(ConnectionRefusedError), translating_os_errors():
        raise OSError(errno.ECONNREFUSED, "refused")
    with pytest.raises(ValueError, match="of another kind"), translating_os_errors():
        raise ValueError("of another kind")


def test_a_name_that_no_file_can_have_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "shorter name" in refused(capsys, "prepare", "glyphs", "--out", tmp_path / ("x" * 300 + ".parquet"))
    assert "NUL" in refused(capsys, "prepare", "glyphs", "--out", f"{tmp_path}/a\0b.parquet")


def test_every_command_has_a_file_that_runs_it() -> None:
    for name in COMMANDS:
        assert callable(import_module(f"proxygml.cli.{name}").run)


@pytest.mark.parametrize(
    ("command", "option"),
    [("train", "proxy_lr"), ("index", "false_accept_rate"), ("search", "threshold"), ("serve", "timeout"),
     ("index", "batch_size"), ("search", "k")],
)  # fmt: skip
def test_numbers_beyond_all_floats_are_refused_in_few_words(
    command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in ("9" * 400, "9" * 5000, "0x" + "f" * 4000):
        message = refused(capsys, command, f"--{option}", number)
        assert "Overflow" not in message
        assert len(message) < 500


def test_options_are_spelt_with_underscores_in_messages() -> None:
    """As in the help. A message that names another spelling sends its reader to search for it."""
    package = Path(import_module("proxygml").__path__[0])
    texts = {path: path.read_text(encoding="utf-8") for path in [*package.rglob("*.py"), *package.rglob("*.yaml")]}
    found = {str(path): re.findall(r"(?<![\w-])--[a-z]+-[a-z-]+", text) for path, text in texts.items()}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "words",
    [
        ("search", "gallery", "\udcff.png"),
        ("search", "\udcff", "a.png"),
        ("index", "run", "--images", "photos", "--out", "\udcff"),
        ("embed", "run", "--images", "photos", "--out=\udcff.parquet"),
        ("train", "--recipe", "\udcff.yaml", "--run", "run"),
        ("prepare", "folder", "--root", "photos/\udcff", "--out", "c.csv"),
        ("evaluate", "run", "--catalog", "\udcff.csv"),
    ],
)
def test_a_name_that_is_no_text_is_said_to_be_so(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert "udcff" in (message := refused(capsys, *words))
    assert "its bytes are not UTF-8" in message


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("train", "--run", "here", "--resume"), "--resume"),
        (("train", "--run", "here", "--epochs", "--recipe", "photos"), "--epochs"),
        (("index", "run", "--out", "gallery", "--images"), "--images"),
    ],
)
def test_an_option_without_its_value_is_the_one_that_is_named(
    words: tuple[str, ...], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{option} has no value" in refused(capsys, *words)
