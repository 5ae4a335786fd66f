"""Places that a gallery can be kept at, one for each backend."""

import uuid
from pathlib import Path

import pytest

BACKENDS = ("folder", "milvus-lite", "milvus")
IN_MILVUS = ("milvus-lite", "milvus")


def place_for(backend: str, folder: Path, request: pytest.FixtureRequest) -> str:
    """A place where there is no gallery yet: in a folder, a file of milvus-lite, or a Milvus server."""
    if backend == "folder":
        return str(folder / "g")
    pymilvus = pytest.importorskip("pymilvus", reason="the extra milvus is not installed")
    if backend == "milvus-lite":
        pytest.importorskip("milvus_lite", reason="the extra milvus is not installed")
        return str(folder / "g.db")
    address, name = request.getfixturevalue("milvus_server"), f"g{uuid.uuid4().hex[:12]}"

    def drop() -> None:
        client = pymilvus.MilvusClient(address)
        for collection in client.list_collections():
            if collection.startswith(f"{name}_"):
                client.drop_collection(collection)

    request.addfinalizer(drop)
    return f"{address}#{name}"
