"""The recipe: everything that decides a training run, typed; the YAML file and the command line's options alike.

It holds and checks the values. The other files of this folder use them.
"""

import json
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml

from proxygml.arguments import check_fields
from proxygml.data.images.settings import ImageSettings
from proxygml.errors import MOST_WORKERS, RecipeError, check_setting, did_you_mean
from proxygml.files import atomic_write, check_local
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.training.loss_settings import OF_OTHERS, OURS, LossSettings
from proxygml.training.recipe_files import read_yaml
from proxygml.urls import as_place

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SECTIONS = ("embedder", "images", "loss")
ARGUMENTS = ("loss.arguments", "loss.miner_arguments")  # their keys are arguments of the class that the recipe names

NULLABLE = "loss.proxy_sample"
"""The one key that may be null."""

Optimizer = Literal["adam", "adamw"]
Schedule = Literal["steps", "cosine", "one_cycle"]
Precision = Literal["fp32", "bf16", "fp16"]
BatchNorm = Literal["frozen", "trained"]
Start = Literal["random", "features"]
EmbeddingStart = Literal["random", "features", "lda"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "none"]

LARGEST_STEP = 2**16
"""Images of a step, all processes together."""


@dataclass(frozen=True)
class Recipe:
    """One experiment. The defaults are the paper's settings for CUB-200-2011 and Cars196.

    Raises:
        RecipeError: a value is impossible; the message names the key.
    """

    catalog: str = ""
    """The table of images, labels and splits to train on (.parquet or .csv). Training rows with False in a column
    `keep` are left out."""

    drop: str = ""
    """The audit.csv of `proxygml audit`, or a .csv with the columns row and keep: training rows with False are left
    out."""

    embedder: EmbedderSettings = field(default_factory=EmbedderSettings)
    """The network."""

    images: ImageSettings = field(default_factory=ImageSettings)
    """How images are cut, scaled and augmented."""

    loss: LossSettings = field(default_factory=LossSettings)
    """The loss."""

    start_from: str = ""
    """A finished run whose network this one starts from, instead of `embedder.weights`, and whose proxies, for the
    classes that both have. The proxies of its other classes start as means over parts of their embeddings."""

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

    embedding_start: EmbeddingStart = "random"
    """random, as published; features: the projection that keeps most of the untrained features of the images. It
    needs little training, or none (embedding_lr 0), and keeps what a pretrained backbone can distinguish. lda: the
    projection of linear discriminant analysis, which separates the training classes most; with whitening 1."""

    whitening: float = 0.0
    """For embedding_start features: how much strong directions of the features are weakened, 0 (not at all) to 1 (all
    equally strong). A little, 0.3, helps where classes differ in details. For lda: the same of the directions in which
    features differ within classes."""

    proxy_start: Start = "random"
    """random, as published; features: means over parts of each class's embeddings before training."""

    batch_norm: BatchNorm = "frozen"
    """frozen: the backbone's batch-norm layers keep statistics and weights; trained: they learn as usual."""

    precision: Precision = "fp32"
    """Arithmetic of the network: fp32, bf16, or fp16 with loss scaling. The loss itself always computes in fp32."""

    validation_classes: float = 0.0
    """Fraction of the training classes that do not train, but choose the epoch to keep, by MAP@R; 0 to below 1. Where
    the layer starts from features or lda, that start is one of the candidates. With 0, and no val split in the catalog,
    the last epoch is kept. The test classes never choose anything."""

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
        _check_choices(self)
        check_fields(self, RecipeError)
        _check_values(self)
        _check_starts(self)
        _check_combinations(self)

    @property
    def takes_vectors(self) -> bool:
        """Whether it trains on vectors, not on images."""
        return self.embedder.takes_vectors

    @property
    def start_is_judged(self) -> bool:
        """Whether the validation classes may choose the network before the first step: where it is no random one."""
        return self.embedding_start != "random"

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
        try:
            return _parsed(content) if _is_json(content) else _instantiated(Recipe, content)
        except ArgumentError as error:
            raise RecipeError(f"{where}: {error.message}") from error
        except OverflowError as error:
            raise RecipeError(f"{where}: a number is too large ({error})") from error

    def content(self) -> dict[str, Any]:
        """Every key and value, as a YAML file has them, without those that the named loss does not use."""
        content: dict[str, Any] = {key: _plain(value) for key, value in asdict(self).items()}
        idle = [key for key in OF_OTHERS if not content["loss"][key]]
        for key in idle if self.loss.is_ours else [*idle, *self.loss.of_ours()]:
            del content["loss"][key]
        return content


def _parsed(content: Mapping[str, object]) -> Recipe:
    """The recipe of keys and values of JSON.

    To parse a whole recipe takes 15 ms, and a comparison needs hundreds that differ in a few numbers. So each section
    is parsed once, and a value that has the type of its key is not parsed. Where that fails, the whole is parsed, whose
    messages name what was given.
    """
    from jsonargparse import ArgumentError  # noqa: PLC0415

    kinds = _kinds()
    given = {key: value for key, value in content.items() if type(value) is kinds[key]}
    others = {key: value for key, value in content.items() if key not in given and key not in SECTIONS}
    try:
        sections = {key: _cached(kinds[key], json.dumps(content[key])) for key in SECTIONS if key in content}
        recipe: Recipe = replace(_cached(Recipe, json.dumps(others)), **given, **sections)
    except (ArgumentError, RecipeError):
        recipe = _cached(Recipe, json.dumps(content))
    return recipe


@cache
def _kinds() -> dict[str, Any]:
    """The type of each key's default; sections are dataclasses."""
    return {key: type(value) for key, value in vars(Recipe()).items()}


@lru_cache(maxsize=4096)
def _cached(kind: Any, text: str) -> Any:
    """A recipe, or one of its sections, of keys and values in JSON."""
    return _instantiated(kind, json.loads(text))


def _instantiated(kind: Any, content: Mapping[str, object]) -> Any:
    parser = _parser(kind)
    own = deepcopy(dict(content))  # into whose inner mappings jsonargparse writes
    return parser.instantiate(parser.parse_object({"recipe": own})).recipe


def _is_json(value: object) -> bool:
    """Whether JSON gives back what it is given: YAML has dates, and keys that are no text."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (str, bool, int, float))


def _check_values(recipe: Recipe) -> None:
    """Raise RecipeError for a number that is out of its range."""

    def check(holds: bool, key: str, expected: str) -> None:
        check_setting(holds, key, getattr(recipe, key), expected)

    as_place(recipe.catalog, "catalog", RecipeError)
    for key in ("drop", "start_from"):
        check_local(getattr(recipe, key), key, RecipeError)
    for key in ("epochs", "warmup_epochs", "images_per_class", "seed", "workers"):
        check(getattr(recipe, key) >= 0, key, "0 or more")
    check(recipe.seed < 2**32, "seed", "below 2**32")
    check(recipe.workers <= MOST_WORKERS, "workers", f"at most {MOST_WORKERS}")
    check(all(milestone >= 1 for milestone in recipe.milestones), "milestones", "1 or more each")
    check(2 <= recipe.batch_size <= LARGEST_STEP, "batch_size", f"2 to {LARGEST_STEP:,}")
    for key in ("backbone_lr", "embedding_lr", "proxy_lr", "weight_decay"):
        value = getattr(recipe, key)
        check(value >= 0 and math.isfinite(value), key, "a number of 0 or more")
    check(0 < recipe.eps < math.inf, "eps", "above 0")
    check(0 < recipe.decay <= 1, "decay", "above 0 and at most 1")
    check(0 <= recipe.validation_classes < 1, "validation_classes", "0 to below 1")
    check(0 <= recipe.label_noise < 1, "label_noise", "0 to below 1")
    check(0 <= recipe.whitening <= 1, "whitening", "0 to 1")
    check(bool(recipe.recall_at) and min(recipe.recall_at) >= 1, "recall_at", "numbers of 1 or more")


def _check_choices(recipe: Recipe) -> None:
    """Raise RecipeError for a value that is none of the words that its key takes."""
    for key, choices in (
        ("optimizer", Optimizer),
        ("schedule", Schedule),
        ("embedding_start", EmbeddingStart),
        ("proxy_start", Start),
        ("batch_norm", BatchNorm),
        ("precision", Precision),
        ("tracker", Tracker),
    ):
        allowed = get_args(choices)
        check_setting(getattr(recipe, key) in allowed, key, getattr(recipe, key), f"one of {', '.join(allowed)}")


def _check_starts(recipe: Recipe) -> None:
    """Raise RecipeError where the layer or the proxies cannot start as the recipe says."""
    if recipe.whitening and recipe.embedding_start == "random":
        raise RecipeError(
            f"whitening is {recipe.whitening}, but embedding_start is {recipe.embedding_start}: only a layer that "
            "starts from features can whiten them"
        )
    if recipe.embedding_start != "random" and not recipe.embedder.embedding_size:
        raise RecipeError(
            f"embedding_start is {recipe.embedding_start}, but embedder.embedding_size is 0: there is no linear "
            "layer to start"
        )
    for key in ("embedding_start", "proxy_start"):
        if getattr(recipe, key) != "random" and recipe.embedder.feature_norm not in ("none", "standard"):
            raise RecipeError(
                f"{key} is {getattr(recipe, key)}, but embedder.feature_norm is {recipe.embedder.feature_norm}, and "
                "its layer has not seen any features yet: choose random, or feature_norm none"
            )
    if recipe.proxy_start == "features" and not recipe.loss.is_ours:
        raise RecipeError(
            f"proxy_start is features, but loss.name is {recipe.loss.name}: only the proxies of {OURS} can start from "
            "features; choose random"
        )


def _check_combinations(recipe: Recipe) -> None:
    """Raise RecipeError for values that exclude each other."""
    if recipe.images_per_class and recipe.batch_size % recipe.images_per_class:
        raise RecipeError(
            f"batch_size is {recipe.batch_size}, but must be a multiple of images_per_class ({recipe.images_per_class})"
        )
    if recipe.loss.sparse and recipe.proxy_lr * recipe.weight_decay >= 1:
        raise RecipeError(
            f"proxy_lr {recipe.proxy_lr} times weight_decay {recipe.weight_decay} shrinks the proxies to nothing: with "
            "loss.sparse the product must be below 1"
        )
    if recipe.loss.sparse and recipe.embedder.prefixes:
        raise RecipeError(
            "loss.sparse is true, but embedder.prefixes names prefixes, on which proxies have no sparse gradients: "
            "leave one of them out"
        )
    if recipe.loss.sparse and recipe.precision == "fp16":
        raise RecipeError(
            "precision is fp16 and loss.sparse is true, but loss scaling cannot be used with sparse gradients: choose "
            "bf16 or fp32"
        )
    if recipe.takes_vectors and not (recipe.cache_features and recipe.backbone_lr == 0):
        raise RecipeError(
            "embedder.backbone is vectors, so there is no backbone to train: set backbone_lr to 0 and cache_features "
            "to true, as the recipe `vectors` has them"
        )
    if recipe.images.quarter_turns and (recipe.cache_features or recipe.proxy_start != "random" or recipe.start_from):
        raise RecipeError(
            "images.quarter_turns makes classes of turned images, which cache_features, proxy_start and start_from do "
            "not know: set it to false"
        )
    if recipe.cache_features and recipe.backbone_lr > 0:
        raise RecipeError(
            f"cache_features needs a frozen backbone, but backbone_lr is {recipe.backbone_lr}: set it to 0"
        )


@cache
def _parser(kind: Any) -> "ArgumentParser":
    """Made once: a comparison reads hundreds of recipes."""
    from jsonargparse import ArgumentParser  # noqa: PLC0415

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "recipe")
    return parser


def check_content(content: Mapping[str, object], where: str) -> None:
    """Raise RecipeError when this is no recipe, naming an unknown key and the nearest right one."""
    known = recipe_keys()
    for key in flattened(content):
        if key not in known and not key.startswith(tuple(f"{section}." for section in ARGUMENTS)):
            raise RecipeError(f"{where}: a recipe has no key {key!r}; {did_you_mean(key, known)}")
    for key, value in flattened(content).items():
        if (value is None and key != NULLABLE) or (key in SECTIONS and not isinstance(value, dict)):
            expected = "keys and values of its own" if key in SECTIONS else "a value"
            raise RecipeError(f"{where}: {key} is {value!r}, but must be {expected}; leave it out for the default")


@cache
def recipe_keys() -> tuple[str, ...]:
    """Every key of a recipe, dotted: `epochs`, `loss`, `loss.scale`, ..."""
    return tuple(flattened(asdict(Recipe())))


def flattened(content: Mapping[str, object]) -> dict[str, object]:
    """Every key, dotted, and its value; those of sections too: {a: {b: 1}} gives `a` and `a.b`."""
    flat: dict[str, object] = {}
    for key, value in content.items():
        flat[str(key)] = value
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": found for inner, found in flattened(value).items()}
    return flat


def _plain(value: object) -> object:
    """Tuples as lists, and NumPy's numbers as Python's, which YAML knows."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(inner) for inner in value]
    return value.item() if hasattr(value, "item") else value
