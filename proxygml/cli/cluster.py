"""`proxygml cluster`."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from proxygml.cli.inputs import check_inputs
from proxygml.cli.options import EMBEDDING, SOURCE, add_embedding, add_engine, add_source, add_vectors, chosen
from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.urls import Place


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Sort images into clusters."""
    from proxygml.gallery.clusters.settings import ClusterSettings, Layout

    parser.usage = (
        "%(prog)s RUN (--catalog TABLE | --images PATH ... | --vectors FILE)\n"
        "                        --out FOLDER [options]"
    )
    parser.takes_run(parser.add_argument("run", type=Place, help="the run folder"))
    add_source(parser)
    add_vectors(parser)
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    words = "table: clusters.csv alone; links or copies: also a folder of its images for each cluster"
    parser.add_argument("--layout", type=Layout, default="links", help=words)
    parser.add_class_arguments(ClusterSettings, as_group=False)
    add_embedding(parser)
    add_engine(parser)
    options = parser.parse(arguments)
    check_inputs(run=options.run, catalog=options.catalog, images=options.images, vectors=options.vectors)
    settings = ClusterSettings(**chosen(options, *(key.name for key in fields(ClusterSettings))))
    from proxygml.gallery.clusters.cluster import cluster
    from proxygml.gallery.clusters.folder import describe

    found = cluster(
        options.run, options.out, settings, **chosen(options, *SOURCE, "vectors", "layout", *EMBEDDING, "engine")
    )
    has_sheets = (options.out / "sheets").is_dir()  # of vectors without images, in a file or a catalog, there are none
    noun = "image" if has_sheets and options.vectors is None else "vector"
    say(describe(found, noun), f"clusters: {options.out / 'clusters.csv'}")
    if has_sheets:
        say(f"sheets:   {options.out / 'sheets'}")
