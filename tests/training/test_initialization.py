"""Embedding layer and proxies that start from the features of the training images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from proxygml import ProxyGMLLoss
from proxygml.errors import RecipeError
from proxygml.training.initialization import start_embedding, start_proxies


def test_the_embedding_starts_as_the_projection_that_keeps_most_of_the_inner_products() -> None:
    torch.manual_seed(0)
    features, linear = torch.rand(50, 20) @ torch.diag(0.8 ** torch.arange(20.0)), nn.Linear(20, 6)
    start_embedding(linear, features)
    values = torch.linalg.svdvals(features)
    kept = linear(features)
    # The best that six dimensions can do (Eckart and Young).
    assert torch.allclose((features - kept @ linear.weight).norm(), values[6:].norm(), rtol=1e-4)
    assert torch.allclose(linear.weight @ linear.weight.T, torch.eye(6), atol=1e-5)
    assert not linear.bias.any()


@pytest.mark.parametrize("whitening", [0.3, 1.0])
def test_whitening_weakens_strong_directions_and_moves_none(whitening: float) -> None:
    torch.manual_seed(0)
    features = torch.rand(50, 20) @ torch.diag(0.8 ** torch.arange(20.0))
    plain, whitened = nn.Linear(20, 6), nn.Linear(20, 6)
    start_embedding(plain, features)
    start_embedding(whitened, features, whitening)
    before, after = plain(features).norm(dim=0), whitened(features).norm(dim=0)
    assert torch.allclose(after / after[0], (before / before[0]) ** (1 - whitening), rtol=1e-3)
    assert torch.allclose(F.normalize(whitened.weight), plain.weight, atol=1e-5)


def test_whitening_leaves_alone_what_the_images_do_not_have() -> None:
    features, linear = torch.zeros(50, 20), nn.Linear(20, 6)
    features[:, :5] = torch.rand(50, 5)
    start_embedding(linear, features, whitening=1.0)
    assert linear.weight.isfinite().all()
    assert linear.weight.norm(dim=1).max() < 1e5


def test_the_embedding_starts_the_same_whatever_the_order_of_the_images() -> None:
    torch.manual_seed(0)
    features, one, other = torch.rand(50, 20), nn.Linear(20, 6), nn.Linear(20, 6)
    start_embedding(one, features)
    start_embedding(other, features.flip(0))
    assert torch.allclose(one.weight, other.weight, atol=1e-5)


@pytest.mark.parametrize("shape", [(50, 5), (5, 20)])
def test_an_embedding_larger_than_what_the_images_span_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(RecipeError, match="embedding_size is 6, but embedding_start features finds only 5 directions"):
        start_embedding(nn.Linear(shape[1], 6), torch.rand(shape))


def test_proxies_start_at_means_of_parts_of_their_class() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([1, 0, 1, 0, 1, 0, 1, 2])
    embeddings = F.normalize(torch.randn(8, 6), dim=1)
    criterion = ProxyGMLLoss(4, 6, proxies_per_class=2, neighbor_ratio=1.0)  # no image is of the last class
    drawn = criterion.proxies.detach().clone()
    start_proxies(criterion, embeddings, labels)
    parts = [[1, 5], [3], [0, 4], [2, 6], [7], [7]]  # class by class; the third has one image for two proxies
    expected = torch.stack([F.normalize(embeddings[part].sum(dim=0), dim=0) for part in parts])
    assert torch.allclose(F.normalize(criterion.proxies[:6], dim=1), expected, atol=1e-6)
    assert torch.allclose(criterion.proxies.norm(dim=1), drawn.norm(dim=1), rtol=1e-5)
    assert torch.equal(criterion.proxies[6:], drawn[6:])
