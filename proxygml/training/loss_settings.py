"""The settings of the loss: the `loss` section of a recipe. criterion.py builds the loss that they describe."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from proxygml.arguments import check_fields
from proxygml.errors import RecipeError, check_setting

OURS = "ProxyGMLLoss"
OF_OTHERS = ("arguments", "miner", "miner_arguments")
"""Keys of the loss section that are not for ProxyGMLLoss."""

Direction = Literal["samples", "proxies"]
ProxyDtype = Literal["float32", "bfloat16"]
Argument = bool | int | float | str

MOST_PROXIES = 10_000
"""Of a class: more than that cannot differ in what they stand for."""


@dataclass(frozen=True)
class LossSettings:
    """The loss: the `loss` section of a recipe. Each argument of ProxyGMLLoss that the data leave open is a key.

    Raises:
        RecipeError: a value is impossible, or the named loss does not use it; the message names the key.
    """

    name: str = OURS
    """ProxyGMLLoss, or the class of a loss of pytorch-metric-learning, such as ProxyAnchorLoss."""

    arguments: dict[str, Argument] = field(default_factory=dict)
    """The arguments of a loss of pytorch-metric-learning; number of classes and embedding size are filled in."""

    miner: str = ""
    """For such a loss: the class of a miner of pytorch-metric-learning, such as MultiSimilarityMiner; or none."""

    miner_arguments: dict[str, Argument] = field(default_factory=dict)
    """The arguments of the miner."""

    proxies_per_class: int = 12
    """N: how many proxies each training class owns."""

    neighbor_ratio: float = 0.05
    """The paper's r, in (0, 1]: the share of all proxies that a sample keeps as its sub-graph."""

    proxy_weight: float = 0.3
    """The paper's lambda, 0 or more: weight of the regulariser that classifies the proxies themselves."""

    scale: float = 1.0
    """Factor on the class scores before the softmax, above 0. With one proxy per class, 1 is far too flat: use 20."""

    proxy_sample: int | float | None = None
    """How many proxies the regulariser takes in a step: a number, or a fraction in (0, 1). For very many classes; the
    estimate is unbiased. null: all."""

    sparse: bool = False
    """Update only the proxies that a batch kept (LazyAdam), for very many classes; needs proxy_weight 0. The moments of
    the other proxies stay as they are, so results differ from dense Adam's; weight decay is decoupled, and applied when
    a proxy is next updated."""

    proxy_dtype: ProxyDtype = "float32"
    """float32, or with `sparse` bfloat16: half the memory, rounded stochastically. The loss computes in float32."""

    positive_mask: bool = True
    """Keep a sample's own proxies whatever their similarity; false is the paper's ablation."""

    mask_softmax: bool = True
    """Take the softmax over only the classes with a kept proxy; false, over all, is the paper's ablation."""

    degree_normalized: bool = False
    """Score a class by the mean of its kept similarities, not by their sum; give it a larger scale, such as 16."""

    direction: Direction = "samples"
    """samples: classify each sample over the proxies that it keeps, as in the paper. proxies (ours): along the same
    edges, let each class sort its own samples from the others that keep its proxies; give it scale 32, proxy_weight 0.
    """

    margin: float = 0.1
    """For direction proxies, -1 to 1: own samples are drawn above this similarity, others pushed below minus it."""

    memory_limit: int = 32 * 2**20
    """Bytes that the regulariser's logits may take at a time."""

    sharded: bool = True
    """With several processes: divide the classes over them, so that each holds and updates its own proxies alone.
    false: each process holds all proxies and computes the whole loss. The results are the same."""

    def __post_init__(self) -> None:
        check_fields(self, RecipeError, "loss.")
        for key, holds, expected in (
            ("proxies_per_class", 1 <= self.proxies_per_class <= MOST_PROXIES, f"1 to {MOST_PROXIES:,}"),
            ("neighbor_ratio", 0 < self.neighbor_ratio <= 1, "above 0 and at most 1"),
            ("proxy_weight", 0 <= self.proxy_weight < math.inf, "0 or more"),
            ("scale", 0 < self.scale < math.inf, "above 0"),
            ("proxy_sample", _is_sample(self.proxy_sample), "null, a number of 1 or more, or a fraction in (0, 1)"),
            ("proxy_dtype", self.proxy_dtype in get_args(ProxyDtype), f"one of {', '.join(get_args(ProxyDtype))}"),
            ("direction", self.direction in get_args(Direction), f"one of {', '.join(get_args(Direction))}"),
            ("margin", -1 <= self.margin <= 1, "-1 to 1"),
            ("memory_limit", self.memory_limit >= 1, "1 or more"),
        ):
            check_setting(holds, f"loss.{key}", getattr(self, key), expected)
        if self.sparse and self.proxy_weight:
            raise RecipeError(
                f"loss.sparse is true and loss.proxy_weight is {self.proxy_weight}, but the regulariser moves every "
                "proxy: set proxy_weight to 0, or leave sparse out"
            )
        if self.sparse and not self.sharded:
            raise RecipeError(
                "loss.sparse is true and loss.sharded false, but several processes cannot average sparse gradients: "
                "leave sharded out"
            )
        if self.direction == "proxies" and not (self.positive_mask and self.mask_softmax):
            raise RecipeError(
                "loss.positive_mask or loss.mask_softmax is false and loss.direction is proxies, which needs each "
                "sample's own proxies and has no softmax over classes: leave them out"
            )
        if self.proxy_sample is not None and not self.proxy_weight:
            raise RecipeError(
                f"loss.proxy_sample is {self.proxy_sample}, but loss.proxy_weight is 0: there is no regulariser to "
                "estimate; leave proxy_sample out"
            )
        if self.proxy_dtype == "bfloat16" and not self.sparse:
            raise RecipeError(
                "loss.proxy_dtype is bfloat16, in which Adam would lose small updates: set loss.sparse to true, whose "
                "optimiser does not"
            )
        self._check_used()

    @property
    def is_ours(self) -> bool:
        return self.name == OURS

    def of_ours(self) -> dict[str, Any]:
        """The arguments of ProxyGMLLoss, and how its proxies are kept: proxy_dtype, sharded."""
        others = ("name", *OF_OTHERS)
        return {key.name: getattr(self, key.name) for key in fields(self) if key.name not in others}

    def _check_used(self) -> None:
        """Raise RecipeError for a key that the named loss would ignore."""
        if self.is_ours:
            idle = [key for key in OF_OTHERS if getattr(self, key)]
            meant = (
                f"is for the losses of pytorch-metric-learning, but loss.name is {OURS}: its settings are keys of loss"
            )
        else:
            defaults = {key.name: key.default for key in fields(self)}
            idle = [key for key, value in self.of_ours().items() if value != defaults[key]]
            meant = f"is for {OURS}, but loss.name is {self.name}: its settings are keys of loss.arguments"
            if self.miner_arguments and not self.miner:
                idle, meant = ["miner_arguments"], "is for a miner, but loss.miner names none"
        if idle:
            raise RecipeError(f"loss.{idle[0]} is {getattr(self, idle[0])!r} and {meant}")


def _is_sample(value: int | float | None) -> bool:
    return value is None or 0 < value < 1 or (type(value) is int and value >= 1)
