"""Object stores: fsspec's own in memory, and a real S3 server."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from proxygml.data.catalog import Catalog
from tests.helpers.object_store import forget
from tests.helpers.pictures import write_picture

SCHEMES = ("memory", "s3")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "proxygml"


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of 4 training and 2 test classes, 4 images each."""
    folder = tmp_path_factory.mktemp("few")
    names = [f"{number}_{image}.png" for number in range(6) for image in range(4)]
    for seed, name in enumerate(names):
        write_picture(folder / name, seed)
    labels = [name[0] for name in names]
    table = pd.DataFrame({"path": names, "label": labels, "split": ["test" if x > "3" else "train" for x in labels]})
    Catalog(table, folder).write(folder / "few.parquet")
    return folder / "few.parquet"


@pytest.fixture(params=SCHEMES)
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty place on each object store."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    url = f"{request.param}://bucket/photos"
    forget(url)
    yield url
    forget(url)
