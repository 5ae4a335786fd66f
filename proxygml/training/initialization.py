"""The network and the proxies as training starts from them: at random, as in the paper, or made from features.

A random embedding layer loses part of the information in pretrained features, and the first epochs only recover it. So
layer and proxies can start from the features of the training images. docs/results.md measures the gain.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from proxygml.data.catalog import Catalog
from proxygml.errors import RecipeError
from proxygml.loss.proxygml_loss import ProxyGMLLoss
from proxygml.models.backbones import build_backbone
from proxygml.models.embedder import Embedder
from proxygml.training.features import cached_features
from proxygml.training.recipe import Recipe
from proxygml.training.splits import split_for_training

FAINT = 1e-9  # of the strongest direction's energy


def initial_embedder(
    recipe: Recipe,
    classes: Sequence[str],
    accelerator: Accelerator,
    images: Catalog | None = None,
    *,
    restored: bool = False,
) -> Embedder:
    """The network before the first step, on the accelerator's device; the same for the same recipe. Seeds all draws.

    Args:
        recipe: what it is built from, and how it starts.
        classes: the training classes.
        accelerator: the processes.
        images: the training images; read from the recipe's catalog where they are needed and left out.
        restored: a checkpoint will fill in every weight, so none is loaded or started here.

    Raises:
        RecipeError: embedding_start is features, and the images have fewer directions than the embedding.
        UserError: see Embedder.
    """
    set_seed(recipe.seed)
    settings = recipe.embedder
    backbone = build_backbone(settings.backbone, "none", recipe.images.size) if restored else None
    embedder = Embedder(settings, recipe.images, classes, backbone=backbone).to(accelerator.device)
    if recipe.embedding_start == "features" and not restored:
        images = split_for_training(recipe)[0] if images is None else images
        check_directions(embedder.embedding_size, len(images), embedder.num_features)  # before features are computed
        linear = embedder.head.linear
        assert isinstance(linear, nn.Linear)  # the recipe checks that there is an embedding size
        start_embedding(linear, start_features(embedder, images, accelerator, recipe), recipe.whitening)
    return embedder


def start_features(embedder: Embedder, images: Catalog, accelerator: Accelerator, recipe: Recipe) -> Tensor:
    """The features (n, F) as training sees them: the cached ones, or those of one view and the backbone's own map."""
    as_trained = not recipe.cache_features
    return cached_features(embedder, images, accelerator, workers=recipe.workers, as_trained=as_trained)


@torch.no_grad()
def start_embedding(linear: nn.Linear, features: Tensor, whitening: float = 0.0) -> None:
    """Make the linear layer the projection that keeps most of the features' inner products: ours, by truncated SVD.

    Its rows are the leading right singular vectors of the features, not centred, so cosines hardly change. With
    whitening, each row is divided by its singular value to that power. Then a few strong directions, which all images
    share, do not hide the others. This is the whitening with shrinkage of Mukundan et al. (IJCV 2019), not centred.

    Args:
        linear: (F -> D), D at most F; its bias becomes 0.
        features: float32 (n, F).
        whitening: 0, cosines as they were, to 1, every direction as strong as the first.

    Raises:
        RecipeError: D is larger than F, or than n.
    """
    size = linear.out_features
    check_directions(size, *features.shape)
    exact = features.double()
    squares, directions = (found.flip(-1)[..., :size] for found in torch.linalg.eigh(exact.T @ exact))
    # The sign of a direction is arbitrary; this choice makes it the same on every machine.
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    # A direction that the training images lack is noise and must not be amplified.
    strength = (squares / squares[0]).clamp_min(FAINT).sqrt()
    linear.weight.copy_((directions * largest.sign() / strength**whitening).T)
    nn.init.zeros_(linear.bias)


def check_directions(size: int, images: int, features: int) -> None:
    """Raise RecipeError where so many images of so many features do not span as many dimensions as an embedding has."""
    most = min(images, features)
    if size > most:
        raise RecipeError(
            f"embedder.embedding_size is {size}, but embedding_start features finds only {most} directions in "
            f"{images:,} training images of {features:,} features: take at most {most}, or embedding_start random"
        )


@torch.no_grad()
def start_proxies(criterion: ProxyGMLLoss, embeddings: Tensor, labels: Tensor) -> None:
    """Turn each proxy to the mean of a part of its class's embeddings: ours. Lengths stay as they were drawn.

    Image i of a class goes to its proxy i modulo N; a class with fewer than N images starts several proxies alike, and
    one that label noise has left without any stays as drawn.

    Args:
        criterion: with C*N proxies.
        embeddings: (n, D), L2-normalised.
        labels: (n,) int64 in 0..C-1.
    """
    per_class, total = criterion.proxies_per_class, len(criterion.proxies)
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels, minlength=criterion.num_classes)
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]  # of an image within its class
    sums = embeddings.new_zeros(total, embeddings.shape[1])
    sums.index_add_(0, labels[order] * per_class + place % per_class, embeddings[order])
    rows = torch.arange(total)
    owner = rows // per_class
    shared = owner * per_class + rows % per_class % counts[owner].clamp(1, per_class)
    proxies = criterion.proxies
    directions = F.normalize(sums[shared], dim=1).to(proxies.device, proxies.dtype)
    turned = directions * torch.linalg.vector_norm(proxies, dim=1, keepdim=True)
    proxies.copy_(torch.where(counts[owner, None].to(proxies.device) > 0, turned, proxies))
