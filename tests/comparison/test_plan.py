"""The recipe of a comparison: read, checked, drawn from."""

from dataclasses import replace
from pathlib import Path

import pytest

from proxygml.comparison.plan import Comparison
from proxygml.comparison.row import read_rows
from proxygml.comparison.settings import described, differences, merged
from proxygml.errors import RecipeError
from proxygml.training.criterion import make_criterion
from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import find_recipe

SHIPPED = sorted((Path(__file__).parents[2] / "proxygml" / "recipes" / "compare").glob("*.yaml"))
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


SWEEPS = {
    "cub200_2010_sweep_proxies": 28,
    "cub200_2010_sweep_ratio": 8,
    "cub200_2010_sweep_weight": 5,
    "cub200_2010_ablation": 8,
}
OWN = {
    "cub200_2010_direction": "cub200_2010_crops",
    "cub200_2010_direction_test": "cub200_2010_crops",
    "groceries_direction": "cub200_2010_crops",
    "cub200_2010_own": "cub200_2010_crops",
    "omniglot_own": "omniglot",
}  # our recipes taken apart, and whole
CHOICES = {
    "cub200_2010_choice": "cub200_2010_own",
    "omniglot_choice": "omniglot_own",
    "omniglot_direction": "omniglot_own",
}  # what they were chosen from
LEADERS = (  # our recipe beside the losses that lead the tables of birds
    "groceries",
    "groceries_64",
    "groceries_noise",
    "cub200_2010_crops_noise",
    "cub200_2010_views",
    "cub200_2010_views_64",
    "real_size",
    "real_size_birds",
    "real_size_birds_lite2",
)
SWEEP = """
methods:
  Ours:
    loss: {scale: 3.0}
    vary: {loss.proxies_per_class: [2, 1], loss.neighbor_ratio: [0.05, 1.0]}
  Plain: {}
"""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_comparisons_are_read(path: Path) -> None:
    """Each with losses that can be built, and with as many trials for every method that has some."""
    comparison = Comparison.read(find_recipe(path.stem, "compare"))
    for method in comparison.methods:
        make_criterion(comparison.recipe_of(method, {}, 0).loss, 200, 8)
    assert len({len(comparison.trials_of(method)) for method in comparison.methods if method.tune}) <= 1
    assert len(comparison.seeds) >= (1 if path.stem in CHOICES else 3)


@pytest.mark.parametrize("name", SWEEPS)
def test_shipped_sweeps_start_at_the_published_setting(name: str) -> None:
    """That is the first method, which the others are tested against; nothing else of the heads' protocol is changed."""
    sweep, heads = (Comparison.read(find_recipe(file, "compare")) for file in (name, "cub200_2010_heads"))
    assert len(sweep.methods) == SWEEPS[name]
    assert sweep.shared == heads.shared
    assert sweep.recipe_of(sweep.methods[0], {}, 0).loss == Recipe().loss


@pytest.mark.parametrize(("parts", "table"), OWN.items())
def test_our_recipes_are_taken_apart_as_they_are(parts: str, table: str) -> None:
    """A row of an ablation is the recipe that the table of methods has; every other differs in a part."""
    taken_apart, methods = (Comparison.read(find_recipe(name, "compare")) for name in (parts, table))
    ours = next(method for method in methods.methods if method.name == "Our recipe")
    others = {method.name: taken_apart.recipe_of(method, {}, 0) for method in taken_apart.methods}
    whole = others.pop(ours.name)
    # Learning rates may be those that were chosen for it.
    chosen = methods.recipe_of(ours, {key: getattr(whole, key) for key in ("proxy_lr", "backbone_lr")}, 0)
    assert whole == chosen
    assert whole not in others.values()


@pytest.mark.parametrize(("tried", "parts"), CHOICES.items())
def test_what_was_tried_stands_beside_what_was_chosen(tried: str, parts: str) -> None:
    choice, own = (Comparison.read(find_recipe(name, "compare")) for name in (tried, parts))
    one, other = (next(method for method in found.methods if method.name == "Our recipe") for found in (choice, own))
    assert one == other


@pytest.mark.parametrize(
    "path",
    [path for path in SHIPPED if path.stem not in (*SWEEPS, *OWN, *CHOICES, *LEADERS, "omniglot_ablation")],
    ids=lambda path: path.stem,
)
def test_other_shipped_comparisons_hold_the_rivals(path: Path) -> None:
    """The methods of the paper's table and later ones."""
    comparison = Comparison.read(path)
    losses = {comparison.recipe_of(method, {}, 0).loss.name for method in comparison.methods}
    assert losses == {
        *("ProxyGMLLoss", "ProxyNCALoss", "ProxyAnchorLoss", "SoftTripleLoss", "MultiSimilarityLoss", "NPairsLoss"),
        *("TripletMarginLoss", "NormalizedSoftmaxLoss", "ArcFaceLoss", "SubCenterArcFaceLoss"),
    }


@pytest.mark.parametrize("name", LEADERS)
def test_leading_methods_are_those_of_the_tables(name: str) -> None:
    """Losses and embedders as there; Proxy-Anchor also in our recipe, with everything but the loss and its rate."""
    leaders, birds = (Comparison.read(find_recipe(plan, "compare")) for plan in (name, "cub200_2010_crops_chosen"))
    ours, rivals = (
        {method.name: plan.recipe_of(method, {}, 0) for method in plan.methods} for plan in (leaders, birds)
    )
    rivals["Our recipe"] = Recipe.read(find_recipe("photos" if name.startswith("real_size") else "photos_fine"))
    shared = [method for method in ours if method in rivals]
    assert {"Our recipe", "ProxyGML", "Proxy-Anchor", "Normalised softmax"} <= set(shared)
    for method in shared:
        assert ours[method].loss == rivals[method].loss
        network = {key: getattr(leaders.shared.embedder, key) for key in ("backbone", "embedding_size")}
        assert ours[method].embedder == replace(rivals[method].embedder, **network)
    inside, anchor = ours["Proxy-Anchor in our recipe"], ours["Proxy-Anchor"]
    assert inside == replace(ours["Our recipe"], loss=anchor.loss, proxy_lr=inside.proxy_lr)


def test_values_to_try_that_need_each_other_are_taken(tmp_path: Path) -> None:
    content = "trials: 3\nmethods: {Ours: {tune: {embedding_start: [features], whitening: [0.1, 0.3]}}}"
    comparison = read(tmp_path, content)
    given, *drawn = comparison.trials_of(comparison.methods[0])
    assert given == {}
    assert sorted(values["whitening"] for values in drawn) == [0.1, 0.3]


@pytest.mark.parametrize(
    ("name", "table"), [("omniglot_chosen", "omniglot"), ("cub200_2010_crops_chosen", "cub200_2010_crops")]
)
def test_what_was_chosen_is_taken_elsewhere_as_it_was_chosen(name: str, table: str) -> None:
    """The kept rows say which setting the held-out classes chose for every method."""
    chosen = Comparison.read(find_recipe(name, "compare"))
    shared = chosen.shared.content()
    settings = {m.name: differences(chosen.recipe_of(m, {}, 0).content(), shared) for m in chosen.methods}
    rows = read_rows([SHIPPED[0].parents[3] / "docs" / "results" / f"{table}.csv"])
    assert settings == {row.method: row.settings for row in rows if row.trial is None and row.seed == 0}


def test_a_varied_method_stands_for_every_combination(tmp_path: Path) -> None:
    comparison = read(tmp_path, SWEEP)
    *ours, plain = comparison.methods
    assert [method.name for method in ours] == [
        f"Ours proxies_per_class={number} neighbor_ratio={ratio}" for number in (2, 1) for ratio in (0.05, 1.0)
    ]
    losses = [comparison.recipe_of(method, {}, 0).loss for method in ours]
    assert [(loss.proxies_per_class, loss.neighbor_ratio) for loss in losses] == [(2, 0.05), (2, 1), (1, 0.05), (1, 1)]
    assert {loss.scale for loss in losses} == {3.0}, "the changes of the method hold for each"
    assert {method.family for method in ours} == {"Ours"}
    assert described(ours[1].varied) == "loss.proxies_per_class=2; loss.neighbor_ratio=1.0"
    assert (plain.name, plain.family, plain.varied) == ("Plain", "Plain", {})


def test_a_loss_is_named_before_its_arguments_are_given(tmp_path: Path) -> None:
    """In whatever order: a loss that is named after them would be without."""
    varied = "vary: {loss.arguments.margin: [0.1, 0.2], loss.name: [ArcFaceLoss]}"
    tuned = "tune: {loss.arguments.margin: [0.3, 0.4], loss.name: [ArcFaceLoss]}"
    content = f"trials: 3\nmethods:\n  A:\n    {varied}\n  B:\n    loss: {{name: CosFaceLoss}}\n    {tuned}\n"
    comparison = read(tmp_path, content)
    margins = [comparison.recipe_of(method, {}, 0).loss.arguments["margin"] for method in comparison.methods[:2]]
    assert margins == [0.1, 0.2]
    tried = [
        comparison.recipe_of(comparison.methods[2], values, 0).loss
        for values in comparison.trials_of(comparison.methods[2])
    ]
    assert sorted((loss.name, loss.arguments.get("margin", 0)) for loss in tried) == [
        ("ArcFaceLoss", 0.3),
        ("ArcFaceLoss", 0.4),
        ("CosFaceLoss", 0),
    ]


def test_every_combination_has_its_trials(tmp_path: Path) -> None:
    varied = "vary: {loss.arguments.margin: [0.1, 0.2]}\n    tune: {proxy_lr: [0.01, 0.1], "
    comparison = read(tmp_path, TUNED.replace("tune: {proxy_lr: [0.01, 0.1], ", varied))
    _, first, second = comparison.methods
    for method, margin in ((first, 0.1), (second, 0.2)):
        assert len(comparison.trials_of(method)) == 4
        for values in comparison.trials_of(method):
            arguments = comparison.recipe_of(method, values, 0).loss.arguments
            assert arguments["margin"] == margin
            assert arguments["alpha"] == values.get("loss.arguments.alpha", 16)


def test_a_setting_is_tried_once_however_it_is_written(tmp_path: Path) -> None:
    """YAML takes 1e-3 for a text, a recipe for a number."""
    comparison = read(
        tmp_path, "trials: 3\nmethods: {A: {backbone_lr: 1e-3, tune: {backbone_lr: [1e-3, 0.001, 1e-2]}}}"
    )
    assert comparison.trials_of(comparison.methods[0]) == [{}, {"backbone_lr": "1e-2"}]


def test_a_comparison_like_another_takes_what_it_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(TUNED)
    comparison = read(tmp_path, "like: base.yaml\nrecipe: {embedder: {embedding_size: 32}}\nseeds: [7]")
    base = Comparison.read(tmp_path / "base.yaml")
    assert (comparison.methods, comparison.trials) == (base.methods, base.trials)
    assert comparison.seeds == (7,)
    assert comparison.shared == replace(base.shared, embedder=replace(base.shared.embedder, embedding_size=32))
    (tmp_path / "base.yaml").write_text("like: mine.yaml")
    with pytest.raises(RecipeError, match="in the end like this file itself"):
        Comparison.read(tmp_path / "mine.yaml")


def test_what_is_chosen_stands_in_place_of_the_trials(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(TUNED)
    chosen = read(
        tmp_path, "like: base.yaml\ntrials: 0\nchosen: {'Anchor, no. 1': {loss.arguments.alpha: 64, epochs: 7}}"
    )
    before, after = Comparison.read(tmp_path / "base.yaml").methods[1], chosen.methods[1]
    assert not after.tune
    loss = chosen.recipe_of(after, {}, 0).loss
    assert (loss.name, loss.arguments) == ("ProxyAnchorLoss", {"alpha": 64})
    assert chosen.recipe_of(after, {}, 0) == replace(chosen.recipe_of(before, {}, 0), loss=loss, epochs=7)
    assert chosen.methods[0] == Comparison.read(tmp_path / "base.yaml").methods[0]


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
        (f"methods: {{{'A' * 300}: {{}}}}", "name is 300 characters long .* at most 100"),
        (f"methods: {{A: {{vary: {{epochs: [{'1' * 120}]}}}}}}", "name is 129 characters long"),
        ("methods: " + "{A: " * 900 + "3" + "}" * 900, "is nested too deep"),
        ("methods: {A: " + "[" * 900 + "]" * 900 + "}", "is nested too deep"),
        ("methods: {[A, B]: {}}", "a key is a list or a mapping"),
        ("methods: {{A: 3}: {}}", "a key is a list or a mapping"),
        ("methods: {A: {loss: {[A, B]: 3}}}", "a key is a list or a mapping"),
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
        ("seeds: [-1]\nmethods: {A: {}}", "seeds holds -1"),
        ("trials: 2\nmethods: {A: {}}", "trials is 2, but no method has a tune section"),
        ("methods: {A: {tune: {epochs: [1, 2]}}}", "A has values to tune, but trials is 0"),
        ("trials: 2\nmethods: {A: {tune: {epoch: [1, 2]}}}", "no key 'epoch'; did you mean 'epochs'"),
        ("trials: 2\nmethods: {A: {tune: {epochs: 3}}}", "tune.epochs is 3, but must be a list"),
        ("trials: 3\nmethods: {A: {tune: {epochs: [1, -2]}}}", "epochs is -2"),
        ("trials: 3\nmethods: {A: {tune: {epochs: [1, 0]}}}", "A has values to tune, but epochs is 0"),
        ("recipe: {seed: 3}\nmethods: {A: {}}", "seed is 3, but a comparison has several: list them under seeds"),
        ("tune_on: 2\nmethods: {A: {}}", "tune_on is 2, but must be between 0 and 1"),
        ("methods: {A: {vary: 3}}", "A: vary is 3, but must be keys and values"),
        ("methods: {A: {vary: {epochs: 3}}}", "A: vary.epochs is 3, but must be a list"),
        ("methods: {A: {vary: {epoch: [3]}}}", "A: a recipe has no key 'epoch'; did you mean 'epochs'"),
        ("methods: {A: {vary: {seed: [3]}}}", "A: seed is the same for all methods"),
        ("methods: {A: {vary: {epochs: [3, -2]}}}", "epochs is -2"),
        ("methods: {A: {vary: {epochs: [3, 3]}}}", "'A epochs=3': names and values of vary must differ"),
        ("methods: {A: {vary: {milestones: [[3]]}}}", r"vary.milestones holds \[3\], but must hold numbers"),
        ("methods: {A: {vary: {epochs: [3]}, tune: {epochs: [3]}}}", "epochs is in tune and in vary"),
        ("methods: {A: {}}\nchosen: {B: {}}", "chosen names 'B', which is no method; choose one of A"),
        ("methods: {Angle: {}}\nchosen: {Angel: {}}", "no method; did you mean 'Angle'"),
        ("methods: {A: {}}\nchosen: {A: {tune: {epochs: [3]}}}", "chosen.A holds tune"),
        ("methods: {A: {vary: {epochs: [3]}}}\nchosen: {A: {epochs: 3}}", "chosen.A holds epochs"),
        ("methods: {A: {}}\nchosen: {A: 3}", "chosen.A is 3, but must be keys and values"),
        ("methods: {A: {}}\nchosen: {A: {epoch: 3}}", "A: a recipe has no key 'epoch'; did you mean 'epochs'"),
        ("like: nowhere", "the recipe nowhere is neither a file nor the name of one"),
        ("like: cub200_2010_heads\nmethod: {}", "no key 'method'; did you mean 'methods'"),
        ("- 3", "holds list"),
    ],
)
def test_wrong_comparisons_are_named(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, content)
