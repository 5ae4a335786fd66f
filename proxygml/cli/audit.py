"""`proxygml audit`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from proxygml.cli.inputs import check_inputs
from proxygml.cli.options import add_force, add_workers, chosen
from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.urls import Place


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Find labels that are probably wrong."""
    parser.usage = "%(prog)s [RUN] --catalog TABLE --out FOLDER [options]"
    words = "the run folder whose backbone gives the features; vectors are used as they are without one"
    parser.add_argument("run", type=Place | None, nargs="?", default=None, help=words)
    words = "a table of images or vectors, as `proxygml prepare` writes it"
    parser.add_argument("--catalog", type=Place, required=True, help=words)
    words = "the part of the catalog to audit"
    parser.add_argument("--split", type=Literal["all", "train", "val", "test"], default="all", help=words)
    parser.add_argument("--out", type=Path, required=True, help="the folder to make, with audit.csv and audit.html")
    parser.add_argument("--seed", type=int, default=0, help="of the folds in which labels are judged")
    words = "how many images the page shows, at most"
    parser.add_argument("--page_images", type=int, default=200, help=words)
    words = "cosine, -1..1, from which two images are near-duplicates"
    parser.add_argument("--duplicate_cosine", type=float, default=0.97, help=words)
    add_force(parser)
    add_workers(parser)
    options = parser.parse(arguments)
    check_inputs(run=options.run, catalog=options.catalog)
    from proxygml.auditing.audit import PAGE, TABLE, audit

    names = ("split", "seed", "force", "workers", "page_images", "duplicate_cosine")
    found = audit(options.run, options.catalog, options.out, **chosen(options, *names))
    say(*found.summary, f"labels: {options.out / TABLE}", f"page to correct them on: {options.out / PAGE}")
