"""The recipe: everything that decides a training run, typed; the YAML file and the command line's options alike.

It holds and checks the values. The files beside this one do what the values say.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

import yaml

from proxygml.data.transforms import ImageSettings
from proxygml.errors import RecipeError
from proxygml.files import atomic_write
from proxygml.models.embedder import EmbedderSettings
from proxygml.training.yaml_loader import UniqueKeyLoader

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SHIPPED = Path(__file__).parents[1] / "recipes"

SECTIONS = ("embedder", "images", "loss")
ARGUMENTS = ("loss.arguments", "loss.miner_arguments")  # their keys are arguments of the class that the recipe names
OURS = "ProxyGMLLoss"
_OF_OTHERS = ("arguments", "miner", "miner_arguments")  # keys of the loss section that are not for ProxyGMLLoss

Optimizer = Literal["adam", "adamw"]
Schedule = Literal["steps", "cosine", "one_cycle"]
Precision = Literal["fp32", "bf16", "fp16"]
BatchNorm = Literal["frozen", "trained"]
ProxyDtype = Literal["float32", "bfloat16"]
Start = Literal["random", "features"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "none"]
Argument = bool | int | float | str


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

    memory_limit: int = 32 * 2**20
    """Bytes that the regulariser's logits may take at a time."""

    def __post_init__(self) -> None:
        for key, holds, expected in (
            ("proxies_per_class", self.proxies_per_class >= 1, "1 or more"),
            ("neighbor_ratio", 0 < self.neighbor_ratio <= 1, "above 0 and at most 1"),
            ("proxy_weight", 0 <= self.proxy_weight < math.inf, "0 or more"),
            ("scale", 0 < self.scale < math.inf, "above 0"),
            ("proxy_sample", _is_sample(self.proxy_sample), "null, a number of 1 or more, or a fraction in (0, 1)"),
            ("proxy_dtype", self.proxy_dtype in get_args(ProxyDtype), f"one of {', '.join(get_args(ProxyDtype))}"),
            ("memory_limit", self.memory_limit >= 1, "1 or more"),
        ):
            _check(holds, f"loss.{key}", getattr(self, key), expected)
        if self.sparse and self.proxy_weight:
            raise RecipeError(
                f"loss.sparse is true and loss.proxy_weight is {self.proxy_weight}, but the regulariser moves every "
                "proxy: set proxy_weight to 0, or leave sparse out"
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
        """The arguments of ProxyGMLLoss."""
        others = ("name", *_OF_OTHERS)
        return {key.name: getattr(self, key.name) for key in fields(self) if key.name not in others}

    def _check_used(self) -> None:
        """Raise RecipeError for a key that the named loss would ignore."""
        if self.is_ours:
            idle = [key for key in _OF_OTHERS if getattr(self, key)]
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


@dataclass(frozen=True)
class Recipe:
    """One experiment. The defaults are the paper's settings for CUB-200-2011 and Cars196.

    Raises:
        RecipeError: a value is impossible; the message names the key.
    """

    catalog: str = ""
    """The table of images, labels and splits to train on (.parquet or .csv)."""

    embedder: EmbedderSettings = field(default_factory=EmbedderSettings)
    """The network."""

    images: ImageSettings = field(default_factory=ImageSettings)
    """How images are cut, scaled and augmented."""

    loss: LossSettings = field(default_factory=LossSettings)
    """The loss."""

    epochs: int = 50
    """Passes over the training images. 0 trains nothing: the model is the network as it starts."""

    warmup_epochs: int = 1
    """First epochs, counted among `epochs`, in which only the embedding layer and the proxies train."""

    batch_size: int = 32
    """Images per step, all processes together."""

    images_per_class: int = 0
    """Images of each class in a batch; 0 shuffles all images, as published."""

    optimizer: Optimizer = "adam"
    """adam, or adamw (decoupled weight decay)."""

    backbone_lr: float = 1e-4
    """Learning rate of the backbone; 0 freezes it, batch norm included."""

    embedding_lr: float = 1e-4
    """Learning rate of the embedding layer (and of gem pooling)."""

    proxy_lr: float = 0.03
    """Learning rate of the proxies."""

    weight_decay: float = 1e-4
    """Weight decay of everything that trains, proxies included."""

    eps: float = 0.01
    """Added to the denominator of Adam; the published value is far above Adam's default."""

    schedule: Schedule = "steps"
    """steps: all learning rates times `decay` at each of the `milestones`; cosine: from full to 0, epoch by epoch;
    one_cycle: up from 0 in the first tenth of all steps, then down to 0 as a cosine, step by step: for large rates from
    random weights."""

    milestones: tuple[int, ...] = (20, 40)
    """For schedule steps: number of finished epochs after which the learning rates fall."""

    decay: float = 0.1
    """For schedule steps: the factor at each milestone."""

    embedding_start: Start = "random"
    """random, as published; features: the projection that keeps most of the untrained features of the images. It
    needs little training, or none (embedding_lr 0), and keeps what a pretrained backbone can distinguish."""

    whitening: float = 0.0
    """For embedding_start features: how much strong directions of the features are weakened, 0 (not at all) to 1 (all
    equally strong). A little, 0.3, helps where classes differ in details."""

    proxy_start: Start = "random"
    """random, as published; features: means over parts of each class's embeddings before training."""

    batch_norm: BatchNorm = "frozen"
    """frozen: the backbone's batch-norm layers keep statistics and weights; trained: they learn as usual."""

    precision: Precision = "fp32"
    """Arithmetic of the network: fp32, bf16, or fp16 with loss scaling. The loss itself always computes in fp32."""

    validation_classes: float = 0.0
    """Fraction of the training classes that do not train, but choose the epoch to keep, by MAP@R; 0 to below 1. With 0,
    and no val split in the catalog, the last epoch is kept. The test classes never choose anything."""

    label_noise: float = 0.0
    """Fraction of the training images that get a wrong class, drawn by the seed: to measure how well a method tolerates
    wrong labels. Validation and test labels stay right."""

    cache_features: bool = False
    """With backbone_lr 0: compute the backbone's features once, keep them on disk, train the head on them.
    Training images are then cut like test images: no random crops."""

    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    """The K of the Recall@K that are reported."""

    seed: int = 0
    """Fixes initial weights, order of the images and crops. Two CPU runs of one recipe give the same numbers."""

    workers: int = 2
    """Processes that decode images, for each training process; 0 decodes in the training process itself."""

    tracker: Tracker = "tensorboard"
    """Where losses and metrics are logged besides metrics.csv: tensorboard, wandb, mlflow or none."""

    def __post_init__(self) -> None:
        for key in ("epochs", "warmup_epochs", "images_per_class", "seed", "workers"):
            _check(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        _check(self.seed < 2**32, "seed", self.seed, "below 2**32")
        _check(all(milestone >= 1 for milestone in self.milestones), "milestones", self.milestones, "1 or more each")
        _check(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more")
        for key in ("backbone_lr", "embedding_lr", "proxy_lr", "weight_decay"):
            value = getattr(self, key)
            _check(value >= 0 and math.isfinite(value), key, value, "a number of 0 or more")
        _check(0 < self.eps < math.inf, "eps", self.eps, "above 0")
        _check(0 < self.decay <= 1, "decay", self.decay, "above 0 and at most 1")
        _check(0 <= self.validation_classes < 1, "validation_classes", self.validation_classes, "0 to below 1")
        _check(0 <= self.label_noise < 1, "label_noise", self.label_noise, "0 to below 1")
        for key, choices in (
            ("optimizer", Optimizer),
            ("schedule", Schedule),
            ("embedding_start", Start),
            ("proxy_start", Start),
            ("batch_norm", BatchNorm),
            ("precision", Precision),
            ("tracker", Tracker),
        ):
            allowed = get_args(choices)
            _check(getattr(self, key) in allowed, key, getattr(self, key), f"one of {', '.join(allowed)}")
        _check(bool(self.recall_at) and min(self.recall_at) >= 1, "recall_at", self.recall_at, "numbers of 1 or more")
        if self.images_per_class and self.batch_size % self.images_per_class:
            raise RecipeError(
                f"batch_size is {self.batch_size}, which is no multiple of images_per_class ({self.images_per_class})"
            )
        _check(0 <= self.whitening <= 1, "whitening", self.whitening, "0 to 1")
        if self.whitening and self.embedding_start != "features":
            raise RecipeError(
                f"whitening is {self.whitening}, but embedding_start is {self.embedding_start}: only a layer that "
                "starts from features can whiten them"
            )
        if self.embedding_start == "features" and not self.embedder.embedding_size:
            raise RecipeError(
                "embedding_start is features, but embedder.embedding_size is 0: there is no linear layer to start"
            )
        for key in ("embedding_start", "proxy_start"):
            if getattr(self, key) == "features" and self.embedder.feature_norm != "none":
                raise RecipeError(
                    f"{key} is features, but embedder.feature_norm is {self.embedder.feature_norm}, and those are not "
                    "normalised yet: take random, or feature_norm none"
                )
        if self.proxy_start == "features" and not self.loss.is_ours:
            raise RecipeError(f"proxy_start is features, but loss.name is {self.loss.name}: only {OURS} can start so")
        if self.loss.sparse and self.proxy_lr * self.weight_decay >= 1:
            raise RecipeError(
                f"proxy_lr {self.proxy_lr} times weight_decay {self.weight_decay} shrinks the proxies to nothing: with "
                "loss.sparse it must stay below 1"
            )
        if self.loss.sparse and self.precision == "fp16":
            raise RecipeError("precision is fp16, whose loss scaling cannot follow loss.sparse: take bf16 or fp32")
        if self.cache_features and self.backbone_lr > 0:
            raise RecipeError(
                f"cache_features needs a frozen backbone, but backbone_lr is {self.backbone_lr}: set it to 0"
            )

    def write(self, path: Path) -> None:
        """Write the recipe, every key, as YAML."""
        with atomic_write(path) as temporary:
            temporary.write_text(yaml.safe_dump(self.content(), sort_keys=False), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Recipe":
        """Read a recipe from YAML; keys that are left out keep their defaults.

        Raises:
            RecipeError: the file is missing or no YAML, a key is unknown or a value is impossible.
        """
        return cls.of(read_yaml(path), str(path))

    @classmethod
    def of(cls, content: Mapping[str, object], where: str) -> "Recipe":
        """A recipe from keys and values, as a YAML file has them; errors say `where` they come from.

        Raises:
            RecipeError: a key is unknown or a value is impossible.
        """
        from jsonargparse import ArgumentError  # noqa: PLC0415

        check_content(content, where)
        parser = _parser()
        try:
            recipe: Recipe = parser.instantiate(parser.parse_object({"recipe": dict(content)})).recipe
        except ArgumentError as error:
            raise RecipeError(f"{where}: {error.message}") from error
        return recipe

    def content(self) -> dict[str, Any]:
        """Every key and value, as a YAML file has them, without those that the named loss does not use."""
        content: dict[str, Any] = {key: _plain(value) for key, value in asdict(self).items()}
        idle = [key for key in _OF_OTHERS if not content["loss"][key]]
        for key in idle if self.loss.is_ours else [*idle, *self.loss.of_ours()]:
            del content["loss"][key]
        return content


@cache
def _parser() -> "ArgumentParser":
    """Made once: a comparison reads hundreds of recipes."""
    from jsonargparse import ArgumentParser  # noqa: PLC0415

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, "recipe")
    return parser


def find_recipe(name: str, kind: str = "") -> Path:
    """The file of that path, or of that name among the recipes that come with proxygml (`cub200`, `sop`, ...).

    Args:
        name: a path or a name.
        kind: the folder of ours to look in: none for the recipes of runs, `compare` for those of comparisons.

    Raises:
        RecipeError: there is neither.
    """
    shipped = {path.stem: path for path in sorted((SHIPPED / kind).glob("*.yaml"))}
    path = Path(name)
    if path.is_file():
        return path
    if path.stem in shipped and path.name in (path.stem, f"{path.stem}.yaml"):
        return shipped[path.stem]
    raise RecipeError(f"the recipe {name} is not there: give a YAML file or one of {', '.join(shipped)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        RecipeError: the file is missing or no YAML, or holds something else.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"the recipe {path} is nested too deep: a recipe has two levels, or three") from error
    if content is not None and not isinstance(content, dict):
        raise RecipeError(f"the recipe {path} holds {type(content).__name__}, but must hold keys and values")
    return content or {}


def check_content(content: Mapping[str, object], where: str) -> None:
    """Raise RecipeError when this is no recipe, naming an unknown key and the nearest right one."""
    known = recipe_keys()
    for key in flattened(content):
        if key not in known and not key.startswith(tuple(f"{section}." for section in ARGUMENTS)):
            check_key(key, known, where)
    for key, value in content.items():
        if value is None or (key in SECTIONS and not isinstance(value, dict)):
            expected = "keys and values of its own" if key in SECTIONS else "a value"
            raise RecipeError(f"{where}: {key} is {value!r}, but must be {expected}; leave it out for the default")


def check_key(key: str, known: list[str], where: str) -> NoReturn:
    """Raise RecipeError for an unknown key, naming the nearest right one."""
    nearest = nearest_key(key, known)
    raise RecipeError(f"{where}: a recipe has no key {key!r}" + (f"; did you mean {nearest!r}?" if nearest else ""))


def recipe_keys() -> list[str]:
    """Every key of a recipe, dotted: `epochs`, `loss`, `loss.scale`, ..."""
    return list(flattened(asdict(Recipe())))


def nearest_key(key: str, known: list[str]) -> str | None:
    """The known key that is spelt most like another, or that ends the same."""
    ending = [name for name in known if name.rsplit(".", maxsplit=1)[-1] == key.rsplit(".", maxsplit=1)[-1]]
    return next(iter(get_close_matches(key, known, n=1, cutoff=0.6) or ending), None)


def flattened(content: Mapping[str, object]) -> dict[str, object]:
    """Every key, dotted, and its value; those of sections too: {a: {b: 1}} gives `a` and `a.b`."""
    flat: dict[str, object] = {}
    for key, value in content.items():
        flat[str(key)] = value
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": found for inner, found in flattened(value).items()}
    return flat


def _check(holds: bool, key: str, found: object, expected: str) -> None:
    if not holds:
        raise RecipeError(f"{key} is {found!r}, but must be {expected}")


def _is_sample(value: int | float | None) -> bool:
    return value is None or 0 < value < 1 or (type(value) is int and value >= 1)


def _plain(value: object) -> object:
    """Tuples as lists, which YAML knows."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value
