"""What every test may use."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from proxygml.data.catalog import Catalog
from proxygml.data.images.settings import ImageSettings
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.ray_session import ray_session
from proxygml.training.loss_settings import LossSettings
from proxygml.training.recipe import Recipe
from tests.helpers.milvus_server import shared_server
from tests.helpers.object_store import running_server, settings_for
from tests.helpers.places import BACKENDS, IN_MILVUS, place_for

# As commands set it, but before a process that others are forked from loads PyTorch.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

# Files with tests that take long, most of them because they start processes of their own.
STARTED_FIRST = (
    *("test_notebook.py", "test_processes.py", "test_process.py", "test_evaluate_run.py", "test_sharded.py"),
    *("test_milvus_server.py", "test_checks.py", "test_runner.py", "test_milvus.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the long tests, so that no worker ends with one of them while the others have nothing left to do."""
    items.sort(key=lambda item: item.path.name not in STARTED_FIRST)


@pytest.fixture(scope="session")
def small_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of 12 training and 6 test classes, 8 images each: a grating of its own angle, in any colour."""
    folder = tmp_path_factory.mktemp("small")
    random = np.random.default_rng(0)
    y, x = np.mgrid[:24, :24] / 24
    rows = []
    for number in range(18):
        angle = np.pi * number / 18
        for image in range(8):
            colour = random.uniform(80, 175, 3)
            phase = random.uniform(0, 2 * np.pi)
            wave = np.sin(2 * np.pi * 3 * (x * np.cos(angle) + y * np.sin(angle)) + phase)
            pixels = colour + 60 * wave[..., None] + random.normal(0, 20, (24, 24, 3))
            name = f"{number:02d}_{image}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
            rows.append((name, f"class {number:02d}", "train" if number < 12 else "test"))
    Catalog(pd.DataFrame(rows, columns=["path", "label", "split"]), folder).write(folder / "small.parquet")
    return folder / "small.parquet"


@pytest.fixture(scope="session")
def small_recipe(small_catalog: Path) -> Recipe:
    """A recipe that trains on the small catalog in seconds."""
    return Recipe(
        catalog=str(small_catalog),
        embedder=EmbedderSettings(backbone="conv4", weights="none", embedding_size=16),
        images=ImageSettings(size=16, resize=16, crop_scale=(0.6, 1.0), horizontal_flip=False),
        loss=LossSettings(proxies_per_class=2, neighbor_ratio=0.5, scale=4.0),
        epochs=3,
        warmup_epochs=1,
        batch_size=16,
        backbone_lr=1e-3,
        embedding_lr=1e-3,
        batch_norm="trained",
        workers=0,
        tracker="none",
    )


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Milvus server, one for all processes of the tests."""
    pytest.importorskip("milvus", reason="the package milvus, a server for tests, is not installed")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with shared_server(folder / "milvus") as address:
        yield address


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server, started for these tests; its settings are in the environment."""
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    pytest.importorskip("moto.server", reason="moto, a server for tests, is not installed")
    with running_server() as address, settings_for(address):
        yield address


@pytest.fixture(scope="session")
def ray(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Ray on this machine, which commands with --ray then find; tests that use it are of the xdist group `ray`.

    Its processes know the S3 server of the tests, where one can be started: they get the environment of its start.
    """
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with suppress(pytest.skip.Exception):
        request.getfixturevalue("s3")
    with ray_session("local") as module:
        yield module


@pytest.fixture(params=BACKENDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a gallery, in each backend."""
    return place_for(request.param, tmp_path, request)


@pytest.fixture(params=IN_MILVUS)
def milvus_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a gallery in milvus-lite and on a server."""
    return place_for(request.param, tmp_path, request)
