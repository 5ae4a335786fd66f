"""The recipe of a comparison: read, checked, drawn from."""

from dataclasses import replace
from pathlib import Path

import pytest

from proxygml.comparison import Comparison, differences, merged
from proxygml.criteria import make_criterion
from proxygml.errors import RecipeError
from proxygml.recipe import Recipe, find_recipe

SHIPPED = sorted((Path(__file__).parent.parent / "recipes" / "compare").glob("*.yaml"))
TUNED = """
seeds: [3, 4]
trials: 4
recipe: {epochs: 2, embedder: {embedding_size: 64}}
methods:
  Ours:
    loss: {scale: 3.0}
  Anchor, no. 1:
    loss: {name: ProxyAnchorLoss, arguments: {alpha: 16}}
    proxy_lr: 0.01
    tune: {proxy_lr: [0.01, 0.1], loss.arguments.alpha: [16, 32, 64]}
"""


def read(tmp_path: Path, content: str) -> Comparison:
    (tmp_path / "mine.yaml").write_text(content)
    return Comparison.read(tmp_path / "mine.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_comparisons_are_read(path: Path) -> None:
    """They hold the methods of the paper's table and its later rivals, each with a loss that can be built."""
    comparison = Comparison.read(find_recipe(path.stem, "compare"))
    losses = {comparison.recipe_of(method, {}, 0).loss.name for method in comparison.methods}
    assert losses == {
        *("ProxyGMLLoss", "ProxyNCALoss", "ProxyAnchorLoss", "SoftTripleLoss", "MultiSimilarityLoss", "NPairsLoss"),
        *("TripletMarginLoss", "NormalizedSoftmaxLoss", "ArcFaceLoss", "SubCenterArcFaceLoss"),
    }
    for method in comparison.methods:
        make_criterion(comparison.recipe_of(method, {}, 0).loss, 40, 8)
    assert len({len(comparison.trials_of(method)) for method in comparison.methods if method.tune}) <= 1
    assert len(comparison.seeds) >= 3


def test_a_method_is_the_shared_recipe_with_its_changes(tmp_path: Path) -> None:
    comparison = read(tmp_path, TUNED)
    ours, anchor = comparison.methods
    first = comparison.recipe_of(ours, {}, 3)
    assert (first.seed, first.epochs, first.loss.scale, first.embedder.embedding_size) == (3, 2, 3.0, 64)
    second = comparison.recipe_of(anchor, {"loss.arguments.alpha": 64}, 4)
    assert (second.loss.name, second.loss.arguments, second.proxy_lr) == ("ProxyAnchorLoss", {"alpha": 64}, 0.01)
    assert replace(second, loss=first.loss, proxy_lr=0.03, seed=3) == replace(first)


def test_trials_are_the_given_setting_and_others_of_the_space(tmp_path: Path) -> None:
    """As many for each method as the budget says, none twice, the same at every start."""
    comparison = read(tmp_path, TUNED)
    ours, anchor = comparison.methods
    assert comparison.trials_of(ours) == []
    trials = comparison.trials_of(anchor)
    assert len(trials) == 4
    assert trials[0] == {}
    drawn = {(values["proxy_lr"], values["loss.arguments.alpha"]) for values in trials[1:]}
    assert len(drawn) == 3
    assert (0.01, 16) not in drawn, "that is the method as given"
    assert read(tmp_path, TUNED).trials_of(anchor) == trials
    small = replace(comparison, trials=100)
    assert len(small.trials_of(anchor)) == 6, "the whole space, no more"


def test_changes_are_merged_and_found_again() -> None:
    shared = Recipe().content()
    changes = {"epochs": 3, "images": {"size": 64}, "loss": {"name": "NPairsLoss"}}
    content = merged(shared, changes)
    assert content["loss"] == {"name": "NPairsLoss"}, "a section that names its loss stands alone"
    assert content["images"]["resize"] == shared["images"]["resize"]
    assert differences(content, shared) == {"epochs": 3, "images.size": 64, "loss.name": "NPairsLoss"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method: {}", "a comparison has no key 'method'; did you mean 'methods'"),
        ("methods: {}", "methods is empty"),
        ("methods: [A]", r"methods is \['A'\], but must be keys and values"),
        ("methods: {A: 3}", "methods.A is 3, but must be keys and values"),
        ("methods: {a/b: {}}", "a/b: a method's name is its folder's too"),
        ("methods: {..: {}}", "a method's name is its folder's too"),
        ("methods: {A: {epoch: 3}}", "A: a recipe has no key 'epoch'; did you mean 'epochs'"),
        ("methods: {A: {epochs: many}}", "A: .*epochs"),
        ("methods: {A: {seed: 3}}", "A: seed is the same for all methods"),
        ("methods: {A: {catalog: x.csv}}", "A: catalog is the same for all methods"),
        ("methods: {A: {tune: {validation_classes: [0.1]}}}", "A: validation_classes is the same for all"),
        ("recipe: {epoch: 3}\nmethods: {A: {}}", "recipe: a recipe has no key 'epoch'"),
        ("recipe: 3\nmethods: {A: {}}", "recipe is 3, but must be keys and values"),
        ("seeds: 3\nmethods: {A: {}}", "seeds is 3, but must be a list"),
        ("seeds: [a]\nmethods: {A: {}}", "seeds is 'a', but must be a whole number"),
        ("seeds: [1, 1]\nmethods: {A: {}}", "no seed may come twice"),
        ("seeds: [-1]\nmethods: {A: {}}", "seed is -1"),
        ("trials: 2\nmethods: {A: {}}", "trials is 2, but no method has a tune section"),
        ("methods: {A: {tune: {epochs: [1, 2]}}}", "A has values to tune, but trials is 0"),
        ("trials: 2\nmethods: {A: {tune: {epoch: [1, 2]}}}", "no key 'epoch'; did you mean 'epochs'"),
        ("trials: 2\nmethods: {A: {tune: {epochs: 3}}}", "tune.epochs is 3, but must be a list"),
        ("trials: 3\nmethods: {A: {tune: {epochs: [1, -2]}}}", "epochs is -2"),
        ("tune_on: 2\nmethods: {A: {}}", "tune_on is 2, but must be between 0 and 1"),
        ("- 3", "holds list"),
    ],
)
def test_wrong_comparisons_are_named(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, content)
