"""A head on vectors outside of proxygml: as an ONNX graph, and as arrays for NumPy."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from proxygml import Embedder, export
from proxygml.errors import UserError
from proxygml.models.numpy_export import export_arrays
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.train import train
from tests.helpers.commands import refused
from tests.helpers.models import untrained
from tests.helpers.vector_files import SIZE, labelled_vectors

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "vectors.md"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head": "mlp", "hidden_size": 16, "feature_norm": "standard"},
        {"head": "linear", "feature_norm": "batch"},
        {"head": "mlp", "hidden_size": 16, "feature_norm": "batch"},
    ],
)
def test_the_numpy_code_of_the_documentation_embeds_as_the_model_does(
    changes: dict[str, object], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {} if changes.get("feature_norm") != "batch" else {"embedding_start": "random", "whitening": 0.0}
    proxies = {"proxy_start": "random"} if start else {}
    content = recipe.content()
    content["embedder"] |= changes
    run = train(Recipe.of(content | start | proxies | {"epochs": 2}, "test"), tmp_path / "run")
    export_arrays(run.path, tmp_path / "products.safetensors")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code) == 1
    scope: dict[str, object] = {}
    exec(code[0], scope)
    vectors = labelled_vectors()[0] * 3
    expected = Embedder.load(run.path).embed(vectors).numpy()
    assert np.allclose(scope["embed"](vectors), expected, atol=2e-6)  # type: ignore[operator]


def test_a_head_becomes_an_onnx_graph_of_vectors(run: RunFolder, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    export(run.path, tmp_path / "head.onnx")
    vectors = labelled_vectors()[0]
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"vectors": 5 * vectors})[0]
    assert np.allclose(found, Embedder.load(run.path).embed(vectors), atol=1e-5)
    described = json.loads((tmp_path / "head.json").read_text())["input"]
    assert (described["name"], described["shape"]) == ("vectors", ["batch", SIZE])


def test_what_has_no_such_arrays_is_refused(
    recipe: Recipe, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="takes images"):
        export_arrays(untrained(tmp_path / "images"), tmp_path / "a.safetensors")
    embedder = replace(recipe.embedder, feature_norm="layer")
    layered = replace(
        recipe, embedder=embedder, embedding_start="random", whitening=0.0, proxy_start="random", epochs=1
    )
    with pytest.raises(UserError, match="feature_norm is layer"):
        export_arrays(train(layered, tmp_path / "run").path, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="the run's own model"):
        export_arrays(run.path, run.path / "model.safetensors", force=True)
    assert not (tmp_path / "a.safetensors").exists()
    assert "nothing to export is named" in refused(capsys, "export", run.path)
