"""ONNX Runtime and OpenVINO in place of PyTorch: the same embeddings, made from a graph that is kept and checked."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch

from proxygml import Embedder, Gallery
from proxygml.data.vectors.file import VectorFile
from proxygml.errors import UserError
from proxygml.models.engines import EXAMPLES, GRAPH, Engine, EngineEmbedder, load_embedder
from proxygml.serving.limits import Limits
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


@pytest.fixture(params=["onnx", "openvino"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    return cast("Engine", request.param)


def test_the_embeddings_are_those_of_pytorch(engine: Engine, run: Path, cache: Path) -> None:
    embedder, expected = load_embedder(run, engine), Embedder.load(run)
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


def test_galleries_are_built_searched_and_clustered_with_different_engines(
    engine: Engine, run: Path, cache: Path, small_catalog: Path, tmp_path: Path
) -> None:
    given = ("--catalog", small_catalog, "--split", "test", "--workers", 0)
    command("index", run, *given, "--out", tmp_path / "g", "--engine", engine)
    command("embed", run, *given, "--out", tmp_path / "v.parquet")
    file, gallery = VectorFile(tmp_path / "v.parquet"), Gallery.load(tmp_path / "g")
    assert gallery.manifest.model == file.model
    vectors = np.concatenate([vectors for vectors, _ in file.blocks()])
    found = gallery.search(vectors, 1)
    assert found.ids[:, 0].tolist() == list(range(len(vectors)))
    assert found.scores.min() > 1 - 1e-5
    command("embed", run, *given, "--out", tmp_path / "o.parquet", "--engine", engine)
    same = np.concatenate([vectors for vectors, _ in VectorFile(tmp_path / "o.parquet").blocks()])
    assert np.abs(same - vectors).max() <= 1e-4
    command("search", tmp_path / "g", gallery.items["path"][3], "--out", tmp_path / "a.csv", "--engine", engine)
    assert pd.read_csv(tmp_path / "a.csv")["id"][0] == 3
    clusters = []
    for name in ("torch", engine):
        settings = ("--num_clusters", 4, "--layout", "table", "--engine", name)
        command("cluster", run, *given, "--out", tmp_path / name, *settings)
        clusters.append(pd.read_csv(tmp_path / name / "clusters.csv")["cluster"].tolist())
    assert clusters[0] == clusters[1]


def test_a_server_answers_many_clients_with_any_engine(
    engine: Engine, run: Path, cache: Path, small_catalog: Path, tmp_path: Path
) -> None:
    """A compiled model of OpenVINO must not answer one client with the embedding of another."""
    server = pytest.importorskip("tests.helpers.server", reason="the extra serve is not installed")
    httpx = pytest.importorskip("httpx")
    gallery = Gallery.load(server.gallery_at(tmp_path / "g", run, small_catalog))
    paths = gallery.items["path"].tolist()
    with server.Running(tmp_path / "g", run, Limits(), engine=engine) as running, ThreadPoolExecutor(8) as senders:

        def vector(path: str) -> list[float]:
            answer = httpx.post(f"{running.address}/embed", files={"image": Path(path).read_bytes()}, **server.TIMES)
            return cast("list[float]", answer.raise_for_status().json()["embedding"])

        found = np.array(list(senders.map(vector, paths)))
    assert np.abs(found - gallery.vectors(np.arange(len(paths)))).max() <= 1e-4


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
