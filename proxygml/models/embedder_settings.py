"""The settings of the embedder: the `embedder` section of a recipe.

They stand apart from embedder.py, which does what they say, so that the command line can list them without PyTorch.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from proxygml.arguments import check_fields
from proxygml.errors import RecipeError
from proxygml.urls import as_place

LARGEST_EMBEDDING = 2**16
"""Dimensions; far above what any index searches."""

Pooling = Literal["avg", "max", "avg+max", "gem", "flatten"]
FeatureNorm = Literal["none", "batch", "layer", "standard"]
HeadKind = Literal["linear", "residual", "mlp"]

VECTORS = "vectors"
"""The backbone of a model that takes vectors, which were made by another model, in place of images."""

LARGEST_HIDDEN = 2**16


@dataclass(frozen=True)
class EmbedderSettings:
    """What the embedder is made of: the `embedder` section of a recipe.

    Raises:
        RecipeError: a value is impossible; the message names the key.
    """

    backbone: str = "bn_inception"
    """`bn_inception` (the paper's), `conv4` or `conv4_small` (for characters) or the name of any timm model. `vectors`:
    none; the catalog's own vectors, scaled to length 1, are the features."""

    weights: str = "pretrained"
    """`pretrained` (downloaded), `none` (random), or the path of a .safetensors or .pth file."""

    pooling: Pooling = "avg"
    """How the backbone's feature map becomes one vector: avg, max, avg+max (their sum), gem (generalised mean) or
    flatten (all positions side by side; for small maps of things in one fixed pose, such as characters)."""

    embedding_size: int = 512
    """Dimension of the embeddings. 0: no linear layer; the embedding is the pooled features, normalised."""

    feature_norm: FeatureNorm = "none"
    """Normalise the pooled features to mean 0 and variance 1 before the linear layer. `batch`: each feature over the
    batch, by batch norm (Luo et al. 2019). `layer`: the features of each image, without parameters (Teh et al. 2020).
    Then embeddings do not all point in one direction when training from random weights begins. `standard`: each feature
    over the training images, measured once before training."""

    head: HeadKind = "linear"
    """linear: one layer. residual: its start plus a change that begins at zero, and that weight decay draws back to
    zero; the start is that of `embedding_start`, or the identity where features and embedding have one size. mlp:
    residual, plus a hidden layer whose output begins at zero."""

    hidden_size: int = 512
    """For head mlp: units of the hidden layer."""

    prefixes: tuple[int, ...] = ()
    """Sizes below embedding_size, rising, such as [32, 64]: the loss is also taken on the first 32 and the first 64
    numbers of the embeddings, which then are good embeddings by themselves (Matryoshka, Kusupati et al. 2022); see
    `embed --dimensions`."""

    mirror: bool = False
    """Embed every image by the mean of its features and those of its mirror image. This takes twice the time. Training
    uses one view, but `cache_features` trains on the mean."""

    tilt: float = 0.0
    """Embed every image by the mean of its features upright and turned to either side by this angle, 0 to 45 degrees.
    This takes three times the time; training uses one view, as with `mirror`."""

    zoom: float = 1.0
    """Embed every image by the mean of its features as a whole and with its centre enlarged by this factor, 1 to 2.
    This takes twice the time; training uses one view. With `tilt` and `mirror`, every combination is embedded."""

    output_stride: int = 0
    """Embed every image by a finer feature map from the same weights. 8 gives a position for every 8 x 8 pixels: the
    backbone's last strides are removed, and the layers after them are dilated. 8 takes about three times the time;
    training uses the backbone's own map. 0: its own map. For convolutional networks of timm."""

    def __post_init__(self) -> None:
        as_place(self.weights, "embedder.weights", RecipeError)
        for key, choices in (("pooling", Pooling), ("feature_norm", FeatureNorm), ("head", HeadKind)):
            if getattr(self, key) not in get_args(choices):
                allowed = ", ".join(get_args(choices))
                raise RecipeError(f"embedder.{key} is {getattr(self, key)!r}, but must be one of {allowed}")
        check_fields(self, RecipeError, "embedder.")
        if not 0 <= self.embedding_size <= LARGEST_EMBEDDING:
            raise RecipeError(
                f"embedder.embedding_size is {self.embedding_size}, but must be 0 to {LARGEST_EMBEDDING:,}"
            )
        if not 0 <= self.tilt <= 45:
            raise RecipeError(f"embedder.tilt is {self.tilt}, but must be 0 to 45 degrees")
        if not 1 <= self.zoom <= 2:
            raise RecipeError(f"embedder.zoom is {self.zoom}, but must be 1 to 2")
        if self.output_stride < 0:
            raise RecipeError(f"embedder.output_stride is {self.output_stride}, but must be 0 or more")
        if self.output_stride and self.pooling == "flatten":
            raise RecipeError(
                f"embedder.output_stride is {self.output_stride}, but embedder.pooling is flatten, which needs as many "
                "positions in training: take another pooling, or leave output_stride out"
            )
        if not 1 <= self.hidden_size <= LARGEST_HIDDEN:
            raise RecipeError(f"embedder.hidden_size is {self.hidden_size}, but must be 1 to {LARGEST_HIDDEN:,}")
        if self.head != "linear" and not self.embedding_size:
            raise RecipeError(
                f"embedder.head is {self.head}, but embedder.embedding_size is 0: there is no layer to train"
            )
        sizes = (0, *self.prefixes, self.embedding_size or LARGEST_EMBEDDING)
        if any(size >= larger for size, larger in pairwise(sizes)):
            raise RecipeError(
                f"embedder.prefixes is {list(self.prefixes)}, but must be rising sizes of 1 or more, below "
                f"embedding_size ({self.embedding_size})"
            )
        self._check_vectors()

    @property
    def takes_vectors(self) -> bool:
        """Whether the input is vectors, not images."""
        return self.backbone == VECTORS

    def _check_vectors(self) -> None:
        """Raise RecipeError for a setting of images where the input is vectors."""
        images = {"pooling": "avg", "mirror": False, "tilt": 0.0, "zoom": 1.0, "output_stride": 0}
        for key, default in images.items() if self.takes_vectors else ():
            if getattr(self, key) != default:
                raise RecipeError(
                    f"embedder.{key} is {getattr(self, key)!r}, but embedder.backbone is {VECTORS}, and {key} is for "
                    "images: leave it out"
                )
