"""The words of messages, and the checks that several folders share."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import proxygml
from proxygml.errors import UserError, check_whole, counted, install_command
from tests.helpers.models import untrained

HUGE = pytest.param(10**6000, id="6001 digits")


def test_one_is_no_plural() -> None:
    things = ["item", "image", "class", "query", "validation class", "day"]
    assert [counted(1, thing) for thing in things] == [f"1 {thing}" for thing in things]
    assert [counted(2000, thing) for thing in things] == [
        "2,000 items",
        "2,000 images",
        "2,000 classes",
        "2,000 queries",
        "2,000 validation classes",
        "2,000 days",
    ]
    assert counted(0, "item") == "0 items"


def test_the_command_that_installs_an_extra_fits_how_the_package_is_installed(tmp_path: Path) -> None:
    """A checkout names itself; a package among others is the registry's."""
    checkout = Path(proxygml.__file__).parents[1]
    assert install_command("serve").endswith(f" -m pip install -e '{checkout}[serve]'")
    program = "from proxygml.errors import check_extra; check_extra('serve', 'no_such_package')"
    package = tmp_path / "site-packages" / "proxygml"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "errors.py").write_bytes((checkout / "proxygml" / "errors.py").read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path / "site-packages",
        env={"PYTHONPATH": str(package.parent)},
    )  # fmt: skip
    command = f"{Path(sys.executable).name} -m pip install 'proxygml[serve]'"
    assert done.stderr.splitlines()[-1].endswith(f"no_such_package is not installed, which this needs: {command}")


def test_help_of_serve_needs_no_extra_and_serving_names_it(tmp_path: Path) -> None:
    program = """
import sys, importlib.util as util
absent, found = ("fastapi", "fastapi_offline", "uvicorn", "starlette", "prometheus_client"), util.find_spec
sys.modules.update(dict.fromkeys(absent))
util.find_spec = lambda name, *rest: None if name in absent else found(name, *rest)
from proxygml.cli.main import main
for command in (["serve", "--help"], ["serve", "."]):
    try:
        main(command)
    except SystemExit as stopped:
        print("STATUS", stopped.code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "usage: proxygml serve" in done.stdout
    assert [line for line in done.stdout.splitlines() if "STATUS" in line] == ["STATUS 0", "STATUS 2"]
    assert "fastapi is not installed" in done.stderr
    assert "[serve]" in done.stderr


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "3", None, float("nan"), HUGE, np.int64(99), np.bool_(True)])
def test_what_is_no_whole_number_in_a_range_is_refused(value: object) -> None:
    with pytest.raises(UserError, match="batch_size is .*, but must be 1 to 64, a whole number"):
        check_whole("batch_size", value, 1, 64)
    assert check_whole("batch_size", np.uint8(64), 1, 64) == 64


@pytest.mark.parametrize("argument", ["batch_size", "workers"])
@pytest.mark.parametrize("value", [-1, True, float("nan"), 10**9, HUGE, "2"])
def test_embedding_refuses_impossible_counts(argument: str, value: object, tmp_path: Path) -> None:
    model = proxygml.Embedder.load(untrained(tmp_path / "run"))
    with pytest.raises(UserError, match=f"{argument} is .*, but must be "):
        model.embed([np.zeros((8, 8, 3), np.uint8)], **{argument: value})
    with pytest.raises(UserError, match="batch_size is 0, but must be 1 to"):
        model.embed([np.zeros((8, 8, 3), np.uint8)], batch_size=0)


@pytest.mark.parametrize("k", [0, -3, True, 2.5, float("nan"), "4", None])
def test_searching_refuses_impossible_counts(k: object) -> None:
    gallery = proxygml.Gallery.create(np.eye(3), pd.DataFrame({"label": list("abc")}))
    with pytest.raises(UserError, match="k is .*, but must be 1 or more"):
        gallery.search(np.eye(3), k)  # type: ignore[arg-type]
    assert len(gallery.search(np.eye(3), np.int64(2)).ids[0]) == 2


@pytest.mark.parametrize(
    "items", [["a", "b"], ("a", "b"), np.array(["a", "b"]), pd.Series(["a", "b"]), {"label": ["a", "b"]}, None, 3]
)
def test_items_that_are_no_table_are_named(items: object) -> None:
    with pytest.raises(UserError, match=r"items is a .*: give a pandas DataFrame .*DataFrame\(\{\"label\": labels\}\)"):
        proxygml.Gallery.create(np.eye(2), items)  # type: ignore[arg-type]
