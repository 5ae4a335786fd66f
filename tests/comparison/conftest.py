"""A small comparison, and what it gives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxygml.training.recipe import Recipe
from tests.helpers.comparisons import METHODS, compare, write


@pytest.fixture(scope="session")
def content(small_recipe: Recipe) -> dict[str, Any]:
    """Three methods, two seeds, three trials for one of them: nine runs of two epochs."""
    shared = replace(small_recipe, loss=Recipe().loss, epochs=2).content()
    return {"recipe": shared, "seeds": [0, 1], "trials": 3, "methods": METHODS}


@pytest.fixture
def small_comparison(content: dict[str, Any], tmp_path: Path) -> Path:
    return write(content, tmp_path / "mine.yaml")


@pytest.fixture(scope="session")
def finished(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small comparison, run without a stop."""
    folder = tmp_path_factory.mktemp("finished")
    compare(write(content, folder / "mine.yaml"), folder / "run")
    return folder / "run"
