"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import Namespace

from proxygml.cli.parser import Parser

if TYPE_CHECKING:
    from proxygml.gallery.build import Model
    from proxygml.models.embed_images import EmbeddedImages

GALLERY_HELP = "a folder; or, in Milvus, NAME.db or http://HOST:19530 (token: MILVUS_TOKEN), perhaps with #GALLERY"
RECIPE_HELP = "a YAML file with any of the keys below, or the name of one of ours; other options win over it"


def add_source_options(parser: Parser) -> None:
    parser.add_argument("--catalog", type=Path | None, default=None, help="a table of images")
    parser.add_argument("--split", default="all", help="of the catalog: train, val, test, or all")
    parser.add_argument("--images", type=Path, nargs="+", default=None, help="folders of images, or image files")


def add_embedding_options(parser: Parser) -> None:
    bad = "unreadable images, named in any case; fail: end there, keeping what is done; drop: leave them out"
    parser.add_argument("--on-bad", type=Literal["fail", "drop"], default="fail", help=bad)
    parser.add_argument("--force", action="store_true", help="replace what is there already")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images; 0 decodes in this one")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time")


def embed_source(model: "Model", work: Path, options: Namespace) -> "EmbeddedImages":
    from proxygml.gallery.build import Source
    from proxygml.models.embed_images import embed_images

    source = Source(options.catalog, tuple(options.images or ()), None, options.split)
    return embed_images(
        model.embedder(),
        model.fingerprint,
        source.image_list(),
        work,
        on_bad=options.on_bad,
        workers=options.workers,
        batch_size=options.batch_size,
    )
