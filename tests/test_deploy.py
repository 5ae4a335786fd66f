"""What docs/deploy.md tells to copy: a systemd unit and a Compose file whose commands exist."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "deploy.md").read_text()
KEYS = {
    "image",
    "build",
    "command",
    "environment",
    "volumes",
    "healthcheck",
    "restart",
    "mem_limit",
    "depends_on",
    "ports",
    "deploy",
}


def block(language: str) -> str:
    """The page's code of that language, of which there is one."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def compose() -> dict[str, Any]:
    return yaml.safe_load(block("yaml"))


def commands() -> list[list[str]]:
    (start,) = re.findall(r"^ExecStart=(.*)$", block("ini"), re.MULTILINE)
    return [shlex.split(start)[1:], shlex.split(compose()["services"]["proxygml"]["command"])[1:]]


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "proxygml"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "proxygml.service"
    unit.write_text(
        block("ini").replace("/opt/proxygml/bin/proxygml", str(program)).replace("User=proxygml", "User=root")
    )
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "proxygml" in line]
    assert done.returncode == 0 and not ours, done.stderr


def test_the_commands_have_options_that_exist() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "proxygml", "serve", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    for command, *words in commands():
        assert command == "serve"
        options = [word for word in words if word.startswith("--")]
        assert options and all(re.search(rf"{re.escape(option)}\b", help_text) for option in options), options


def test_the_compose_file_is_whole() -> None:
    """Compose itself is not asked: it needs a daemon."""
    found = compose()
    assert set(found) == {"services", "volumes"}
    named = set(found["volumes"])
    for service in found["services"].values():
        assert set(service) <= KEYS and ("image" in service) != ("build" in service)
        sources = {volume.split(":")[0] for volume in service["volumes"]}
        assert {source for source in sources if not source.startswith("./")} <= named
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"} and "healthcheck" in found["services"][other]
    service = found["services"]["proxygml"]
    _, place, *words = commands()[1]
    assert place == "http://milvus:19530"
    mounted = {volume.split(":")[1] for volume in service["volumes"]}
    assert {words[words.index("--run") + 1], words[words.index("--added_images") + 1]} <= mounted


def test_the_page_is_in_the_navigation() -> None:
    assert "deploy.md" in (ROOT / "mkdocs.yml").read_text()
