"""What follows the backbone: pooling of its feature map, and the head that makes unit vectors of it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxygml.models.embedder_settings import FeatureNorm, Pooling


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


class Head(nn.Module):
    """Pooled features (M, F) to embeddings (M, D): feature norm, linear layer, then L2 norm in at least float32."""

    def __init__(self, num_features: int, embedding_size: int, feature_norm: FeatureNorm = "none") -> None:
        super().__init__()
        self.norm: nn.Module = nn.Identity()
        if feature_norm == "batch":
            self.norm = nn.BatchNorm1d(num_features)
        elif feature_norm == "layer":
            self.norm = nn.LayerNorm(num_features, elementwise_affine=False)
        self.linear = nn.Linear(num_features, embedding_size) if embedding_size else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        vectors: Tensor = self.linear(self.norm(features))
        return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)
