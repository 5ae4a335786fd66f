"""`proxygml index`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from proxygml.cli.options import GALLERY_HELP, add_embedding_options, add_source_options
from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.errors import UserError


def index(arguments: Sequence[str]) -> None:
    """Build a gallery to be searched; add items to it, or remove some."""
    parser = Parser("index", str(index.__doc__))
    parser.add_argument(
        "run", type=Path | None, nargs="?", default=None, help="the run folder; a gallery knows its own"
    )
    add_source_options(parser)
    parser.add_argument("--vectors", type=Path | None, default=None, help="a file that `proxygml embed` wrote")
    parser.add_argument("--out", type=str, required=True, help=f"the gallery: {GALLERY_HELP}")
    parser.add_argument(
        "--kind",
        type=Literal["exact", "hnsw", "ivfpq"],
        default="exact",
        help="exact; hnsw: many times faster, misses a few; ivfpq: also fast, a small index",
    )
    parser.add_argument("--add", action="store_true", help="add what the gallery does not hold yet")
    parser.add_argument("--remove", nargs="+", default=None, help="remove items by column=value (id=7, label=x)")
    rate = "queries of no class of the gallery that may be given one, as a share; sets the threshold for none of these"
    parser.add_argument("--false-accept-rate", type=float, default=0.01, help=rate)
    add_embedding_options(parser)
    options = parser.parse(arguments)
    if options.remove is not None:
        _remove(options)
    elif options.add:
        _add(options)
    else:
        _build(options)


def _build(options: Namespace) -> None:
    from proxygml.gallery.build import Model, Source, build_gallery

    if options.run is None:
        raise UserError("no run folder is given: proxygml index RUN --out GALLERY ...")
    source = Source(options.catalog, tuple(options.images or ()), options.vectors, options.split)
    gallery = build_gallery(
        Model.of(options.run),
        source,
        options.out,
        kind=options.kind,
        false_accept_rate=options.false_accept_rate,
        on_bad=options.on_bad,
        force=options.force,
        workers=options.workers,
        batch_size=options.batch_size,
    )
    say(f"{len(gallery):,} items, {gallery.manifest.kind}: {options.out}")
    if gallery.manifest.recall is not None:
        say(f"recall@10 against exact search: {gallery.manifest.recall:.3f} (its own items as queries)")
    if (threshold := gallery.manifest.threshold) is not None:
        say(
            f"threshold {threshold.score:.3f}: of {threshold.queries:,} images of {threshold.classes:,} validation "
            f"classes {threshold.false_accept_rate:.1%} are accepted when their class is not in the gallery"
            + ("" if threshold.true_accept_rate is None else f", {threshold.true_accept_rate:.1%} when it is")
        )


def _add(options: Namespace) -> None:
    from proxygml.gallery.base import Gallery
    from proxygml.gallery.build import Model, Source, add_items

    source = Source(options.catalog, tuple(options.images or ()), options.vectors, options.split)
    gallery = Gallery.load(options.out)
    added, there = add_items(
        gallery,
        Model.of_gallery(gallery, options.run),
        source,
        on_bad=options.on_bad,
        workers=options.workers,
        batch_size=options.batch_size,
    )
    known = f" ({there:,} were in it already)" if there else ""
    say(f"{added:,} items added{known}, {len(gallery):,} now: {options.out}")
    if added and (threshold := gallery.manifest.threshold) is not None:
        say(
            f"threshold {threshold.score:.3f} for none of these stays as it was chosen when it was built: a larger "
            "gallery accepts more of unknown classes; `index` without --add chooses it anew"
        )


def _remove(options: Namespace) -> None:
    from proxygml.gallery.base import Gallery
    from proxygml.gallery.filters import column_values

    if options.add or options.catalog or options.images or options.vectors:
        raise UserError("--remove takes no new items: call proxygml index once to remove and once to --add")
    gallery = Gallery.load(options.out)
    where = column_values(options.remove)
    chosen = set(gallery.matching({name: values for name, values in where.items() if name != "id"}).tolist())
    if "id" in where:
        try:
            chosen &= {int(number) for number in where["id"]}
        except ValueError:
            raise UserError(f"--remove id={where['id'][0]}: an id is a whole number") from None
    if not chosen:
        raise UserError(f"no item of {options.out} has {' '.join(options.remove)}")
    gallery.remove(sorted(chosen))
    gallery.save()
    say(f"{len(chosen):,} items removed, {len(gallery):,} now: {options.out}")
