"""What follows the backbone: pooling of its feature map, and the head that makes unit vectors of it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxygml.errors import RecipeError, counted
from proxygml.models.embedder_settings import EmbedderSettings, FeatureNorm, HeadKind, Pooling

LARGEST_LAYER = 2**30
"""Weights of the embedding layer."""


class Pool(nn.Module):
    """A feature map, (M, F, positions), to one vector per image, (M, F); with flatten (M, F * positions)."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling
        if pooling == "gem":
            self.power = nn.Parameter(torch.tensor(3.0))  # the value of Radenovic et al. 2018, from which it is learned

    def forward(self, features: Tensor) -> Tensor:
        if self.pooling == "avg":
            return features.mean(dim=-1)
        if self.pooling == "max":
            return features.amax(dim=-1)
        if self.pooling == "avg+max":
            return features.mean(dim=-1) + features.amax(dim=-1)
        if self.pooling == "flatten":
            return features.flatten(1)
        pooled = features.float().clamp_min(1e-6).pow(self.power).mean(dim=-1).pow(1 / self.power)
        return pooled.to(torch.promote_types(features.dtype, self.power.dtype))


class Standardized(nn.Module):
    """Features (M, F) less their mean, divided by their standard deviation, both measured once over training images."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


class ResidualLinear(nn.Linear):
    """A linear layer (F -> D) whose weight is a fixed start plus a change that begins at zero: ours.

    Weight decay draws it back to its start, and not to zero.
    """

    start: Tensor

    def __init__(self, num_features: int, embedding_size: int) -> None:
        super().__init__(num_features, embedding_size)
        start = torch.empty(embedding_size, num_features)
        nn.init.eye_(start) if embedding_size == num_features else nn.init.orthogonal_(start)
        self.register_buffer("start", start)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.start + self.weight, self.bias)


class ResidualMLP(ResidualLinear):
    """A ResidualLinear plus a hidden layer of GELU units, whose output begins at zero: ours."""

    def __init__(self, num_features: int, embedding_size: int, hidden_size: int) -> None:
        super().__init__(num_features, embedding_size)
        self.hidden = nn.Linear(num_features, hidden_size)
        self.output = nn.Linear(hidden_size, embedding_size, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = self.output(F.gelu(self.hidden(features)))
        return super().forward(features) + added


class Head(nn.Module):
    """Pooled features (M, F) to embeddings (M, D): feature norm, layer, then L2 norm in at least float32."""

    def __init__(
        self,
        num_features: int,
        embedding_size: int,
        feature_norm: FeatureNorm = "none",
        kind: HeadKind = "linear",
        hidden_size: int = 512,
    ) -> None:
        super().__init__()
        self.norm: nn.Module = nn.Identity()
        if feature_norm == "batch":
            self.norm = nn.BatchNorm1d(num_features)
        elif feature_norm == "layer":
            self.norm = nn.LayerNorm(num_features, elementwise_affine=False)
        elif feature_norm == "standard":
            self.norm = Standardized(num_features)
        self.linear: nn.Module = nn.Identity()
        if embedding_size and kind == "linear":
            self.linear = nn.Linear(num_features, embedding_size)
        elif embedding_size and kind == "residual":
            self.linear = ResidualLinear(num_features, embedding_size)
        elif embedding_size:
            self.linear = ResidualMLP(num_features, embedding_size, hidden_size)

    @torch.no_grad()
    def start_at(self, weight: Tensor, bias: Tensor) -> None:
        """Let the layer start as this projection: weight (D, F), bias (D,)."""
        assert isinstance(self.linear, nn.Linear)  # the recipe checks that there is an embedding size
        target = self.linear.start if isinstance(self.linear, ResidualLinear) else self.linear.weight
        target.copy_(weight)
        self.linear.bias.copy_(bias)

    def forward(self, features: Tensor) -> Tensor:
        vectors: Tensor = self.linear(self.norm(features))
        return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)


def head_of(settings: EmbedderSettings, num_features: int) -> Head:
    """The head that the settings describe."""
    return Head(num_features, settings.embedding_size, settings.feature_norm, settings.head, settings.hidden_size)


def check_layer(num_features: int, settings: EmbedderSettings) -> None:
    """Raise RecipeError where the embedding layer would fill the memory of any device."""
    units = settings.hidden_size if settings.head == "mlp" else 0
    numbers = max(num_features * settings.embedding_size, num_features * units, units * settings.embedding_size)
    if numbers > LARGEST_LAYER:
        raise RecipeError(
            f"embedder.embedding_size is {settings.embedding_size:,} ({counted(units, 'hidden unit')}) for "
            f"{counted(num_features, 'feature')}, which makes a layer of {counted(numbers, 'number')}, but at most "
            f"{LARGEST_LAYER:,} are possible: take a smaller one, or another pooling than flatten"
        )
