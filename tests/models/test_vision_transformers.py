"""Vision transformers of timm as backbones, with random weights: their patches are pooled, DINO's among them."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from proxygml.data.images.settings import ImageSettings
from proxygml.errors import WeightsError
from proxygml.models.embedder import Embedder
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder

SIZES = {"vit_tiny_patch16_224": 32, "vit_small_patch14_reg4_dinov2": 28, "vit_tiny_patch16_dinov3_qkvb": 32}


def build(backbone: str, weights: str = "none", embedding_size: int = 8) -> Embedder:
    size = SIZES[backbone]
    settings = EmbedderSettings(backbone, weights, "avg", embedding_size)
    return ImageEmbedder(settings, ImageSettings(size=size, resize=size)).eval()


@pytest.mark.parametrize("backbone", SIZES)
@torch.inference_mode()
def test_patches_are_pooled_without_class_and_register_tokens(backbone: str) -> None:
    embedder = build(backbone, embedding_size=0)
    images = torch.rand(2, 3, SIZES[backbone], SIZES[backbone])
    tokens = embedder.backbone.forward_features((images - embedder.mean) / embedder.std)
    patches = tokens[:, -4:]  # 2 x 2 of them; the others come first
    assert tokens.shape[1] == 4 + {"vit_tiny_patch16_224": 1}.get(backbone, 5)
    assert torch.allclose(embedder.features(images), patches.mean(dim=1), atol=1e-6)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_weights_of_another_image_size_fit(backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As those of DINOv2, which are of 518 pixels: the position embeddings are interpolated as timm does it."""
    network = timm.create_model(backbone, num_classes=0, global_pool="", img_size=2 * SIZES[backbone])
    with torch.no_grad():
        network.pos_embed.normal_()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    embedder = build(backbone, str(tmp_path / "weights.safetensors"))
    classes = 0 if "dinov2" in backbone else 1  # register tokens of DINOv2 have no position
    expected = resample_abs_pos_embed(network.pos_embed, [2, 2], num_prefix_tokens=classes)
    assert torch.equal(embedder.backbone.pos_embed, expected)
    assert torch.equal(embedder.backbone.blocks[0].mlp.fc1.weight, network.blocks[0].mlp.fc1.weight)
    assert "position embeddings of 4 x 4 patches interpolated to 2 x 2" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(1, 7, 192), (1, 17, 96), (17, 192), (1, 0, 192)])
def test_position_embeddings_of_no_square_are_named(shape: tuple[int, ...], tmp_path: Path) -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="", img_size=32)
    save_file(network.state_dict() | {"pos_embed": torch.zeros(shape)}, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="pos_embed has shape"):
        build("vit_tiny_patch16_224", str(tmp_path / "weights.safetensors"))
