"""Embedding layer and proxies that start from the features of the training images."""

from pathlib import Path

import pytest
import scipy.linalg
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from proxygml import ProxyGMLLoss
from proxygml.errors import RecipeError
from proxygml.models.embedder_settings import EmbedderSettings, HeadKind
from proxygml.models.head import Head
from proxygml.training.initialization import check_directions, start_head, start_proxies
from proxygml.training.projections import SHRINKAGE, Moments, discriminants
from proxygml.training.recipe import Recipe
from tests.helpers.processes import in_processes


def start_embedding(linear: nn.Linear, features: Tensor, whitening: float = 0.0) -> None:
    """The layer as the head of a recipe starts it."""
    head = Head(linear.in_features, linear.out_features)
    settings = EmbedderSettings(embedding_size=linear.out_features)
    recipe = Recipe(embedder=settings, embedding_start="features", whitening=whitening)
    start_head(head, lambda: iter(features.split(20)), torch.zeros(len(features), dtype=torch.int64), recipe)
    linear.load_state_dict(head.linear.state_dict())


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
    with pytest.raises(RecipeError, match="embedding_size is 6, but only 5 directions"):
        check_directions(6, *shape)


def test_features_of_nothing_but_zeros_are_named() -> None:
    with pytest.raises(RecipeError, match="all features of 50 training images are 0"):
        start_embedding(nn.Linear(20, 6), torch.zeros(50, 20))


def test_features_that_are_all_the_same_are_named() -> None:
    """Training would amplify what rounding leaves of their differences."""
    with pytest.raises(RecipeError, match="all features of 50 training images are the same"):
        start_embedding(nn.Linear(20, 6), torch.rand(20).expand(50, 20))


def test_proxies_start_at_means_of_parts_of_their_class() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([1, 0, 1, 0, 1, 0, 1, 2])
    embeddings = F.normalize(torch.randn(8, 6), dim=1)
    criterion = ProxyGMLLoss(4, 6, proxies_per_class=2, neighbor_ratio=1.0)  # no image is of the last class
    drawn = criterion.proxies.detach().clone()
    start_proxies(criterion, [embeddings[:2], embeddings[2:]], labels)
    parts = [[1, 5], [3], [0, 4], [2, 6], [7], [7]]  # class by class; the third has one image for two proxies
    expected = torch.stack([F.normalize(embeddings[part].sum(dim=0), dim=0) for part in parts])
    assert torch.allclose(F.normalize(criterion.proxies[:6], dim=1), expected, atol=1e-6)
    assert torch.allclose(criterion.proxies.norm(dim=1), drawn.norm(dim=1), rtol=1e-5)
    assert torch.equal(criterion.proxies[6:], drawn[6:])


@pytest.mark.parametrize("kind", ["residual", "mlp"])
def test_a_residual_head_starts_as_the_projection_and_decays_back_to_it(kind: HeadKind) -> None:
    torch.manual_seed(0)
    features, plain = torch.rand(50, 20), nn.Linear(20, 6)
    start_embedding(plain, features)
    head = Head(20, 6, kind=kind)
    settings = EmbedderSettings(embedding_size=6, head=kind)
    start_head(
        head,
        lambda: iter([features]),
        torch.zeros(50, dtype=torch.int64),
        Recipe(embedder=settings, embedding_start="features"),
    )
    expected = F.normalize(plain(features), dim=1)
    assert torch.allclose(head(features), expected, atol=1e-6)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, weight_decay=1.0)
    head(features).sum().backward()
    optimizer.step()
    assert not torch.allclose(head(features), expected, atol=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        (0 * head(features).sum()).backward()
        optimizer.step()
    assert torch.allclose(head(features), expected, atol=1e-5)


def test_a_residual_head_of_equal_sizes_starts_as_the_identity() -> None:
    features = F.normalize(torch.randn(9, 20), dim=1)
    assert torch.allclose(Head(20, 20, kind="residual")(features), features, atol=1e-6)


def test_a_standard_norm_gives_each_feature_mean_0_and_variance_1_and_leaves_constants_alone() -> None:
    torch.manual_seed(0)
    features = torch.randn(100, 7) * torch.arange(1, 8) + 5
    features[:, 3] = 5.0
    head = Head(7, 0, "standard")
    recipe = Recipe(embedder=EmbedderSettings(embedding_size=0, feature_norm="standard"))
    start_head(head, lambda: iter(features.split(30)), torch.zeros(100, dtype=torch.int64), recipe)
    normed = head.norm(features)
    others = [0, 1, 2, 4, 5, 6]
    assert torch.allclose(normed[:, others].mean(dim=0), torch.zeros(6), atol=1e-5)
    assert torch.allclose(normed[:, others].std(dim=0, correction=0), torch.ones(6), atol=1e-5)
    assert not normed[:, 3].any()


def test_discriminants_solve_the_generalised_eigenvalue_problem() -> None:
    torch.manual_seed(0)
    labels = torch.arange(300) % 5
    features = (torch.randn(5, 12)[labels] + torch.randn(300, 12) @ torch.randn(12, 12)).double()
    weight, bias = discriminants(Moments.of(features.split(64), labels), 7)
    found = features @ weight.T + bias
    means = torch.stack([features[labels == number].mean(dim=0) for number in range(5)])
    centred = features - means[labels]
    within, spread = centred.T @ centred / 300, means - features.mean(dim=0)
    shrunk = (1 - SHRINKAGE) * within + SHRINKAGE * within.trace() / 12 * torch.eye(12)
    _, directions = scipy.linalg.eigh(spread.T @ spread / 5, shrunk)
    expected = (features - features.mean(dim=0)) @ torch.from_numpy(directions[:, ::-1][:, :4].copy())
    assert torch.allclose(found.mean(dim=0), torch.zeros(7, dtype=torch.float64), atol=1e-9)
    # The same directions, of any length and sign; and beyond them others, which are none of these.
    cosines = F.normalize(found, dim=0).T @ F.normalize(expected, dim=0)
    assert torch.allclose(cosines[:4].diagonal().abs(), torch.ones(4, dtype=torch.float64), atol=1e-9)
    assert torch.linalg.matrix_rank(weight) == 7


def test_a_proxy_without_direction_stays_as_drawn() -> None:
    """Of length 0 it would never move: the loss depends on its direction alone."""
    criterion = ProxyGMLLoss(2, 3, proxies_per_class=1, neighbor_ratio=1.0)
    drawn = criterion.proxies.detach().clone()
    opposite = F.normalize(torch.tensor([[1.0, 2, 3], [-1, -2, -3], [1, 0, 0]]), dim=1)
    start_proxies(criterion, [opposite], torch.tensor([0, 0, 1]))
    assert torch.equal(criterion.proxies[0], drawn[0])
    assert torch.equal(F.normalize(criterion.proxies[1], dim=0), opposite[2])


def started() -> torch.Tensor:
    """This process's proxies, started from embeddings."""
    torch.manual_seed(0)
    labels = torch.tensor([1, 0, 1, 4, 1, 0, 1, 2])
    embeddings = F.normalize(torch.randn(8, 6), dim=1)
    group = dist.group.WORLD if dist.is_initialized() else None
    criterion = ProxyGMLLoss(5, 6, proxies_per_class=2, neighbor_ratio=1.0, process_group=group)
    start_proxies(criterion, [embeddings[:2], embeddings[2:]], labels)
    return criterion.proxies.detach()


def test_processes_start_their_own_proxies_as_one_process_does(tmp_path: Path) -> None:
    assert torch.equal(torch.cat(in_processes(2, started, tmp_path)), started())
