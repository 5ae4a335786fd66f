"""`proxygml embed`."""

from collections.abc import Sequence
from typing import Literal

from proxygml.cli.inputs import check_inputs
from proxygml.cli.options import (
    EMBEDDING,
    SOURCE,
    add_embedding,
    add_engine,
    add_ray,
    add_source,
    add_vectors,
    chosen,
)
from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.errors import counted
from proxygml.urls import Place


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Embed images, or vectors, into a file."""
    parser.usage = (
        "%(prog)s RUN (--catalog TABLE | --images PATH ... | --vectors FILE)\n"
        "                      --out FILE [options]\n"
        "           RUN (--catalog TABLE | --images PATH ...) --out FOLDER --ray [ADDRESS]"
    )
    parser.takes_run(parser.add_argument("run", type=Place, help="the run folder"))
    add_source(parser)
    add_vectors(parser)
    parser.add_argument("--out", type=Place, required=True, help="the .parquet file to write; with --ray, the folder")
    words = "write the first so many numbers of each vector, scaled to length 1 again; see `embedder.prefixes`"
    parser.add_argument("--dimensions", type=int | None, default=None, help=words)
    words = "how numbers are written: float32, float16, int8 (a byte each), or binary (a bit each)"
    parser.add_argument("--dtype", type=Literal["float32", "float16", "int8", "binary"], default="float32", help=words)
    words = "atlas: also write coordinates, neighbors and thumbnails, for Embedding Atlas, FiftyOne and the like"
    parser.add_argument("--columns", type=Literal["plain", "atlas"], default="plain", help=words)
    add_embedding(parser)
    add_engine(parser)
    add_ray(parser, "embed in many processes")
    words = "with --ray: images of a part, which is one file, and is done again where a process is killed"
    parser.add_argument("--part_rows", type=int, default=4096, help=words)
    options = parser.parse(arguments)
    check_inputs(run=options.run, catalog=options.catalog, images=options.images, vectors=options.vectors)
    from proxygml.gallery.embed import embed

    names = (*SOURCE, "vectors", "dimensions", "dtype", "columns", *EMBEDDING, "engine", "ray", "part_rows")
    file = embed(options.run, options.out, **chosen(options, *names))
    dtype = "" if options.dtype == "float32" else f", {options.dtype}"
    say(f"{counted(file.rows, 'vector')} of size {file.dimension}{dtype}: {options.out}")
