"""The loss on prefixes of the embeddings: what it is, and that short embeddings become good ones."""

import gc
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from proxygml import ProxyGMLLoss
from proxygml.errors import RecipeError
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.training.criterion import make_criterion
from proxygml.training.loss_settings import LossSettings
from proxygml.training.prefixes import PrefixLosses
from proxygml.training.recipe import Recipe

LOSSES = (
    LossSettings(proxies_per_class=2, neighbor_ratio=0.5, scale=4.0),
    LossSettings(name="ProxyAnchorLoss"),
    LossSettings(name="NormalizedSoftmaxLoss"),
    LossSettings(name="SoftTripleLoss", arguments={"centers_per_class": 2}),
    LossSettings(name="MultiSimilarityLoss", miner="MultiSimilarityMiner"),
)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return F.normalize(torch.randn(16, 8), dim=1).requires_grad_(), torch.arange(16) % 8


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_loss_is_the_mean_over_the_prefixes_with_their_parts_of_the_proxies(loss: LossSettings) -> None:
    """Also where there are as many classes as dimensions, so that the shapes alone do not tell which is which."""
    recipe = Recipe(embedder=EmbedderSettings(embedding_size=8, prefixes=(3, 5)), loss=loss)
    torch.manual_seed(1)
    whole = make_criterion(loss, 8, 8)
    embeddings, labels = batch()
    found = PrefixLosses(recipe, whole, 8, 8, None)(whole, embeddings, labels)
    expected = [whole(embeddings, labels)]
    for size in (3, 5):
        part = make_criterion(loss, 8, size)
        for name, parameter in part.named_parameters():
            full = whole.get_parameter(name).detach()
            parameter.data = full[:size] if full.shape[0] != parameter.shape[0] else full[:, :size]
        expected.append(part(F.normalize(embeddings[:, :size], dim=1), labels))
    assert torch.allclose(found, sum(expected) / 3, rtol=1e-5)
    found.backward()
    assert embeddings.grad is not None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in whole.parameters())


def test_without_prefixes_it_is_the_loss_itself() -> None:
    whole = ProxyGMLLoss(8, 8, neighbor_ratio=0.2)
    embeddings, labels = batch()
    found = PrefixLosses(Recipe(), whole, 8, 8, None)(whole, embeddings, labels)
    assert torch.equal(found, whole(embeddings, labels))


def numbers_in_tensors() -> int:
    gc.collect()
    return sum(each.numel() for each in gc.get_objects() if issubclass(type(each), torch.Tensor))


def test_prefixes_hold_no_proxies_of_their_own() -> None:
    """There may be millions of them."""
    recipe = Recipe(embedder=EmbedderSettings(embedding_size=64, prefixes=(8, 16, 32)), loss=LOSSES[0])
    whole = make_criterion(recipe.loss, 500, 64)
    before = numbers_in_tensors()
    prefixes = PrefixLosses(recipe, whole, 500, 64, None)
    assert numbers_in_tensors() - before < 1000
    prefixes(whole, torch.randn(4, 64), torch.arange(4)).backward()


@pytest.mark.parametrize("prefixes", [(0,), (8,), (4, 4), (5, 3), (9,), (-1,)])
def test_impossible_prefixes_are_named(prefixes: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match=r"embedder\.prefixes is"):
        EmbedderSettings(embedding_size=8, prefixes=prefixes)


def test_sparse_proxies_have_no_prefixes() -> None:
    recipe = Recipe(embedder=EmbedderSettings(embedding_size=8, prefixes=(4,)))
    with pytest.raises(RecipeError, match=r"loss\.sparse is true, but embedder\.prefixes"):
        replace(recipe, loss=LossSettings(sparse=True, proxy_weight=0.0))
