"""Recipes: read, checked, written; the published settings."""

import os
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from proxygml.comparison.plan import Comparison
from proxygml.errors import RecipeError
from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import find_recipe

RECIPES = sorted((Path(__file__).parents[2] / "proxygml" / "recipes").glob("*.yaml"))
COMPARISONS = sorted((RECIPES[0].parent / "compare").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_read(path: Path) -> None:
    assert Recipe.read(path).epochs > 0
    assert find_recipe(path.stem) == path


@pytest.mark.parametrize("path", [*RECIPES, *COMPARISONS], ids=lambda path: path.stem)
def test_a_recipe_is_read_as_jsonargparse_reads_it_whole(path: Path) -> None:
    """Sections and plain values are read one by one, which is faster."""
    contents = [Recipe.read(path).content()] if path in RECIPES else contents_of(Comparison.read(path))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, "recipe")
    for content in contents:
        assert Recipe.of(content, "here") == parser.instantiate(parser.parse_object({"recipe": content})).recipe


def test_what_a_recipe_is_made_of_is_left_as_it_was() -> None:
    """Also where its values fit each other only all together, and where they are not of JSON."""
    for other in ({}, {"embedding_start": "lda", "whitening": 1}, {"milestones": (1, 2)}):
        content = {"loss": {"name": "NPairsLoss", "arguments": {"given": "1"}}, **other}
        assert Recipe.of(content, "here").loss.arguments == {"given": 1}
        assert content["loss"] == {"name": "NPairsLoss", "arguments": {"given": "1"}}


def contents_of(comparison: Comparison) -> list[dict[str, Any]]:
    """The keys and values of every method as it is given."""
    return [comparison.recipe_of(method, {}, 0).content() for method in comparison.methods]


def test_published_settings() -> None:
    cub, cars, sop = (Recipe.read(find_recipe(name)) for name in ("cub200", "cars196", "sop"))
    assert cub == cars == Recipe()  # the defaults are the paper's for CUB and Cars
    assert (sop.loss.proxies_per_class, sop.loss.proxy_weight, sop.loss.scale) == (1, 0.0, 20.0)
    assert (sop.proxy_lr, sop.batch_norm, sop.recall_at) == (0.3, "trained", (1, 10, 100, 1000))


def test_written_recipe_reads_the_same(tmp_path: Path) -> None:
    recipe = Recipe.read(find_recipe("sop"))
    recipe.write(tmp_path / "recipe.yaml")
    assert Recipe.read(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch: 3", "no key 'epoch'; did you mean 'epochs'"),
        ("loss: {proxies_per_clas: 3}", "no key 'loss.proxies_per_clas'; did you mean 'loss.proxies_per_class'"),
        ("scale: 3", "no key 'scale'; did you mean 'loss.scale'"),
        ("epochs: many", "epochs"),
        ("images: {size: big}", "images.size"),
        ("images: {size: -2}", "images.size is -2"),
        ("- 1", "holds list"),
        ("a: [", "cannot be read"),
        ("batch_size: 1", "batch_size is 1"),
        ("epochs: -1", "epochs is -1"),
        ("backbone_lr: -0.1", "backbone_lr is -0.1"),
        ("proxy_lr: .nan", "proxy_lr is nan"),
        ("eps: 0", "eps is 0"),
        ("decay: 2", "decay is 2"),
        ("validation_classes: 1", "validation_classes is 1"),
        ("optimizer: sgd", "optimizer"),
        ("schedule: linear", "schedule"),
        ("recall_at: [0]", "recall_at"),
        ("{batch_size: 32, images_per_class: 5}", "must be a multiple of images_per_class"),
        ("cache_features: true", "cache_features needs a frozen backbone, but backbone_lr is 0.0001"),
        ("loss: null", "loss is None, but must be keys and values"),
        ("embedding_start: features\nembedder: {embedding_size: 0}", "there is no linear layer to start"),
        (
            "embedding_start: features\nembedder: {feature_norm: batch}",
            "embedding_start is features, but .*batch",
        ),
        ("embedding_start: features\nwhitening: 1.5", "whitening is 1.5, but must be 0 to 1"),
        ("epochs: 3\nseed: 1\nepochs: 4", "'epochs' comes twice: give each key once"),
        ("whitening: 0.3", "whitening is 0.3, but embedding_start is random"),
        ("proxy_start: features\nembedder: {feature_norm: layer}", "proxy_start is features, but .*norm is layer"),
        ("embedder: {feature_norm: group}", "'none', 'batch', 'layer'.*group"),
        (
            "proxy_start: features\nloss: {name: ProxyAnchorLoss}",
            "only the proxies of ProxyGMLLoss can start from features",
        ),
        ("images: 3", "images is 3, but must be keys and values"),
        ("workers: null", "workers is None, but must be a value"),
        ("milestones: [-3]", "milestones"),
        ("seed: 4294967296", "seed is 4294967296"),
        ("loss: {scale: -1}", "loss.scale is -1"),
        ("loss: {neighbor_ratio: 2}", "loss.neighbor_ratio is 2"),
        ("loss: {proxy_sample: 0}", "loss.proxy_sample is 0"),
        ("loss: {proxy_sample: 1.5}", "loss.proxy_sample is 1.5"),
        ("loss: {proxy_dtype: float64}", "loss.proxy_dtype"),
        ("loss: {proxy_dtype: bfloat16}", "loss.proxy_dtype is bfloat16.*loss.sparse"),
        ("loss: {memory_limit: 0}", "loss.memory_limit is 0"),
        ("loss: {sparse: true}", "loss.sparse is true and loss.proxy_weight is 0.3"),
        ("loss: {sparse: true, proxy_weight: 0, sharded: false}", "loss.sparse is true and loss.sharded false"),
        ("loss: {proxy_sample: 5, proxy_weight: 0}", "loss.proxy_sample is 5, but loss.proxy_weight is 0"),
        ("loss: {proxy_sample: true}", "loss.proxy_sample"),
        ("{proxy_lr: 10, weight_decay: 0.1, loss: {sparse: true, proxy_weight: 0}}", "proxy_lr 10.0 times"),
        ("images: {size: null}", "images.size is None, but must be a value"),
        ("workers: 100000", "workers is 100000, but must be at most 256"),
        ("batch_size: 1000000000", "batch_size is 1000000000, but must be 2 to 65,536"),
        ("loss: {proxies_per_class: 1000000000}", "loss.proxies_per_class is 1000000000, but must be 1 to 10,000"),
        ("embedder: {embedding_size: 1000000}", "embedder.embedding_size is 1000000, but must be 0 to 65,536"),
        ("images: {size: 1000000, resize: 1000000}", "images.size is 1000000, but must be 1 to 4,096"),
        ("images: {resize: 1000000}", "images.resize is 1000000, but must be images.size .224. to 4,096"),
        ("catalog: [1, 2]", "catalog"),
        ("epochs: [3]", "epochs"),
        ("loss: {scale: {a: 1}}", "loss.scale"),
        ("{precision: fp16, loss: {sparse: true, proxy_weight: 0}}", "precision is fp16"),
    ],
)
def test_wrong_recipes_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=message):
        Recipe.read(path)


def test_missing_recipe_names_ours() -> None:
    with pytest.raises(RecipeError, match="cub200"):
        find_recipe("no_such")


def test_recipes_that_are_no_ordinary_file_are_named(tmp_path: Path) -> None:
    """A pipe would be waited for without end, and a large file fill the memory."""
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match="a folder, a device or a pipe"):
        Recipe.read(tmp_path / "pipe.yaml")
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(40 * 10**9)
    with pytest.raises(RecipeError, match="40,000,000,000 bytes, but such a file has at most"):
        Recipe.read(tmp_path / "large.yaml")


def test_aliases_that_multiply_are_named(tmp_path: Path) -> None:
    """Ten levels of ten aliases are ten thousand million values in 400 bytes."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{{', '.join(f'k{i}: *a{n - 1}' for i in range(10))}}}" for n in range(1, 11)]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(RecipeError, match="repeats its aliases"):
        Recipe.read(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    "text",
    ["seed: " + "9" * 5000, "proxy_lr: " + "9" * 400, "epochs: 0x" + "f" * 5000, "catalog: \ud800",
     f"loss: {{scale: [1, {10**320}]}}", f"{10**320}: 1", "catalog: 2021-13-45",
     "seed: 2021-02-30T99:99:99Z", "seed: !!int ''", "seed: !!float ''", "seed: !!bool x", "seed: !!timestamp x"],
)  # fmt: skip
def test_numbers_and_dates_that_cannot_be_are_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RecipeError, match="mine.yaml"):
        Recipe.read(path)
    with pytest.raises(RecipeError, match="too large"):
        Recipe.of({"proxy_lr": 10**400}, "here")
