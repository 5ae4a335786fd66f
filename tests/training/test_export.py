"""Exports in fewer bits, from a run: quantised on its training images, compared with PyTorch."""

import json
from pathlib import Path

import pytest
import torch

from proxygml import Embedder
from proxygml.data.images.settings import ImageSettings
from proxygml.errors import UserError
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.training.export import export, exported_recall
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from tests.helpers.commands import refused
from tests.helpers.commands import run as command

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_catalog: Path) -> Path:
    """A run folder of an untrained network, with the catalog in its recipe."""
    folder = tmp_path_factory.mktemp("export") / "run"
    folder.mkdir()
    settings, images = EmbedderSettings("conv4", "none", "avg", 16), ImageSettings(size=24, resize=24)
    torch.manual_seed(0)
    ImageEmbedder(settings, images).save(folder)
    Recipe(catalog=str(small_catalog), embedder=settings, images=images).write(RunFolder(folder).recipe)
    return folder


@pytest.mark.parametrize(("precision", "smaller", "cosine"), [("float16", 0.6, 0.9999), ("int8", 0.9, 0.98)])
def test_fewer_bits_give_a_smaller_file_and_nearly_the_same_embeddings(
    precision: str, smaller: float, cosine: float, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(run, tmp_path / "whole.onnx")
    out = tmp_path / "small.onnx"
    command("export", run, "--onnx", out, "--precision", precision, "--recall")
    printed = capsys.readouterr().out
    assert "Recall@1" in printed and "(48 test images)" in printed
    assert out.stat().st_size < smaller * (tmp_path / "whole.onnx").stat().st_size
    assert json.loads((tmp_path / "small.json").read_text())["precision"] == precision
    assert float(printed.split("cosine with PyTorch ")[1].split()[0]) >= cosine
    recall = exported_recall(run, out)
    assert abs(recall.torch - recall.exported) < 0.15
    assert recall.images == 48


def test_int8_stores_bytes_and_keeps_the_ends_in_float(run: Path, tmp_path: Path) -> None:
    import onnx

    export(run, tmp_path / "small.onnx", precision="int8")
    model = onnx.load(tmp_path / "small.onnx")
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in weights}
    assert kinds == {"INT8", "FLOAT"}
    names = [node.op_type for node in model.graph.node]
    assert names.index("Conv") < names.index("QuantizeLinear")


def test_what_cannot_be_quantised_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "small.onnx"
    monkeypatch.setattr("proxygml.models.onnx_export.LEAST_COSINE", {"int8": 1.1})
    with pytest.raises(UserError, match=r"mean cosine similarity of .* take --precision float16"):
        export(run, out, precision="int8")
    assert "give --onnx FILE beside" in refused(capsys, "export", run, "--proxies", out, "--precision", "int8")
    alone = tmp_path / "alone"
    alone.mkdir()
    Embedder.load(run).save(alone)
    assert "recipe.yaml" in refused(capsys, "export", alone, "--onnx", out, "--precision", "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["alone"]
