"""The losses that a recipe can name: built from the data's sizes, checked, and exact after a resume."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from proxygml import ProxyGMLLoss
from proxygml.errors import RecipeError
from proxygml.training.criterion import make_criterion
from proxygml.training.loss_settings import LossSettings
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import fit, resume
from tests.helpers.runs import assert_same_run


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(12, 8), dim=1).requires_grad_()
    return embeddings, torch.arange(12) % 4


def test_ours_gets_its_own_settings() -> None:
    criterion = make_criterion(LossSettings(proxies_per_class=3, neighbor_ratio=0.5, scale=2.0), 5, 8)
    assert isinstance(criterion, ProxyGMLLoss)
    assert (len(criterion.proxies), criterion.scale) == (15, 2.0)


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        (LossSettings(name="ProxyNCALoss", arguments={"softmax_scale": 8}), [(4, 8)]),
        (LossSettings(name="ProxyAnchorLoss", arguments={"margin": 0.1, "alpha": 32}), [(4, 8)]),
        (LossSettings(name="SoftTripleLoss", arguments={"centers_per_class": 3}), [(8, 12)]),
        (LossSettings(name="NormalizedSoftmaxLoss"), [(8, 4)]),
        (LossSettings(name="ArcFaceLoss"), [(8, 4)]),
        (LossSettings(name="SubCenterArcFaceLoss", arguments={"sub_centers": 2}), [(8, 8)]),
        (LossSettings(name="NPairsLoss"), []),
        (LossSettings(name="MultiSimilarityLoss", miner="MultiSimilarityMiner", miner_arguments={"epsilon": 0.1}), []),
        (
            LossSettings(
                name="TripletMarginLoss", miner="TripletMarginMiner", miner_arguments={"type_of_triplets": "semihard"}
            ),
            [],
        ),
    ],
    ids=lambda value: value.name if isinstance(value, LossSettings) else "",
)
def test_losses_of_the_comparison(settings: LossSettings, shapes: list[tuple[int, ...]]) -> None:
    """Each has the proxies that its definition says, and teaches embeddings and proxies alike."""
    criterion = make_criterion(settings, num_classes=4, embedding_size=8)
    assert [tuple(parameter.shape) for parameter in criterion.parameters()] == shapes
    embeddings, labels = batch()
    criterion(embeddings, labels).backward()
    for tensor in (embeddings, *criterion.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


def test_miner_chooses_what_the_loss_sees() -> None:
    """Triplets whose negative is nearer than the positive, by hand: the others of a batch count for nothing."""
    settings = LossSettings(
        name="TripletMarginLoss",
        arguments={"margin": 0.5},
        miner="TripletMarginMiner",
        miner_arguments={"margin": 0.5, "type_of_triplets": "hard"},
    )
    embeddings, labels = batch()
    distance = torch.cdist(embeddings.double(), embeddings.double())
    terms = [
        distance[a, p] - distance[a, n] + 0.5
        for a in range(12)
        for p in range(12)
        for n in range(12)
        if a != p and labels[a] == labels[p] != labels[n] and distance[a, n] <= distance[a, p]
    ]
    found = make_criterion(settings, 4, 8)(embeddings, labels)
    assert found.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "ProxyAnchrLoss"}, "loss.name is 'ProxyAnchrLoss'.*did you mean 'ProxyAnchorLoss'"),
        ({"name": "os.system"}, "loss.name is 'os.system', which is neither ours nor of pytorch-metric-learning"),
        ({"name": "VICRegLoss"}, "which is neither ours"),
        ({"name": "ArcFaceLoss", "arguments": {"margn": 1}}, "no argument 'margn'.*did you mean 'margin'"),
        ({"name": "ArcFaceLoss", "arguments": {"num_classes": 9}}, "no argument 'num_classes' that a recipe can set"),
        ({"name": "NPairsLoss", "arguments": {"distance": 1}}, "no argument 'distance'"),
        ({"name": "ArcFaceLoss", "arguments": {"margin": "big"}}, "loss.arguments.margin is 'big'.*a number, such as"),
        ({"name": "TripletMarginLoss", "arguments": {"swap": 3}}, "loss.arguments.swap is 3.*true or false"),
        ({"name": "NPairsLoss", "miner": "TripletMarginMine"}, "loss.miner is.*did you mean 'TripletMarginMiner'"),
        (
            {"name": "NPairsLoss", "miner": "TripletMarginMiner", "miner_arguments": {"margins": 1}},
            "loss.miner_arguments: TripletMarginMiner has no argument 'margins'",
        ),
    ],
)
def test_wrong_losses_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_criterion(LossSettings(**settings), 4, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "ArcFaceLoss", "scale": 64}, "loss.scale is 64.0 and is for ProxyGMLLoss.*keys of loss.arguments"),
        ({"arguments": {"margin": 0.1}}, "loss.arguments is .* for the losses of pytorch-metric-learning"),
        ({"miner": "TripletMarginMiner"}, "loss.miner is 'TripletMarginMiner'"),
        ({"name": "NPairsLoss", "miner_arguments": {"margin": 1}}, "loss.miner names none"),
        ({"name": "ArcFaceLoss", "arguments": 3}, "loss.arguments"),
    ],
)
def test_settings_of_no_use_are_named(content: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.of({"loss": content}, "mine.yaml")


def test_recipe_of_another_loss_reads_as_it_was_written(tmp_path: Path) -> None:
    loss = LossSettings(
        name="TripletMarginLoss",
        arguments={"margin": 0.1, "swap": True, "triplets_per_anchor": "all"},
        miner="TripletMarginMiner",
        miner_arguments={"type_of_triplets": "semihard"},
    )
    Recipe(loss=loss).write(tmp_path / "recipe.yaml")
    assert Recipe.read(tmp_path / "recipe.yaml").loss == loss
    assert "proxies_per_class" not in (tmp_path / "recipe.yaml").read_text()


SOFT_TRIPLE = LossSettings(name="SoftTripleLoss", arguments={"centers_per_class": 2})
TRIPLET = LossSettings(name="TripletMarginLoss", miner="TripletMarginMiner", miner_arguments={"margin": 0.3})


@pytest.mark.parametrize("loss", [SOFT_TRIPLE, TRIPLET], ids=lambda loss: loss.name)
def test_stopped_run_of_another_loss_ends_like_one_that_was_not(
    small_recipe: Recipe, tmp_path: Path, loss: LossSettings
) -> None:
    recipe = replace(small_recipe, loss=loss, images_per_class=2)
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    fit(recipe, whole)
    fit(replace(recipe, epochs=2), stopped)
    recipe.write(stopped.recipe)
    resume(stopped)
    assert_same_run(stopped, whole)
    assert not stopped.proxies.exists(), "sub-graphs are ProxyGML's alone"
