"""Options that several commands share."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from proxygml.cli.parser import Parser
from proxygml.urls import Place

if TYPE_CHECKING:
    from proxygml.training.recipe import Recipe

GALLERY_HELP = "a folder; or in Milvus, NAME.db or http://HOST:19530 (its token: MILVUS_TOKEN), with #NAME if several"
SOURCE = ("catalog", "split", "images")
EMBEDDING = ("on_bad", "force", "workers", "batch_size")


def add_source(parser: Parser) -> None:
    """Which images to use: SOURCE."""
    parser.add_argument(
        "--catalog", type=Place | None, default=None, help="a table of images, as `proxygml prepare` writes it"
    )
    parser.add_argument(
        "--split",
        type=Literal["all", "train", "val", "test"],
        default="all",
        help="the part of the catalog to use",
    )
    words = "folders of images, at any depth, or image files; what is left out is named"
    parser.add_argument("--images", type=Place, nargs="+", default=[], help=words)


def add_vectors(parser: Parser) -> None:
    """Vectors to use in place of images."""
    words = (
        "a file that `proxygml embed` wrote; or, for a model of vectors, one of vectors to embed: .parquet with a "
        "column `embedding`, or .npy"
    )
    parser.add_argument("--vectors", type=Place | None, default=None, help=words)


def add_embedding(parser: Parser) -> None:
    """How to embed images: EMBEDDING."""
    add_on_bad(parser, "stop after all others are embedded")
    add_force(parser)
    add_workers(parser)
    parser.add_argument("--batch_size", type=int, default=64, help="images embedded at a time")


def add_engine(parser: Parser) -> None:
    """What computes the embeddings."""
    words = "what runs the network: torch; onnx (ONNX Runtime) or openvino, on the CPU, which give the same embeddings"
    parser.add_argument("--engine", type=Literal["torch", "onnx", "openvino"], default="torch", help=words)


def add_ray(parser: Parser, what: str) -> None:
    """Whether Ray divides the work."""
    words = f"{what} with Ray: on the cluster at ADDRESS; alone, on the Ray that runs here, or one that is started"
    parser.add_argument("--ray", type=str, nargs="?", const="auto", default=None, metavar="ADDRESS", help=words)


def add_on_bad(parser: Parser, fail: str) -> None:
    """What to do with images that cannot be read."""
    words = f"images that cannot be read are listed; fail: {fail}; drop: leave them out"
    parser.add_argument("--on_bad", type=Literal["fail", "drop"], default="fail", help=words)


def add_force(parser: Parser) -> None:
    """Whether an earlier result may be replaced."""
    parser.add_argument("--force", action="store_true", help="replace an earlier result")


def add_workers(parser: Parser) -> None:
    """How many processes decode images."""
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images; 0 uses this one alone")


def add_run(parser: Parser) -> None:
    """The run folder of a gallery's model."""
    parser.add_argument(
        "--run", type=Place | None, default=None, help="the run folder of the gallery's model, if it has moved"
    )


def chosen(options: Namespace, *names: str) -> dict[str, Any]:
    """The values of these options."""
    return {name: options[name] for name in names}


def recipe_with(content: Mapping[str, Any], options: Namespace, own: Sequence[str], where: str) -> "Recipe":
    """The recipe with the values of the options that were given, except the command's own options."""
    from proxygml.comparison.settings import merged
    from proxygml.training.recipe import Recipe

    given = {key: value for key, value in options.as_dict().items() if key not in own}
    return Recipe.of(merged(content, given), where)
