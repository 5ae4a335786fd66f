"""`proxygml search`."""

from collections.abc import Sequence
from pathlib import Path

from proxygml.cli.inputs import check_inputs
from proxygml.cli.options import (
    GALLERY_HELP,
    add_engine,
    add_force,
    add_on_bad,
    add_run,
    add_vectors,
    add_workers,
    chosen,
)
from proxygml.cli.output import output, say
from proxygml.cli.parser import CONDITIONS, Parser
from proxygml.errors import UserError, counted
from proxygml.urls import Place

QUERIES_PRINTED = 5


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Search a gallery with images."""
    _add_options(parser)
    options = parser.parse(arguments)
    filtered = f"; or, for --where, {CONDITIONS}" if options.where else ""
    check_inputs(
        gallery=options.gallery,
        images=options.queries,
        images_hint=filtered,
        vectors=options.vectors,
        run=options.run,
    )
    from proxygml.files import check_ending, check_overwrite
    from proxygml.gallery.query import ANSWER_ENDINGS, draw_answers, printed, search, write_answers

    if bool(options.queries) == (options.vectors is not None):
        raise UserError("give either images, or folders of them, or --vectors FILE")
    if options.out is not None:
        check_ending(options.out, *ANSWER_ENDINGS)
        check_overwrite(options.out, options.force)
    if options.show is not None:
        check_ending(options.show, ".png")
        check_overwrite(options.show, options.force)
    answers = search(
        options.gallery,
        options.queries,
        options.k,
        options.where,
        **chosen(options, "vectors", "run", "leave_out_itself", "rerank", "threshold", "on_bad", "workers", "engine"),
    )
    count = len(answers.queries)
    for query in range(min(count, QUERIES_PRINTED)):
        output.print(printed(answers, query))
    if count > QUERIES_PRINTED:
        say(
            f"and {counted(count - QUERIES_PRINTED, 'more query')}" + ("" if options.out else "; --out writes them all")
        )
    if options.out is not None:
        write_answers(answers, options.out)
        say(f"answers: {options.out}")
    if options.show is not None:
        draw_answers(answers, options.show)
        say(f"picture: {options.show}")


def _add_options(parser: Parser) -> None:
    parser.usage = "%(prog)s GALLERY (IMAGE ... | --vectors FILE) [options]"
    parser.takes_gallery(parser.add_argument("gallery", type=str, help=GALLERY_HELP))
    parser.add_argument("queries", type=Place, nargs="*", default=[], help="images, or folders of them")
    add_vectors(parser)
    parser.add_argument("--k", type=int, default=10, help="how many items to find for each image")
    words = (
        "find only items that meet all conditions: label=sparrow (several of a column: one is enough), label!=sparrow, "
        "'price>=10', 'taken<2021-02' (also <= and >), label= (missing), tags=red (a list that holds it), id=4"
    )
    parser.takes_conditions(parser.add_argument("--where", nargs="+", default=[], help=words))
    words = "draw the first 8 answers into this .png file"
    parser.add_argument("--show", type=Path | None, default=None, help=words)
    words = "write all answers to this .csv or .parquet file"
    parser.add_argument("--out", type=Path | None, default=None, help=words)
    words = "order the nearest 100 by their k-reciprocal neighbours"
    parser.add_argument("--rerank", action="store_true", help=words)
    words = "an image that is in the gallery does not find itself"
    parser.add_argument("--leave_out_itself", action="store_true", help=words)
    words = "cosine of the nearest item below which an image is `none of these` (default: the gallery's own)"
    parser.add_argument("--threshold", type=float | None, default=None, help=words)
    add_run(parser)
    add_on_bad(parser, "answer none")
    add_force(parser)
    add_workers(parser)
    add_engine(parser)
