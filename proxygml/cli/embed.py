"""`proxygml embed`."""

from collections.abc import Sequence
from pathlib import Path

from proxygml.cli.options import add_embedding_options, add_source_options, embed_source
from proxygml.cli.output import say
from proxygml.cli.parser import Parser


def embed(arguments: Sequence[str]) -> None:
    """Write the vectors of images, with their paths, to a Parquet file."""
    parser = Parser("embed", str(embed.__doc__))
    parser.add_argument("run", type=Path, help="the run folder")
    add_source_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="the .parquet file to write")
    add_embedding_options(parser)
    options = parser.parse(arguments)
    from proxygml.data.vector_file import write_vectors
    from proxygml.files import check_ending, check_overwrite
    from proxygml.gallery.build import Model
    from proxygml.models.embed_images import discard

    check_ending(options.out, ".parquet")
    check_overwrite(options.out, options.force)
    model, work = Model.of(options.run), options.out.with_name(f".{options.out.name}.partial")
    embedded = embed_source(model, work, options)
    facts = {"model": model.fingerprint, "run": str(model.run)}
    write_vectors(options.out, embedded.blocks(), **facts, force=options.force)
    discard(work)
    say(f"{len(embedded):,} vectors of size {embedded.dimension}: {options.out}")
