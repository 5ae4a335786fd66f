"""The help of a command: it comes at once, because what the command computes with is not loaded for it."""

import subprocess
import sys

import pytest

from proxygml.cli.main import COMMANDS

HEAVY = ("accelerate", "faiss", "fastapi", "matplotlib", "pandas", "scipy", "sklearn", "timm", "torch", "torchvision")
ASKED = [["--help"], *([command, "--help"] for command in COMMANDS)]
ASKED += [["prepare", dataset, "--help"] for dataset in ("cub200", "cars196", "folder", "table", "glyphs")]


@pytest.mark.parametrize("arguments", ASKED, ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom proxygml.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        f"print('LOADED', *sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    help_text, _, loaded = done.stdout.rpartition("LOADED")
    assert "usage: proxygml" in help_text
    assert loaded.split() == []
