"""The model that the servers of these tests embed with."""

from pathlib import Path

import pytest

from tests.helpers.models import untrained


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("run"))
