"""`images.test_scale`: a trained network embeds larger images than it was trained on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from proxygml.data.catalog import Catalog
from proxygml.data.images.settings import ImageSettings
from proxygml.data.images.tensors import decode_image
from proxygml.data.images.transforms import test_transform as transform_of_tests
from proxygml.errors import RecipeError
from proxygml.models.embedder import Embedder
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.models.onnx_export import describe
from proxygml.models.onnx_graph import graph_input
from proxygml.training.evaluate_run import evaluate_run
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import fit

SMALL = ImageSettings(size=32, resize=40)
LARGER = replace(SMALL, test_scale=1.5)


def build(images: ImageSettings, backbone: str = "mobilenetv2_035", **settings: Any) -> Embedder:
    torch.manual_seed(0)
    return ImageEmbedder(EmbedderSettings(backbone, "none", **({"embedding_size": 8} | settings)), images).eval()


@pytest.mark.parametrize(
    "backbone",
    ["mobilenetv2_035", "vit_tiny_patch16_224", "vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224"],
)
def test_a_model_embeds_images_as_many_times_larger(backbone: str, small_catalog: Path, tmp_path: Path) -> None:
    """Cut and scaled as with those sizes; the choice is kept with the model."""
    paths = Catalog.read(small_catalog).paths[:3]
    embedder = build(LARGER, backbone)
    expected = torch.stack(
        [transform_of_tests(ImageSettings(size=48, resize=60))(decode_image(path)) for path in paths]
    )
    assert torch.equal(embedder.embed(paths), embedder(expected).detach())
    embedder.save(tmp_path / "model")
    assert torch.equal(Embedder.load(tmp_path / "model").embed(paths), embedder.embed(paths))


def test_training_does_not_depend_on_it(small_recipe: Recipe, tmp_path: Path) -> None:
    """Neither the start of the embedding layer nor a step does; the test images are larger."""
    recipe = replace(small_recipe, epochs=2, embedding_start="features", whitening=0.3)
    for name, scale in (("one", 1.0), ("other", 2.0)):
        fit(replace(recipe, images=replace(recipe.images, test_scale=scale)), RunFolder(tmp_path / name))
    one, other = (Embedder.load(tmp_path / name).state_dict() for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    evaluate_run(RunFolder(tmp_path / "other"), report=False)
    evaluation = json.loads((tmp_path / "other" / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["protocol"]["image_size"] == 2 * recipe.images.size


def test_an_exported_graph_takes_the_larger_images() -> None:
    description = describe(build(LARGER), "model")
    assert description["input"]["shape"] == ["batch", 3, 48, 48]
    assert [step.get("shorter_side") or step.get("size") for step in description["preprocessing"][2:]] == [60, 48]
    name, images = graph_input(build(LARGER), 2)
    assert (name, images.shape) == ("images", (2, 3, 48, 48))


@pytest.mark.parametrize(
    ("scale", "settings", "message"),
    [
        (
            1.5,
            {"backbone": "xcit_nano_12_p16_224"},
            "test_scale is not 1, but xcit_nano_12_p16_224 takes images of one",
        ),
        (1.5, {"backbone": "conv4", "pooling": "flatten"}, "flatten, which needs as many positions as in training"),
        (1.5, {"backbone": "bn_inception"}, "images of 48 x 48 pixels do not fit BN-Inception"),
        (0.0, {}, "images.test_scale is 0.0, but must be above 0"),
        (200.0, {}, "images.test_scale is 200.0, but must be above 0, so that the 40 pixels of images.resize become"),
    ],
)
def test_what_cannot_be_larger_is_named(scale: float, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(replace(SMALL, test_scale=scale), **settings)
