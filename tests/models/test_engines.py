"""ONNX Runtime and OpenVINO in place of PyTorch: the same embeddings, made from a graph that is kept and checked."""

from pathlib import Path

import numpy as np
import pytest
import torch

from proxygml import Embedder, Gallery
from proxygml.data.vector_file import VectorFile
from proxygml.errors import UserError
from proxygml.models.engines import EXAMPLES, GRAPH, EngineEmbedder, load_embedder
from tests.helpers.commands import refused
from tests.helpers.commands import run as command
from tests.helpers.models import untrained

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("engines") / "run")


@pytest.fixture
def cache(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, shared by the tests of this module."""
    place = run.parent / "cache"
    monkeypatch.setattr("proxygml.models.engines.cache_folder", lambda purpose: place / purpose)
    return place


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_the_embeddings_are_those_of_pytorch(engine: str, run: Path, cache: Path) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    embedder, expected = load_embedder(run, engine), Embedder.load(run)  # type: ignore[arg-type]
    assert isinstance(embedder, EngineEmbedder)
    for count in (1, 70):
        images = torch.randint(256, (count, 3, 24, 20), dtype=torch.uint8)
        found = embedder.embed(images)
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected.embed(images), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="load it with torch"):
        embedder.features(images)


def test_the_graph_is_made_once(run: Path, cache: Path) -> None:
    load_embedder(run, "onnx")
    (graph,) = cache.rglob(GRAPH)
    made = graph.stat().st_mtime_ns
    load_embedder(run, "onnx")
    assert graph.stat().st_mtime_ns == made
    load_embedder(untrained(run.parent / "other", seed=1), "onnx")
    assert len(list(cache.rglob(GRAPH))) == 2


def test_a_gallery_is_built_and_searched_with_different_engines(run: Path, cache: Path, small_catalog: Path) -> None:
    folder = run.parent
    command("index", run, "--catalog", small_catalog, "--split", "test", "--out", folder / "g", "--engine", "onnx")
    command("embed", run, "--catalog", small_catalog, "--split", "test", "--out", folder / "v.parquet")
    file, gallery = VectorFile(folder / "v.parquet"), Gallery.load(folder / "g")
    assert gallery.manifest.model == file.model
    vectors = np.concatenate([vectors for vectors, _ in file.blocks()])
    found = gallery.search(vectors, 1)
    assert found.ids[:, 0].tolist() == list(range(len(vectors)))
    assert found.scores.min() > 1 - 1e-5
    command(
        "embed", run, "--catalog", small_catalog, "--split", "test", "--out", folder / "o.parquet", "--engine", "onnx"
    )
    same = np.concatenate([vectors for vectors, _ in VectorFile(folder / "o.parquet").blocks()])
    assert np.abs(same - vectors).max() <= 1e-4


def test_a_damaged_or_false_graph_gives_no_embeddings(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_catalog: Path
) -> None:
    monkeypatch.setattr("proxygml.models.engines.cache_folder", lambda purpose: tmp_path / purpose)
    load_embedder(run, "onnx")
    (graph,) = tmp_path.rglob(GRAPH)
    examples = graph.with_name(EXAMPLES)
    with np.load(examples) as whole:
        images, embeddings = whole["images"], whole["embeddings"]
    np.savez(examples, images=images, embeddings=-embeddings)
    embed = ("embed", run, "--catalog", small_catalog, "--out", tmp_path / "v.parquet", "--engine", "onnx")
    assert "differ from PyTorch's by" in refused(capsys, *embed)
    graph.write_bytes(graph.read_bytes()[:500])
    message = refused(capsys, *embed)
    assert "cannot run" in message and f"delete {graph.parent}" in message
    assert not (tmp_path / "v.parquet").exists()
