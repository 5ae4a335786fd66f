"""The embedder: any backbone, the same RGB images for all, saved and loaded without loss."""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from scipy.ndimage import affine_transform

from proxygml import Embedder
from proxygml.data.images.settings import ImageSettings
from proxygml.errors import ImageError, RecipeError, RunError, UserError, WeightsError
from proxygml.models.bn_inception import BNInception
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.head import Head, Pool
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.models.model_files import read_tensors, write_model
from tests.helpers.kills import survives_kills
from tests.helpers.shared import shared_file

SMALL = ImageSettings(size=32, resize=36)


def build(backbone: str = "conv4", weights: str = "none", size: int = 8, pooling: str = "avg") -> Embedder:
    settings = EmbedderSettings(backbone, weights, pooling, size)  # type: ignore[arg-type]
    return ImageEmbedder(settings, SMALL, ["a", "b"]).eval()


@pytest.mark.parametrize(
    "backbone",
    ["conv4", "conv4_small", "bn_inception", "mobilenetv2_035", "convnext_atto", "swin_tiny_patch4_window7_224"],
)
def test_every_kind_of_backbone_gives_unit_vectors(backbone: str) -> None:
    size = 64 if backbone.startswith("swin") else 32
    embedder = ImageEmbedder(EmbedderSettings(backbone, "none", "avg", 8), ImageSettings(size=size, resize=size)).eval()
    with torch.inference_mode():
        vectors = embedder(torch.randint(256, (2, 3, size, size), dtype=torch.uint8))
    assert vectors.shape == (2, 8)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)


def test_vision_transformers_pool_their_patches() -> None:
    embedder = ImageEmbedder(EmbedderSettings("vit_tiny_patch16_224", "none", "avg", 0), SMALL).eval()
    with torch.inference_mode():
        images = torch.rand(1, 3, 32, 32)
        tokens = embedder.backbone.forward_features((images - embedder.mean) / embedder.std)
        assert torch.allclose(embedder.features(images), tokens[:, 1:].mean(dim=1), atol=1e-6)


@pytest.mark.parametrize("pooling", ["avg", "max", "avg+max", "gem", "flatten"])
def test_pooling(pooling: str) -> None:
    features = torch.rand(2, 5, 7)
    expected = {
        "avg": features.mean(-1),
        "max": features.amax(-1),
        "avg+max": features.mean(-1) + features.amax(-1),
        "gem": (features**3).mean(-1) ** (1 / 3),
        "flatten": features.reshape(2, 35),
    }[pooling]
    assert torch.allclose(Pool(pooling)(features), expected, atol=1e-6)  # type: ignore[arg-type]
    assert len(list(Pool(pooling).parameters())) == (pooling == "gem")  # type: ignore[arg-type]


def test_flattened_features_keep_every_position(tmp_path: Path) -> None:
    """A 2 x 2 map of 256 channels at 32 pixels; the saved embedder has the linear layer that fits it."""
    settings, images = EmbedderSettings("conv4", "none", "flatten", 8), ImageSettings(size=32, resize=32)
    embedder = ImageEmbedder(settings, images).eval()
    assert (embedder.num_features, embedder.head.linear.weight.shape) == (1024, (8, 1024))
    rgb = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        features = embedder.backbone.forward_features((rgb - 0.5) / 0.5)
        assert torch.allclose(embedder.features(rgb), features.reshape(2, -1), atol=1e-5)
        embedder.save(tmp_path)
        assert torch.equal(Embedder.load(tmp_path)(rgb), embedder(rgb))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_features_are_normalised_before_the_linear_layer(norm: str, tmp_path: Path) -> None:
    """In training over the batch or over each image's features; what is saved embeds by what training has seen."""
    settings = EmbedderSettings("conv4", "none", embedding_size=8, feature_norm=norm)  # type: ignore[arg-type]
    embedder = ImageEmbedder(settings, SMALL).train()
    embedder.backbone.eval()
    rgb = torch.rand(16, 3, 32, 32)
    with torch.no_grad():
        features = embedder.features(rgb)
        over = 0 if norm == "batch" else 1
        scale = (features.var(over, correction=0, keepdim=True) + 1e-5).sqrt()
        expected = F.normalize(embedder.head.linear((features - features.mean(over, keepdim=True)) / scale), dim=1)
        for _ in range(200):  # until the running statistics are those of this batch, but for the variance's correction
            trained = embedder(rgb)
        assert torch.allclose(trained, expected, atol=1e-5)
        assert torch.allclose(embedder.eval()(rgb), expected, atol=0.02)
        embedder.save(tmp_path)
        assert torch.equal(Embedder.load(tmp_path)(rgb), embedder(rgb))


def test_images_too_small_to_flatten_are_named() -> None:
    with pytest.raises(RecipeError, match="images.size is 8, which conv4 cannot take"):
        ImageEmbedder(EmbedderSettings("conv4", "none", "flatten", 8), ImageSettings(size=8, resize=8))


def test_uint8_and_float_images_are_the_same_input() -> None:
    embedder, images = build(), torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.allclose(embedder(images), embedder(images / 255), atol=1e-6)


def test_bn_inception_sees_bgr_with_its_mean_subtracted() -> None:
    embedder = build("bn_inception", size=0)
    rgb = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    own_space = rgb.flip(1).float() - torch.tensor([104.0, 117.0, 128.0]).view(3, 1, 1)
    with torch.inference_mode():
        expected = embedder.backbone.forward_features(own_space).mean(dim=(2, 3))
        assert torch.allclose(embedder.features(rgb), expected, rtol=1e-3, atol=1e-4)


def test_timm_models_see_their_own_input_space() -> None:
    torch.manual_seed(0)
    embedder = build("mobilenetv2_035", size=0)
    rgb = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        features = embedder.backbone.forward_features((rgb - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        assert torch.allclose(embedder.features(rgb), features.mean(dim=(2, 3)), atol=1e-5)


def test_embed_takes_paths_arrays_tensors_and_pillow_images(tmp_path: Path) -> None:
    embedder = build()
    arrays = [np.random.default_rng(n).integers(0, 256, (40 + n, 50, 3), dtype=np.uint8) for n in range(5)]
    paths = [tmp_path / f"{n}.png" for n in range(5)]
    for array, path in zip(arrays, paths, strict=True):
        Image.fromarray(array).save(path)
    expected = embedder.embed(arrays, batch_size=2)
    assert expected.shape == (5, 8)
    assert expected.dtype == torch.float32
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    kinds = (paths, [str(p) for p in paths], tensors, [Image.fromarray(a) for a in arrays])
    for images in kinds:
        assert torch.allclose(embedder.embed(images, batch_size=3), expected, atol=1e-6)
    assert torch.allclose(embedder.embed(paths, workers=2), expected, atol=1e-6)
    assert embedder.embed([]).shape == (0, 8)


@pytest.mark.parametrize(("mode", "orientation"), [("RGB", 6), ("RGBA", 1), ("I;16", 1)])
def test_a_pillow_image_is_embedded_as_its_file_is(mode: str, orientation: int, tmp_path: Path) -> None:
    """Turned upright, on white, and with all grey levels; one that Pillow cannot read to its end is named."""
    random, path = np.random.default_rng(0), tmp_path / "a.png"
    shape = {"RGB": (40, 60, 3), "RGBA": (40, 60, 4), "I;16": (40, 60)}[mode]
    kind = np.uint16 if mode == "I;16" else np.uint8
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(random.integers(np.iinfo(kind).max, size=shape, dtype=kind)).save(path, exif=exif)
    embedder = build()
    with Image.open(path) as image:
        assert torch.allclose(embedder.embed([image]), embedder.embed([path]), atol=1e-6)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as image, pytest.raises(ImageError, match=r"a\.png is truncated or damaged"):
        embedder.embed([image])


def test_embed_cuts_boxes(tmp_path: Path) -> None:
    embedder, pixels = build(), np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    boxed = embedder.embed([tmp_path / "a.png"], boxes=np.array([[10, 5, 50, 45]]))
    assert torch.allclose(boxed, embedder.embed([pixels[5:45, 10:50]]), atol=1e-6)
    with pytest.raises(ImageError, match=r"shape \(2, 4\), but must have \(1, 4\)"):
        embedder.embed([tmp_path / "a.png"], boxes=np.zeros((2, 4), np.int64))
    with pytest.raises(ImageError, match="decoded already"):
        embedder.embed([pixels], boxes=np.array([[10, 5, 50, 45]]))


def test_another_network_can_be_trained_on_vectors() -> None:
    vectors = build().embed(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    layer = torch.nn.Linear(8, 2)
    layer(vectors).sum().backward()
    assert layer.weight.grad is not None and not vectors.requires_grad


def test_embed_leaves_the_mode_as_it_was() -> None:
    embedder = build().train()
    embedder.embed(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert embedder.training


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("photo.jpg", "put it in a list"),
        (["missing.png"], "missing.png cannot be read"),
        ([np.zeros((4, 4), np.uint8)], r"shape \(4, 4\)"),
        ([np.zeros((4, 4, 3), np.float32)], "float32"),
        ([torch.zeros(1, 4, 4, dtype=torch.uint8)], r"shape \(1, 4, 4\)"),
        ([3.5], "float"),
        (["a.png", torch.zeros(3, 4, 4, dtype=torch.uint8)], "both in one list"),
    ],
)
def test_embed_names_what_is_no_image(images: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        build().embed(images)  # type: ignore[arg-type]


def test_tied_weights_are_saved_under_each_of_their_names(tmp_path: Path) -> None:
    """Some networks of timm share tensors, which safetensors refuses to write."""
    linear = torch.nn.Linear(4, 4)
    network = torch.nn.ModuleDict({"encoder": linear, "decoder": linear})
    network.register_buffer("row", linear.weight.detach()[1])
    write_model(tmp_path, {}, network.state_dict())
    found = read_tensors(tmp_path, network.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())
    network.load_state_dict(found)


def test_saved_and_loaded_embedder_is_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    embedder = build(pooling="gem")
    embedder.save(tmp_path)
    loaded = Embedder.load(tmp_path)
    images = torch.randint(256, (4, 3, 50, 40), dtype=torch.uint8)
    assert torch.equal(loaded.embed(images), embedder.embed(images))
    assert loaded.classes == ("a", "b")
    assert loaded.images == SMALL
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
def test_a_kill_while_a_model_is_replaced_never_mixes_it_with_another(tmp_path: Path) -> None:
    """The two have tensors of the same shapes, but scale images differently."""
    settings = EmbedderSettings("conv4", "none", "avg", 8)
    old, new = (ImageEmbedder(settings, ImageSettings(size=16, resize=resize)) for resize in (16, 20))
    image = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    expected = {embedder.images.resize: embedder.eval()(image) for embedder in (old, new)}
    for step in range(20):
        (tmp_path / str(step)).mkdir()
        old.save(tmp_path / str(step))
    found = []

    def check(step: int) -> None:
        try:
            loaded = Embedder.load(tmp_path / str(step))
        except RunError as error:
            assert "holds no model.json" in str(error)
            found.append(0)
        else:
            torch.testing.assert_close(loaded(image), expected[loaded.images.resize])
            found.append(loaded.images.resize)

    with torch.inference_mode():
        assert 2 <= survives_kills(lambda step: new.save(tmp_path / str(step)), check) < 20
    assert found == sorted(found, key=[16, 0, 20].index)
    assert {16, 20} < set(found)


def test_loading_needs_no_weights_file_that_training_started_from(tmp_path: Path) -> None:
    save_file(build().backbone.state_dict(), tmp_path / "start.safetensors")
    build(weights=str(tmp_path / "start.safetensors")).save(tmp_path / "run")
    (tmp_path / "start.safetensors").unlink()
    Embedder.load(tmp_path / "run")


def test_load_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no model\.json"):
        Embedder.load(tmp_path)
    build().save(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(description | {"format": 99}))
    with pytest.raises(RunError, match="format 99"):
        Embedder.load(tmp_path)
    description["embedder"]["embedding_size"] = 9
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match="does not fit"):
        Embedder.load(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        Embedder.load(tmp_path)


def test_weights_from_files(tmp_path: Path) -> None:
    """safetensors and .pth, with a classifier that is left out, wrapped or not, in half precision or not."""
    source = timm.create_model("mobilenetv2_035", num_classes=10)
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        embedder = build("mobilenetv2_035", str(tmp_path / name))
        assert torch.equal(embedder.backbone.conv_stem.weight, source.conv_stem.weight)


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a stranger's code ran",)


def test_weights_never_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": Attack()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        build(weights=str(tmp_path / "evil.pth"))
    assert "stranger" not in capsys.readouterr().out


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = build().backbone.state_dict()
    state["extra.weight"] = torch.zeros(2)
    state["blocks.0.0.weight"] = torch.zeros(1, 2)
    del state["blocks.1.0.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        build(weights=str(tmp_path / "w.safetensors"))
    for part in ("missing blocks.1.0.weight", "unexpected extra.weight", r"blocks.0.0.weight has shape (1, 2)"):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match="not there"):
        build(weights=str(tmp_path / "none.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        build(weights=str(tmp_path / "bad.safetensors"))


def test_bn_inception_loads_a_file_of_the_port(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = BNInception().state_dict() | {
        "last_linear.weight": torch.zeros(1000, 1024),
        "last_linear.bias": torch.zeros(1000),
    }
    torch.save(state, tmp_path / "bn_inception.pth")
    embedder = build("bn_inception", str(tmp_path / "bn_inception.pth"))
    assert torch.equal(embedder.backbone.conv1_7x7_s2.weight, state["conv1_7x7_s2.weight"])


def test_pretrained_without_a_network_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"model\.safetensors .* set embedder\.weights to that file"):
        build("mobilenetv2_050", "pretrained")


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'mobilnetv2_100'.*did you mean 'mobilenetv2_100'"):
        build("mobilnetv2_100")
    with pytest.raises(RecipeError, match="embedder.pooling is 'mean'"):
        build(pooling="mean")
    with pytest.raises(RecipeError, match="embedder.embedding_size is -1"):
        build(size=-1)
    with pytest.raises(WeightsError, match="conv4 has no pretrained weights"):
        build(weights="pretrained")


def test_head_computes_its_norm_in_float32() -> None:
    vectors = Head(4, 3).to(torch.bfloat16)(torch.randn(5, 4, dtype=torch.bfloat16))
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors.norm(dim=1), torch.ones(5), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backbone", ["conv4", "mobilenetv2_035", "bn_inception"])
@pytest.mark.parametrize("pooling", ["avg", "gem"])
def test_an_embedder_of_another_precision_embeds(dtype: torch.dtype, backbone: str, pooling: str) -> None:
    torch.manual_seed(0)
    embedder = build(backbone, pooling=pooling).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    expected = embedder.embed(images)
    found = embedder.to(dtype).embed(images)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=0.1)
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)


def test_real_weights_load_strictly() -> None:
    weights = shared_file("mobilenetv2_100.imagenet.safetensors")
    embedder = ImageEmbedder(EmbedderSettings("mobilenetv2_100", str(weights), "avg", 0), SMALL)
    assert embedder.num_features == 1280


def test_errors_are_value_errors() -> None:
    assert issubclass(UserError, ValueError)


def test_mirrored_embedding_does_not_tell_an_image_from_its_mirror_image() -> None:
    torch.manual_seed(0)
    settings = EmbedderSettings(backbone="conv4", weights="none", embedding_size=8, mirror=True)
    embedder = ImageEmbedder(settings, ImageSettings(size=32, resize=32))
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    both = embedder.embed(images)
    assert torch.allclose(both, embedder.embed(images.flip(3)), atol=1e-6)
    plain = ImageEmbedder(replace(settings, mirror=False), embedder.images)
    plain.load_state_dict(embedder.state_dict())
    features = (plain.eval().features(images) + plain.features(images.flip(3))) / 2
    assert torch.allclose(both, plain.head(features), atol=1e-6)
    assert not torch.allclose(both, plain.embed(images), atol=1e-3)


def test_an_image_is_embedded_by_the_mean_of_its_views() -> None:
    """Upright, turned to either side, and each enlarged, around the centre; SciPy does the same by other means."""
    settings = EmbedderSettings(backbone="conv4", weights="none", embedding_size=8, tilt=10, zoom=1.2)
    embedder, images = ImageEmbedder(settings, SMALL).eval(), torch.rand(2, 3, 32, 32)
    plain = ImageEmbedder(replace(settings, tilt=0, zoom=1), SMALL).eval()
    plain.load_state_dict(embedder.state_dict())
    views = []
    for angle, zoom in itertools.product(np.radians([0, -10, 10]), (1, 1.2)):
        matrix = np.eye(4)
        matrix[2:, 2:] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
        offset = np.full(4, 15.5) - matrix @ np.full(4, 15.5)
        offset[:2] = 0
        views.append(torch.from_numpy(affine_transform(images.numpy(), matrix, offset, order=1, mode="nearest")))
    with torch.inference_mode():
        expected = torch.stack([plain.features(view) for view in views]).mean(dim=0)
        assert torch.allclose(embedder.features(images), expected, atol=1e-5)
        embedder.train().backbone.eval()
        assert torch.equal(embedder.features(images), plain.features(images)), "training sees one view"


@pytest.mark.parametrize("wrong", [{"tilt": 90.0}, {"tilt": -1.0}, {"zoom": 0.5}, {"zoom": 3.0}])
def test_impossible_views_are_named(wrong: dict[str, float]) -> None:
    (key,) = wrong
    with pytest.raises(RecipeError, match=f"embedder.{key} is"):
        EmbedderSettings(**wrong)


@pytest.mark.parametrize("backbone", ["mobilenetv2_035", "resnet18", "resnetblur18"])
def test_an_image_is_embedded_by_a_finer_map_and_trained_on_by_the_usual_one(backbone: str) -> None:
    settings = EmbedderSettings(backbone=backbone, weights="none", embedding_size=8, output_stride=8)
    embedder, images = ImageEmbedder(settings, SMALL), torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    plain = ImageEmbedder(replace(settings, output_stride=0), SMALL).eval()
    plain.load_state_dict(embedder.state_dict())
    finer = timm.create_model(backbone, num_classes=0, global_pool="", output_stride=8).eval()
    finer.load_state_dict(embedder.backbone.state_dict())
    with torch.no_grad():
        usual, plain.backbone = plain(images), finer
        for _ in range(2):
            assert torch.allclose(embedder.eval()(images), plain(images), atol=1e-6)
            embedder.train().backbone.eval()
            assert torch.allclose(embedder(images), usual, atol=1e-6)


def test_a_finer_map_is_kept_with_the_model(tmp_path: Path) -> None:
    embedder = ImageEmbedder(EmbedderSettings("mobilenetv2_035", "none", embedding_size=8, output_stride=16), SMALL)
    embedder.save(tmp_path)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(Embedder.load(tmp_path).embed(images), embedder.embed(images))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"backbone": "conv4"}, "conv4 is none of timm's networks"),
        ({"backbone": "vit_tiny_patch16_224"}, "cannot be built so by timm"),
        ({"backbone": "mobilenetv2_035", "output_stride": 32}, "has as fine a map already"),
        ({"backbone": "mobilenetv2_035", "output_stride": 12}, "gives a position for every 8 pixels instead"),
        ({"backbone": "convnext_atto"}, "has other layers in so fine a form"),
        ({"backbone": "mobilenetv2_035", "pooling": "flatten"}, "pooling is flatten, which needs as many"),
        ({"backbone": "mobilenetv2_035", "output_stride": -8}, "must be 0 or more"),
    ],
)
def test_a_backbone_that_has_no_finer_map_is_named(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=f"embedder.output_stride is .*{reason}"):
        ImageEmbedder(EmbedderSettings(**{"weights": "none", "output_stride": 8} | settings), SMALL)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no folder .*nowhere: give a run folder"):
        Embedder.load(tmp_path / "nowhere")
