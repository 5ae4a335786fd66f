"""Files of weights: of every training loop's names; and what is none, or damaged, is named before it is read."""

import io
import os
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from proxygml.data.images.settings import ImageSettings
from proxygml.errors import WeightsError
from proxygml.models.embedder import Embedder
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.training.recipe import Recipe
from tests.helpers.processes import in_processes
from tests.helpers.runs import train

IMAGES = ImageSettings(size=32, resize=32)


def build(weights: Path | str, backbone: str = "conv4", size: int = 8) -> Embedder:
    return ImageEmbedder(EmbedderSettings(backbone, str(weights), embedding_size=size), IMAGES)


def own_names(backbone: str = "conv4") -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {name: tensor.clone() for name, tensor in build("none", backbone).backbone.state_dict().items()}


@pytest.mark.parametrize("backbone", ["conv4", "mobilenetv2_035", "bn_inception"])
@pytest.mark.parametrize("prefix", ["model.", "backbone.", "_orig_mod.", "module.", "module._orig_mod.encoder."])
def test_prefixes_are_removed_and_named(
    backbone: str, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the tensors of other parts beside them, as of a head of the training loop's own."""
    state = own_names(backbone)
    file = tmp_path / "w.safetensors"
    save_file({f"{prefix}{name}": tensor for name, tensor in state.items()} | {"head.weight": torch.zeros(3, 3)}, file)
    loaded = build(file, backbone).backbone.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert f"removed '{prefix}' from the names" in " ".join(capsys.readouterr().err.split())


def printed_while_loading(file: str) -> str:
    with redirect_stderr(io.StringIO()) as text:
        build(file)
    return text.getvalue()


def test_of_several_processes_one_prints_what_is_removed(tmp_path: Path) -> None:
    save_file({f"module.{name}": tensor for name, tensor in own_names().items()}, tmp_path / "w.safetensors")
    first, second = in_processes(2, printed_while_loading, tmp_path / "meeting", str(tmp_path / "w.safetensors"))
    assert "removed 'module.' from the names" in first
    assert second == ""


@pytest.mark.parametrize("file", ["model.safetensors", "checkpoints/epoch-0003/part-00000-of-00001.safetensors"])
def test_runs_of_ours_are_weights(small_recipe: Recipe, tmp_path: Path, file: str) -> None:
    run = train(small_recipe, tmp_path / "run")
    loaded = build(run.path / file).backbone.state_dict()
    trained = load_file(run.model)
    assert all(torch.equal(tensor, trained[f"backbone.{name}"]) for name, tensor in loaded.items())


def test_a_prefix_does_not_hide_what_is_missing(tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in own_names().items()}
    del state["model.blocks.1.0.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"missing blocks\.1\.0\.weight"):
        build(tmp_path / "w.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    state = own_names()
    state["blocks.1.0.weight"][0, 0, 0, 0] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"blocks\.1\.0\.weight holds NaN or infinite values"):
        build(tmp_path / "w.safetensors")


def test_what_is_no_ordinary_file_is_named(tmp_path: Path) -> None:
    """At once: a pipe would be waited for, and /dev/zero or 40 GB be read."""
    os.mkfifo(tmp_path / "pipe.pth")
    for weights, message in (
        (tmp_path / "pipe.pth", "a device or a pipe"),
        (Path("/dev/zero"), "a device or a pipe"),
        (tmp_path, "a folder: give a file in it"),
    ):
        with pytest.raises(WeightsError, match=message):
            build(weights)
    for name in ("large.pth", "large.safetensors"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(40 * 10**9)
        with pytest.raises(WeightsError, match="40,000,000,000 bytes, but such a file has at most"):
            build(tmp_path / name)


@pytest.mark.parametrize("content", [3, [1, 2], {"model": 3}, {"state_dict": {"a": 1}}, None, {3: torch.zeros(1)}])
def test_other_contents_are_named(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth"):
        build(tmp_path / "w.pth")
