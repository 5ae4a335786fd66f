"""The site: it builds strictly, and tells of every command."""

import subprocess
import sys
from pathlib import Path

import pytest

from proxygml.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]


def test_the_site_builds_without_a_broken_link_and_asks_no_other_server(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site" / "method" / "index.html").read_text(encoding="utf-8")
    assert page.count("<math") >= 6
    assert "fonts.googleapis" not in page
    assert "neighbor_ratio" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_told_of(command: str) -> None:
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")]
    assert any(f"proxygml {command}" in page for page in pages)
