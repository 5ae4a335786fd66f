"""A Hugging Face Hub on this machine, in place of the real one."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.hub_server import TOKEN, Hub, running_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    library = importlib.import_module("huggingface_hub")
    api, constants = (importlib.import_module(f"huggingface_hub.{name}") for name in ("hf_api", "constants"))
    with running_hub() as server:
        monkeypatch.setattr(api.api, "endpoint", server.address)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        library.HfFileSystem.clear_instance_cache()
        yield server
        library.HfFileSystem.clear_instance_cache()
