"""A model of vectors that is trained once for all tests of this folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import find_recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.train import train
from tests.helpers.vector_files import vector_catalog


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vector_catalog(tmp_path_factory.mktemp("vectors"))


@pytest.fixture(scope="session")
def recipe(catalog: Path) -> Recipe:
    """The recipe `vectors`, shorter."""
    values = replace(Recipe.read(find_recipe("vectors")), catalog=str(catalog), batch_size=48, tracker="none")
    values = replace(values, epochs=8, milestones=(6,), embedding_start="lda", whitening=1.0)
    return replace(values, embedder=replace(values.embedder, embedding_size=8))


@pytest.fixture(scope="session")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(recipe, tmp_path_factory.mktemp("run") / "run")
