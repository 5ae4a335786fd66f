"""The settings of clustering: the options of `proxygml cluster`, which lists them without loading NumPy or pandas."""

from dataclasses import dataclass
from typing import Literal, get_args

from proxygml.arguments import check_fields
from proxygml.errors import UserError, check_whole

Method = Literal["kmeans", "hdbscan", "agglomerative"]
Layout = Literal["table", "links", "copies"]


@dataclass(frozen=True)
class ClusterSettings:
    """How images are grouped: the options of `proxygml cluster`.

    Raises:
        UserError: a value is impossible, or one that the method needs is missing.
    """

    method: Method = "kmeans"
    """kmeans (needs num_clusters), hdbscan (finds their number; leaves outliers in no cluster), agglomerative (average
    linkage; needs num_clusters or max_distance)."""

    num_clusters: int | None = None
    """For kmeans and agglomerative."""

    max_distance: float | None = None
    """For agglomerative: clusters are joined up to this mean cosine distance (1 - cosine) between their images."""

    min_cluster_size: int = 5
    """For hdbscan: the smallest number of images that form a cluster."""

    duplicate_cosine: float = 0.97
    """Cosine, -1..1, from which two images are reported as near-duplicates."""

    seed: int = 0
    """Of kmeans."""

    def __post_init__(self) -> None:
        check_fields(self, UserError)
        check_whole("seed", self.seed, 0, 2**32 - 1)
        if self.method not in get_args(Method):
            raise UserError(f"method is {self.method!r}, but must be one of {', '.join(get_args(Method))}")
        if self.method == "kmeans" and self.num_clusters is None:
            raise UserError(
                "kmeans needs --num_clusters; if you do not know how many there are, choose --method hdbscan"
            )
        if self.method == "agglomerative" and (self.num_clusters is None) == (self.max_distance is None):
            raise UserError("agglomerative needs either --num_clusters or --max_distance, such as 0.4")
        if self.num_clusters is not None and self.num_clusters < 1:
            raise UserError(f"num_clusters is {self.num_clusters}, but must be 1 or more")
        if self.max_distance is not None and not 0 < self.max_distance <= 2:
            raise UserError(f"max_distance is {self.max_distance}, but must be above 0 and at most 2")
        if self.min_cluster_size < 2:
            raise UserError(f"min_cluster_size is {self.min_cluster_size}, but must be 2 or more")
        if not -1 <= self.duplicate_cosine <= 1:
            raise UserError(f"duplicate_cosine is {self.duplicate_cosine}, but must be in -1..1")
