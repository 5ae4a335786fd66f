"""`proxygml index`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from proxygml.cli.inputs import check_inputs
from proxygml.cli.options import (
    EMBEDDING,
    GALLERY_HELP,
    SOURCE,
    add_embedding,
    add_engine,
    add_source,
    add_vectors,
    chosen,
)
from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.errors import UserError, counted
from proxygml.gallery.kinds import Kind
from proxygml.urls import Place

if TYPE_CHECKING:
    from proxygml.gallery.base import Gallery
    from proxygml.gallery.folder.manifest import Threshold


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Build a gallery, add to it, or remove from it."""
    parser.usage = (
        "%(prog)s [RUN]\n           (--catalog TABLE | --images PATH ... | --vectors FILE)\n"
        "           --out GALLERY [options]"
    )
    words = "the run folder; not needed with --add and --remove, because the gallery stores its path"
    parser.takes_run(parser.add_argument("run", type=Place | None, nargs="?", default=None, help=words))
    add_source(parser)
    add_vectors(parser)
    parser.takes_gallery(parser.add_argument("--out", type=str, required=True, help=f"the gallery: {GALLERY_HELP}"))
    words = (
        "exact; hnsw: many times faster, misses a few; or an index of codes: int8, a byte for each number; binary, a "
        "bit for each; ivfbinary, the same in lists, faster; ivfpq: fast and small"
    )
    parser.add_argument("--kind", type=Kind, default="exact", help=words)
    words = (
        "of codes: how many candidates for each result are compared again by their exact vectors, from disk (default: "
        "10); 0 compares none"
    )
    parser.add_argument("--refine", type=int | None, default=None, help=words)
    parser.add_argument("--add", action="store_true", help="add the images that the gallery does not hold yet")
    words = "remove these items, such as id=7 or label=sparrow; takes the conditions of `search --where`"
    parser.takes_conditions(parser.add_argument("--remove", nargs="+", default=[], help=words))
    words = "change where the items' paths begin, because their files were moved"
    parser.add_argument("--rebase", nargs=2, metavar=("OLD", "NEW"), default=None, help=words)
    words = "check that nothing of the gallery has changed since it was written, to the bit"
    parser.add_argument("--verify", action="store_true", help=words)
    words = "share of queries of unknown classes that may be given a class; sets the threshold for `none of these`"
    parser.add_argument("--false_accept_rate", type=float, default=0.01, help=words)
    words = "keep the first so many numbers of each vector; queries are cut likewise; see `embedder.prefixes`"
    parser.add_argument("--dimensions", type=int | None, default=None, help=words)
    add_embedding(parser)
    add_engine(parser)
    options = parser.parse(arguments)
    old = options.rebase or options.verify or options.remove or options.add
    check_inputs(
        gallery=options.out if old else None,
        run=options.run,
        catalog=options.catalog,
        images=options.images,
        vectors=options.vectors,
    )
    if options.rebase:
        _rebase(options)
    elif options.verify:
        _verify(options)
    elif options.remove:
        _remove(options)
    elif options.add:
        _add(options)
    else:
        _build(options)


def _build(options: Namespace) -> None:
    from proxygml.gallery.build import index

    if options.run is None:
        raise UserError("no run folder is given: proxygml index RUN --out GALLERY ...")
    names = ("vectors", "kind", "refine", "false_accept_rate", "dimensions", "engine")
    settings = chosen(options, *SOURCE, *names, *EMBEDDING)
    gallery = index(options.run, options.out, **settings)
    say(f"{counted(len(gallery), 'item')}, {gallery.manifest.kind}: {options.out}")
    _print_index(gallery)
    if gallery.manifest.threshold is not None:
        _print_threshold(gallery.manifest.threshold)


def _print_index(gallery: "Gallery") -> None:
    """What an approximate index takes, and what it loses."""
    manifest = gallery.manifest
    if gallery.index_bytes is not None:
        exact = 4 * manifest.dimension
        say(f"index: {gallery.index_bytes:,.1f} bytes a vector, in memory; the exact vectors, {exact:,} each, on disk")
    if manifest.recall is None:
        return
    codes = ""
    if manifest.code_recall is not None and manifest.refine != 0:
        codes = f"; {manifest.code_recall:.3f} by the codes alone"
    say(f"recall@10 against exact search: {manifest.recall:.3f}{codes} (its own items as queries)")


def _print_threshold(threshold: "Threshold") -> None:
    images, classes = counted(threshold.queries, "image"), counted(threshold.classes, "validation class")
    known = "" if threshold.true_accept_rate is None else f", {threshold.true_accept_rate:.1%} when it is"
    say(
        f"threshold {threshold.score:.3f}: of {images} of {classes} "
        f"{threshold.false_accept_rate:.1%} are accepted when their class is not in the gallery{known}"
    )


def _add(options: Namespace) -> None:
    from proxygml.gallery.base import Gallery
    from proxygml.gallery.build import add_items
    from proxygml.gallery.source import Model, Source

    gallery = Gallery.load(options.out)
    done = add_items(
        gallery,
        Model.of_gallery(gallery, options.run, options.engine),
        Source.of(**chosen(options, *SOURCE, "vectors")),
        **chosen(options, "on_bad", "workers", "batch_size"),
    )
    known = f" ({done.there:,} {'was' if done.there == 1 else 'were'} in it already)" if done.there else ""
    changed = f", {done.updated:,} updated, which had changed" if done.updated else ""
    say(f"{counted(done.added, 'item')} added{known}{changed}, {len(gallery):,} now: {options.out}")
    if done.added and (threshold := gallery.manifest.threshold) is not None:
        say(
            f"the threshold for `none of these`, {threshold.score:.3f}, stays as it was chosen when the gallery was "
            "built: the larger the gallery, the more queries of unknown classes it accepts; `index` without --add "
            "chooses it again"
        )


def _rebase(options: Namespace) -> None:
    from proxygml.gallery.base import Gallery

    if options.add or options.remove or options.verify or options.catalog or options.images or options.vectors:
        raise UserError("--rebase changes paths only: give --out GALLERY beside it, and nothing else")
    gallery = Gallery.load(options.out)
    changed = gallery.rebase(*options.rebase)
    gallery.save()
    say(f"{changed:,} of {counted(len(gallery), 'path')} changed: {options.out}")


def _verify(options: Namespace) -> None:
    from proxygml.gallery.base import Gallery

    if options.add or options.remove or options.catalog or options.images or options.vectors:
        raise UserError("--verify changes nothing: give --out GALLERY alone")
    gallery = Gallery.load(options.out)
    found = gallery.verify()
    say(f"{counted(len(gallery), 'item')}, {found}: {options.out}")


def _remove(options: Namespace) -> None:
    from proxygml.gallery.base import Gallery
    from proxygml.gallery.build import remove_items

    if options.add or options.catalog or options.images or options.vectors:
        raise UserError("--remove takes no new items: call proxygml index once to remove and once to --add")
    gallery = Gallery.load(options.out)
    removed = remove_items(gallery, options.remove)
    say(f"{counted(removed, 'item')} removed, {len(gallery):,} now: {options.out}")
