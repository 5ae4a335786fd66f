"""A model outside of PyTorch: its ONNX file, run by onnxruntime from the description beside it."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from proxygml import Embedder
from proxygml.data.images.settings import ImageSettings
from proxygml.errors import UserError
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.training.export import export
from tests.helpers.commands import refused
from tests.helpers.commands import run as command
from tests.helpers.shared import shared_file

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


def untrained(folder: Path, settings: EmbedderSettings, size: int = 32) -> Embedder:
    torch.manual_seed(0)
    ImageEmbedder(settings, ImageSettings(size=size, resize=size + 6)).save(folder)
    return Embedder.load(folder)


def embeddings_of(onnx: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    found: np.ndarray = onnxruntime.InferenceSession(onnx).run(None, {"images": images})[0]
    return found


def test_a_file_never_lies_beside_the_description_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The description comes last: where it cannot be written any more, the old one is gone."""
    untrained(tmp_path / "run", EmbedderSettings("conv4", "none", "avg", 8))
    onnx, description = tmp_path / "a.onnx", tmp_path / "a.json"
    onnx.write_bytes(b"another model")
    description.write_text("its description")
    replace = os.replace

    def fails(source: str, target: str) -> None:
        if Path(target) == description:
            assert onnx.stat().st_size > 1000
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        export(tmp_path / "run", onnx, force=True)
    assert not description.exists()


@pytest.mark.parametrize(
    "settings",
    [
        EmbedderSettings("conv4", "none", "gem", 8),
        EmbedderSettings("conv4", "none", "flatten", 8, feature_norm="batch", tilt=10, zoom=1.1),
        EmbedderSettings("mobilenetv2_035", "none", "avg+max", 16, mirror=True, output_stride=8),
        EmbedderSettings("bn_inception", "none", "max", 0),
        EmbedderSettings("vit_tiny_patch16_224", "none", "avg", 8),
    ],
    ids=lambda settings: f"{settings.backbone}, {settings.pooling}",
)
def test_onnxruntime_gives_the_embeddings_of_pytorch(settings: EmbedderSettings, tmp_path: Path) -> None:
    embedder = untrained(tmp_path / "run", settings)
    assert export(tmp_path / "run", tmp_path / "model.onnx").difference <= 1e-4
    for count in (1, 3):
        images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
        with torch.inference_mode():
            expected = embedder(images).numpy()
        found = embeddings_of(tmp_path / "model.onnx", images.numpy())
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4


def described(path: Path, how: list[dict]) -> np.ndarray:
    """An image made ready by Pillow and NumPy alone, as the JSON describes it: (1, 3, S, S)."""
    decode, _, resize, crop = how
    assert (decode["to"], resize["interpolation"], resize["antialias"]) == ("RGB", "bilinear", True)
    image = Image.open(path).convert("RGB")
    shorter = min(image.size)
    width, height = (resize["shorter_side"] * side // shorter for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    side = crop["size"]
    left, top = (round((length - side) / 2) for length in image.size)
    return np.asarray(image)[top : top + side, left : left + side].transpose(2, 0, 1)[None]


def test_a_photo_from_its_file_by_the_description_alone(tmp_path: Path) -> None:
    weights = shared_file("mobilenetv2_100.imagenet.safetensors")
    embedder = ImageEmbedder(EmbedderSettings("mobilenetv2_100", str(weights)), ImageSettings(size=96, resize=110))
    embedder.save(tmp_path / "run")
    y, x = np.mgrid[:150, :210]
    pixels = np.stack([x, y, 120 + 60 * np.sin(x / 9) * np.cos(y / 7)], axis=2)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "photo.png")
    export(tmp_path / "run", tmp_path / "birds.onnx")
    description = json.loads((tmp_path / "birds.json").read_text())
    found = embeddings_of(tmp_path / "birds.onnx", described(tmp_path / "photo.png", description["preprocessing"]))
    expected = embedder.embed([tmp_path / "photo.png"]).numpy()
    # The one difference left is a grey level of rounding between two libraries' resizing.
    assert float(found[0] @ expected[0]) > 0.999
    exact = np.abs(embeddings_of(tmp_path / "birds.onnx", _square(embedder, tmp_path / "photo.png")) - expected)
    assert exact.max() <= 1e-4


def _square(embedder: Embedder, path: Path) -> np.ndarray:
    from proxygml.data.images.tensors import decode_image
    from proxygml.data.images.transforms import test_transform

    square: np.ndarray = test_transform(embedder.images)(decode_image(path))[None].numpy()
    return square


def test_the_command_says_what_it_wrote_and_refuses_to_replace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untrained(tmp_path / "run", EmbedderSettings("conv4", "none", "avg", 8))
    out = tmp_path / "birds.onnx"
    command("export", tmp_path / "run", "--onnx", out)
    printed = capsys.readouterr().out
    assert str(out) in printed and "birds.json" in printed
    before = out.read_bytes()
    assert "birds.onnx is already there" in refused(capsys, "export", tmp_path / "run", "--onnx", out)
    assert out.read_bytes() == before
    assert "name of a .onnx file" in refused(capsys, "export", tmp_path / "run", "--onnx", tmp_path / "birds")
    assert "holds no model.json" in refused(capsys, "export", tmp_path, "--onnx", tmp_path / "other.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["birds.json", "birds.onnx", "run"]
    assert "give --onnx FILE, --safetensors FILE or --proxies FILE" in refused(capsys, "export", tmp_path / "run")


def test_no_file_of_the_run_is_replaced_even_by_force(tmp_path: Path) -> None:
    run = tmp_path / "run"
    untrained(run, EmbedderSettings("conv4", "none", "avg", 8))
    (tmp_path / "same").symlink_to(run)
    for out in (run / "model.onnx", tmp_path / "same" / "model.onnx"):
        with pytest.raises(UserError, match=r"would replace .*model\.json"):
            export(run, out, force=True)
    Embedder.load(run)
    assert not (run / "model.onnx").exists()


@pytest.mark.parametrize("fault", ["other embeddings", "no place for the description"])
def test_both_files_are_written_or_none(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untrained(tmp_path / "run", EmbedderSettings("conv4", "none", "avg", 8))
    out = tmp_path / "birds.onnx"
    out.write_text("an earlier one")
    if fault == "other embeddings":
        monkeypatch.setattr("proxygml.models.onnx_export.TOLERANCE", -1.0)
    else:
        out.with_suffix(".json").mkdir()
    with pytest.raises((UserError, IsADirectoryError)):
        export(tmp_path / "run", out, force=True)
    assert out.read_text() == "an earlier one"
    assert {path.name for path in tmp_path.iterdir()} <= {"birds.onnx", "birds.json", "run"}
    assert not out.with_suffix(".json").is_file()


TRAINING_ONLY = (
    "accelerate faiss jsonargparse matplotlib pandas pyarrow pytorch_metric_learning scipy sklearn tensorboard"
)


def test_a_model_loads_without_what_only_training_needs(tmp_path: Path) -> None:
    embedder = untrained(tmp_path / "run", EmbedderSettings("conv4", "none", "avg", 8))
    Image.fromarray(np.arange(48 * 40 * 3, dtype=np.uint8).reshape(48, 40, 3)).save(tmp_path / "photo.png")
    script = f"""
import sys
sys.modules.update(dict.fromkeys({TRAINING_ONLY.split()!r}))  # None: not to be imported
from proxygml import Embedder
print(Embedder.load({str(tmp_path / "run")!r}).embed([{str(tmp_path / "photo.png")!r}]).tolist())
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    found = torch.tensor(json.loads(answer.stdout))
    assert torch.allclose(found, embedder.embed([tmp_path / "photo.png"]), atol=1e-6)
