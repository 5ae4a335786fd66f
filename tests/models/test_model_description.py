"""model.json and model.safetensors as a stranger may have written them: one message, and no vector that is NaN."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from proxygml import Embedder
from proxygml.data.images.settings import ImageSettings
from proxygml.errors import RecipeError, RunError, UserError, WeightsError
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder
from tests.helpers.commands import refused
from tests.helpers.models import untrained


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return untrained(tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embedder", None),
        ("embedder", [1]),
        ("embedder", "conv4"),
        ("embedder.embedding_size", "large"),
        ("embedder.embedding_size", 1.5),
        ("embedder.embedding_size", 10**9),
        ("embedder.embedding_size", [16]),
        ("embedder.backbone", 3),
        ("embedder.backbone", "x" * 300),
        ("embedder.pooling", "mean"),
        ("embedder.mirror", "perhaps"),
        ("embedder.tilt", "NaN"),
        ("embedder.output_stride", -8),
        ("embedder.unknown", 1),
        ("images", 3),
        ("images.size", 10**6),
        ("images.size", None),
        ("images.size", {"width": 3}),
        ("images.resize", 10**6),
        ("images.crop_scale", [0.1]),
        ("images.crop_scale", "all"),
        ("input", {}),
        ("input.mean", [0.5]),
        ("input.mean", ["a", "b", "c"]),
        ("input.std", [0, 1, 1]),
        ("input.bgr", "yes please"),
        ("classes", None),
        ("classes", "abc"),
        ("classes", [1, 2]),
        ("classes", {"a": 1}),
        ("format", [1]),
    ],
)
def test_wrong_values_are_named(model: Path, key: str, value: object) -> None:
    content: dict[str, Any] = json.loads((model / "model.json").read_text())
    section, _, name = key.partition(".")
    if name:
        content[section][name] = value
    else:
        content[section] = value
    (model / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"model\.json|{section}"):
        Embedder.load(model)


@pytest.mark.parametrize("text", ["[" * 100_000, "3", '"model"', "null", "\0", '{"format": 1}'])
def test_other_texts_are_named(model: Path, text: str) -> None:
    (model / "model.json").write_text(text)
    with pytest.raises(RunError, match=r"model\.json"):
        Embedder.load(model)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_files_that_are_no_ordinary_ones_are_named(model: Path, name: str) -> None:
    (model / name).unlink()
    os.mkfifo(model / name)
    with pytest.raises(RunError, match="a folder, a device or a pipe"):
        Embedder.load(model)
    (model / name).unlink()
    with (model / name).open("wb") as file:
        file.truncate(40 * 10**9)
    with pytest.raises(RunError, match="40,000,000,000 bytes"):
        Embedder.load(model)


@pytest.mark.parametrize("command", ["embed", "index", "export"])
def test_commands_write_nothing_from_weights_that_are_nan(
    model: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["head.linear.bias"][3] = torch.nan
    save_file(tensors, model / "model.safetensors")
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (20, 20)).save(images / "a.png")
    out = tmp_path / ("out.onnx" if command == "export" else "out.parquet" if command == "embed" else "out")
    given = {"export": ["--onnx", out], "embed": ["--images", images, "--out", out]}
    arguments = given.get(command, ["--images", images, "--out", out])
    assert "head.linear.bias holds NaN or infinite values" in refused(capsys, command, model, *arguments)
    assert not out.exists()
    shutil.rmtree(images)


def test_finite_weights_that_overflow_give_no_vectors(model: Path) -> None:
    embedder = Embedder.load(model)
    with torch.no_grad():
        embedder.head.linear.weight.fill_(3e38)  # type: ignore[operator,union-attr]
    with pytest.raises(WeightsError, match="gives NaN for 2 of 2 items"):
        embedder.embed(torch.full((2, 3, 16, 16), 255, dtype=torch.uint8))


def test_an_embedding_layer_of_impossible_size_is_named() -> None:
    with pytest.raises(RecipeError, match="makes a layer of .* numbers"):
        ImageEmbedder(EmbedderSettings("conv4", "none", "flatten", 2**16), ImageSettings(size=512, resize=512))


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_model_whose_files_are_no_ordinary_files_is_refused(
    name: str, kind: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read: the fingerprint of a pipe or a device would never be known."""
    image, path = tmp_path / "a.png", model / name
    Image.new("RGB", (16, 16)).save(image)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    message = refused(capsys, "embed", model, "--images", image, "--out", tmp_path / "v.parquet", "--workers", 0)
    assert f"{name} is a folder, a device or a pipe" in message
