"""`proxygml search`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from proxygml.cli.options import GALLERY_HELP
from proxygml.cli.output import output, say
from proxygml.cli.parser import Parser

_QUERIES_PRINTED = 5


def search(arguments: Sequence[str]) -> None:
    """Find the images of a gallery that are most similar to yours."""
    parser = Parser("search", str(search.__doc__))
    parser.add_argument("gallery", type=str, help=GALLERY_HELP)
    parser.add_argument("queries", type=Path, nargs="+", help="images, or folders of them")
    parser.add_argument("--k", type=int, default=10, help="how many to find for each")
    parser.add_argument("--where", nargs="+", default=None, help="only items with column=value, such as label=sparrow")
    parser.add_argument("--show", type=Path | None, default=None, help="write a picture (.png) of the first 8 answers")
    parser.add_argument("--out", type=Path | None, default=None, help="write all answers to a .csv or .parquet file")
    parser.add_argument("--rerank", action="store_true", help="order the nearest 100 by k-reciprocal neighbours")
    parser.add_argument("--leave-out-itself", action="store_true", help="an image of the gallery does not find itself")
    unknown = "cosine of the nearest below which a query is none of these; the gallery's own if left out"
    parser.add_argument("--threshold", type=float | None, default=None, help=unknown)
    parser.add_argument("--run", type=Path | None, default=None, help="the run folder, if it has moved")
    bad = "unreadable queries, named in any case; fail: answer none; drop: leave them out"
    parser.add_argument("--on-bad", type=Literal["fail", "drop"], default="fail", help=bad)
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images; 0 decodes in this one")
    options = parser.parse(arguments)
    from proxygml.data.image_list import ImageList
    from proxygml.files import check_ending
    from proxygml.gallery.base import Gallery
    from proxygml.gallery.build import Model
    from proxygml.gallery.filters import column_values
    from proxygml.gallery.query import ANSWER_ENDINGS, draw_answers, printed, search_images, write_answers

    if options.out is not None:
        check_ending(options.out, *ANSWER_ENDINGS)
    if options.show is not None:
        check_ending(options.show, ".png")
    gallery = Gallery.load(options.gallery)
    where, queries = column_values(options.where or ()), ImageList.from_files(options.queries)
    answers = search_images(
        gallery,
        Model.of_gallery(gallery, options.run).embedder(),
        queries,
        options.k,
        where,
        leave_out_itself=options.leave_out_itself,
        rerank=options.rerank,
        threshold=options.threshold,
        on_bad=options.on_bad,
        workers=options.workers,
    )
    queries = answers.queries
    for query in range(min(len(queries), _QUERIES_PRINTED)):
        output.print(printed(answers, query))
    if len(queries) > _QUERIES_PRINTED:
        say(
            f"and {len(queries) - _QUERIES_PRINTED:,} more queries" + ("" if options.out else "; --out writes them all")
        )
    if options.out is not None:
        write_answers(answers, options.out)
        say(f"answers: {options.out}")
    if options.show is not None:
        draw_answers(answers, options.show)
        say(f"picture: {options.show}")
