"""A message that recommends an option is about a command that has it."""

import ast
import re
from pathlib import Path

import proxygml
from proxygml.data.datasets import DATASETS
from tests.test_urls import parser_of, parsers

PACKAGE = Path(proxygml.__file__).parent
OTHERS = {"--torch-backend", "--head"}  # of other programs: uv, ray


def named_options() -> set[tuple[str, str]]:
    """Each option that a text of the package names, with each file that does; texts of documentation too."""
    found = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for option in re.findall(r"(?<![\w-])--[a-z][a-z_.-]*[a-z]", node.value):
                    found.add((option, file.relative_to(PACKAGE).as_posix()))
    return found


def test_every_option_that_a_message_names_exists_and_is_spelt_as_the_help_spells_it() -> None:
    known = {option for parser in parsers().values() for option in parser._option_string_actions}
    known |= set(parser_of("prepare", "--labels")._option_string_actions) | {"--help", "--version"} | OTHERS
    assert {(option, file) for option, file in named_options() if option not in known} == set()


def test_options_that_are_named_in_the_folders_of_a_command_are_its_own() -> None:
    """Folders whose messages come from few commands: at least one of those has the option."""
    commands = {
        "data/datasets": [f"prepare {data.name}" for data in DATASETS],
        "data/preparing/prepare.py": ["prepare folder"],
        "comparison": ["compare"],
        "training": ["train", "compare", "evaluate"],
        "serving": ["serve"],
        "gallery": ["index", "search", "cluster", "embed", "serve"],
        "gallery/clusters": ["cluster"],
        "gallery/query.py": ["search"],
    }
    made = parsers()
    for place, names in commands.items():
        known = {option for name in names for option in made[name]._option_string_actions} | {"--help"}
        here = {option for option, file in named_options() if file.startswith(place)}
        assert not here - known, place
