"""The commands. Each reads its options, calls the room that does the work, and says where the result lies.

A user's mistake is one message and exit status 2; a traceback means a bug. Rooms are imported by the command that needs
them, so that `--help` answers at once.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from rich.console import Console

from proxygml import __version__
from proxygml.console import console
from proxygml.errors import UserError, check_extra

if TYPE_CHECKING:
    from pandas import DataFrame

    from proxygml.data.datasets import Dataset
    from proxygml.gallery.build import Model
    from proxygml.models.embed_images import EmbeddedImages
    from proxygml.training.recipe import Recipe

output = Console()

set_parsing_settings(docstring_parse_attribute_docstrings=True)

_QUERIES_PRINTED = 5
_GALLERY_HELP = "a folder; or, in Milvus, NAME.db or http://HOST:19530 (token: MILVUS_TOKEN), perhaps with #GALLERY"
_RECIPE_HELP = "a YAML file with any of the keys below, or the name of one of ours; other options win over it"


class Parser(ArgumentParser):
    """A parser whose errors are one line on standard error, and exit status 2."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"proxygml {command}", description=description, allow_abbrev=False)

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """The options; `--test-classes` and `--test_classes` are the same."""
        known = set(self._option_string_actions)
        options: Namespace = self.parse_args([_spelt_as_known(argument, known) for argument in arguments])
        return options

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(f"{' '.join(self.explain(message).split())} (see {self.prog} --help)")

    def explain(self, message: str) -> str:
        """An unknown option with the nearest right one; any other message as it is."""
        unknown = message.partition("nrecognized arguments: ")[2]
        if not unknown.startswith("--"):
            message = re.sub(r'^Parser key "([^"]*)":', r"--\1:", message).replace("typing.", "")
            return message.replace("Expected a <class 'tuple'>.", "Expected a list such as [3,4].")
        from proxygml.training.recipe import nearest_key

        name = unknown.split()[0].split("=")[0].removeprefix("--")
        known = [option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")]
        nearest = nearest_key(name, known)
        return f"there is no option --{name}" + (f"; did you mean --{nearest}?" if nearest else "")


def _spelt_as_known(argument: str, known: set[str]) -> str:
    name, equals, value = argument.partition("=")
    for spelling in (name, name.replace("-", "_").replace("__", "--", 1), name.replace("_", "-")):
        if spelling in known:
            return spelling + equals + value
    return argument


def train(arguments: Sequence[str]) -> None:
    """Train an embedder by a recipe; then evaluate it, where the catalog has a test split."""
    from proxygml.training.recipe import Recipe, check_content, find_recipe, read_yaml

    parser = Parser("train", str(train.__doc__))
    parser.add_argument("--recipe", action="config", help=_RECIPE_HELP)
    parser.add_argument("--run", type=Path | None, default=None, help="the folder to make for this run")
    parser.add_argument("--resume", type=Path | None, default=None, help="go on with this run; takes no other option")
    parser.add_class_arguments(Recipe, as_group=False)
    arguments = [part for argument in arguments for part in _split_recipe(argument)]
    if "--recipe" in arguments[:-1]:
        place = arguments.index("--recipe")
        path = find_recipe(arguments[place + 1])
        check_content(read_yaml(path), str(path))
        # In front of all others, because what is read later wins.
        arguments = ["--recipe", str(path), *arguments[:place], *arguments[place + 2 :]]
    options = parser.parse(arguments)
    if options.resume is not None:
        if len(arguments) != (2 if arguments[0] == "--resume" else 1):
            raise UserError("--resume takes no other option: the run folder holds the recipe of the run")
        _train(options.resume, None)
    elif options.run is None:
        raise UserError("no run folder is given: name one with --run (or go on with one by --resume)")
    else:
        _train(options.run, _recipe(parser.instantiate(options)))


def _split_recipe(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--recipe=") else [argument]


def _recipe(options: Namespace) -> "Recipe":
    """The recipe that the options hold, with absolute paths, since the run folder remembers them."""
    from proxygml.training.recipe import Recipe

    recipe = Recipe(**{key.name: options[key.name] for key in fields(Recipe)})
    catalog = str(Path(recipe.catalog).resolve()) if recipe.catalog else ""
    weights = recipe.embedder.weights
    if weights not in ("pretrained", "none"):
        weights = str(Path(weights).resolve())
    return replace(recipe, catalog=catalog, embedder=replace(recipe.embedder, weights=weights))


def _train(folder: Path, recipe: "Recipe | None", before: bool = False) -> None:
    """Start a run, or go on with one where no recipe is given; then evaluate it."""
    from proxygml.data.catalog import Catalog
    from proxygml.training.run_folder import RunFolder
    from proxygml.training.trainer import fit, resume

    run = RunFolder(folder)
    if recipe is None:
        resume(run)
    else:
        fit(recipe, run)
    if "test" in Catalog.read(run.read_recipe().catalog).counts:
        _evaluate(folder, None, before)


def _evaluate(folder: Path, catalog: Path | None, before: bool) -> None:
    from proxygml.training.evaluate_run import evaluate_run
    from proxygml.training.run_folder import RunFolder

    run = RunFolder(folder)
    evaluation = evaluate_run(run, catalog, before=before)
    if evaluation is not None:
        output.print(evaluation.table())
        say(f"figures: {run.evaluation}", f"report:  {run.report}")


def evaluate(arguments: Sequence[str]) -> None:
    """Evaluate a run on the test split of its catalog, or of another one."""
    parser = Parser("evaluate", str(evaluate.__doc__))
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--catalog", type=Path | None, default=None, help="a table whose test split is taken instead")
    parser.add_argument("--before", action="store_true", help="evaluate the network as it was before training too")
    options = parser.parse(arguments)
    _evaluate(options.run, options.catalog, options.before)


def compare(arguments: Sequence[str]) -> None:
    """Train and judge many losses with many seeds under one protocol, and make one table; goes on where it stopped."""
    from proxygml.training.recipe import Recipe

    parser = Parser("compare", str(compare.__doc__))
    parser.add_argument("--recipe", default="", help="a comparison's YAML file, or the name of one of ours")
    parser.add_argument("--run", type=Path | None, default=None, help="the folder of the comparison")
    parser.add_argument("--part", default="1/1", help="2/8: the second of eight parts, on machines that share --run")
    parser.add_argument(
        "--from",
        type=Path,
        nargs="+",
        default=[],
        help="rows of cells.csv files: with --recipe they are not trained again, with --out they alone make the table",
    )
    parser.add_argument("--out", type=Path | None, default=None, help="the folder for a table of --from alone")
    parser.add_class_arguments(Recipe, as_group=False)
    options = parser.parse(arguments)
    if options.out is not None:
        if not options["from"] or options.recipe or options.run:
            raise UserError("--out is the folder for a table of --from alone, without --recipe and --run")
        _check_idle_options(parser, options, ("from", "out"))
        _tabulate(options["from"], options.out)
    elif not options.recipe or options.run is None:
        alone = "; or, for a table of rows alone, --from and --out" if options["from"] else ""
        raise UserError(f"a comparison needs its recipe, --recipe, and its folder, --run{alone}")
    else:
        _compare(parser, arguments, options.recipe, options.run, options.part, options["from"])


def _check_idle_options(parser: Parser, options: Namespace, used: Sequence[str]) -> None:
    """Name an option that was given, but changes nothing beside those that are used."""
    given, defaults = options.as_flat(), parser.get_defaults().as_flat()
    for name, value in vars(given).items():
        if name not in used and value != getattr(defaults, name, None):
            raise UserError(f"--{name} changes nothing beside --{' and --'.join(used)}: leave it out")


def _compare(
    parser: Parser, arguments: Sequence[str], name: str, folder: Path, part: str, known: Sequence[Path]
) -> None:
    from accelerate import PartialState

    from proxygml.comparison.plan import Comparison
    from proxygml.comparison.runner import Cells, Part
    from proxygml.comparison.tables import read_rows
    from proxygml.training.recipe import SECTIONS, find_recipe, flattened, recipe_keys

    comparison = Comparison.read(find_recipe(name, "compare"))
    shared = flattened(comparison.shared.content())
    # Options win over what all methods share.
    parser.set_defaults({key: shared[key] for key in recipe_keys() if key in shared and key not in SECTIONS})
    comparison = replace(comparison, shared=_recipe(parser.instantiate(parser.parse(arguments))))
    share, cells = Part.read(part), Cells(comparison, folder, read_rows(known) if known else None)
    cells.run(share)
    if not PartialState().is_main_process:
        return
    from proxygml.files import atomic_write

    rows = cells.gather()
    if rows.empty:
        say("no cell is finished yet, and this part has none to train: there is no table")
        return
    with atomic_write(cells.rows_file) as temporary:
        rows.to_csv(temporary, index=False)
    say(f"cells:  {cells.rows_file}")
    _write_comparison(rows, folder, cells.planned())


def _tabulate(paths: Sequence[Path], folder: Path) -> None:
    from proxygml.comparison.tables import read_rows

    _write_comparison(read_rows(paths), folder, ())


def _write_comparison(rows: "DataFrame", folder: Path, planned: Sequence[tuple[str, int]]) -> None:
    from proxygml.comparison.report import write_comparison
    from proxygml.comparison.tables import Summary

    summary = Summary(rows, planned)
    write_comparison(folder, folder.resolve().name, summary)
    say((folder / "table.md").read_text(encoding="utf-8"))
    say(f"table:  {folder / 'table.md'}", f"report: {folder / 'comparison.html'}")


def prepare(arguments: Sequence[str]) -> None:
    """Turn an official download, or images of your own, into a checked catalog."""
    from proxygml.data.datasets import DATASETS

    names = [dataset.name for dataset in DATASETS]
    if not arguments or arguments[0] in ("-h", "--help"):
        say("usage: proxygml prepare DATASET --out CATALOG [options]", "", str(prepare.__doc__), "")
        for dataset in DATASETS:
            say(f"  {dataset.name:<10}{str(dataset.read.__doc__).splitlines()[0]}")
        say("", "proxygml prepare DATASET --help lists the options of one.")
        return
    if arguments[0] not in names:
        close = get_close_matches(arguments[0], names, n=1)
        hint = (
            f"did you mean {close[0]}?" if close else f"those are {', '.join(names)}; for your own images take folder"
        )
        raise UserError(f"{arguments[0]!r} is none of the data sets that can be prepared: {hint}")
    _prepare(DATASETS[names.index(arguments[0])], arguments[1:])


def _prepare(dataset: "Dataset", arguments: Sequence[str]) -> None:
    from proxygml.data.prepare import OnBad, prepare

    parser = Parser(f"prepare {dataset.name}", str(dataset.read.__doc__).splitlines()[0])
    if not dataset.makes_images:
        parser.add_argument("--root", type=Path, required=True, help="the official archive, or the folder of it")
    parser.add_argument("--out", type=Path, required=True, help="the catalog to write, a .parquet or .csv file")
    parser.add_argument("--on-bad", type=OnBad, default="fail", help="fail: write nothing; drop: leave bad images out")
    parser.add_argument("--force", action="store_true", help="replace what is there already")
    parser.add_argument("--workers", type=int | None, default=None, help="images opened at a time; all processors")
    parser.add_argument("--resize", type=int | None, default=None, help="store copies whose shorter side has N pixels")
    first = next(iter(signature(dataset.read).parameters))
    options_of_its_own = parser.add_function_arguments(dataset.read, as_group=False, skip={first})
    options = parser.parse(arguments)
    read = partial(dataset.read, **{name: options[name] for name in options_of_its_own})
    prepare(
        replace(dataset, read=read),
        options.get("root"),
        options.out,
        on_bad=options.on_bad,
        force=options.force,
        workers=options.workers,
        resize=options.resize,
    )


def embed(arguments: Sequence[str]) -> None:
    """Write the vectors of images, with their paths, to a Parquet file."""
    parser = Parser("embed", str(embed.__doc__))
    parser.add_argument("run", type=Path, help="the run folder")
    _add_source(parser)
    parser.add_argument("--out", type=Path, required=True, help="the .parquet file to write")
    _add_embedding(parser)
    options = parser.parse(arguments)
    from proxygml.data.vector_file import write_vectors
    from proxygml.files import check_ending, check_overwrite
    from proxygml.gallery.build import Model
    from proxygml.models.embed_images import discard

    check_ending(options.out, ".parquet")
    check_overwrite(options.out, options.force)
    model, work = Model.of(options.run), options.out.with_name(f".{options.out.name}.partial")
    embedded = _embedded(model, work, options)
    facts = {"model": model.fingerprint, "run": str(model.run)}
    write_vectors(options.out, embedded.blocks(), **facts, force=options.force)
    discard(work)
    say(f"{len(embedded):,} vectors of size {embedded.dimension}: {options.out}")


def _embedded(model: "Model", work: Path, options: Namespace) -> "EmbeddedImages":
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


def _add_source(parser: Parser) -> None:
    parser.add_argument("--catalog", type=Path | None, default=None, help="a table of images")
    parser.add_argument("--split", default="all", help="of the catalog: train, val, test, or all")
    parser.add_argument("--images", type=Path, nargs="+", default=None, help="folders of images, or image files")


def _add_embedding(parser: Parser) -> None:
    bad = "unreadable images, named in any case; fail: end there, keeping what is done; drop: leave them out"
    parser.add_argument("--on-bad", type=Literal["fail", "drop"], default="fail", help=bad)
    parser.add_argument("--force", action="store_true", help="replace what is there already")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images; 0 decodes in this one")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time")


def index(arguments: Sequence[str]) -> None:
    """Build a gallery to be searched; add items to it, or remove some."""
    parser = Parser("index", str(index.__doc__))
    parser.add_argument(
        "run", type=Path | None, nargs="?", default=None, help="the run folder; a gallery knows its own"
    )
    _add_source(parser)
    parser.add_argument("--vectors", type=Path | None, default=None, help="a file that `proxygml embed` wrote")
    parser.add_argument("--out", type=str, required=True, help=f"the gallery: {_GALLERY_HELP}")
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
    _add_embedding(parser)
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
    say(f"{len(gallery):,} items, {gallery.facts.kind}: {options.out}")
    if gallery.facts.recall is not None:
        say(f"recall@10 against exact search: {gallery.facts.recall:.3f} (its own items as queries)")
    if (threshold := gallery.facts.threshold) is not None:
        say(
            f"threshold {threshold.score:.3f}: of {threshold.queries:,} images of {threshold.classes:,} validation "
            f"classes {threshold.false_accept_rate:.1%} are accepted when their class is not in the gallery"
            + ("" if threshold.true_accept_rate is None else f", {threshold.true_accept_rate:.1%} when it is")
        )


def _add(options: Namespace) -> None:
    from proxygml.gallery.build import Model, Source, add_items
    from proxygml.gallery.folder import Gallery

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
    if added and (threshold := gallery.facts.threshold) is not None:
        say(
            f"threshold {threshold.score:.3f} for none of these stays as it was chosen when it was built: a larger "
            "gallery accepts more of unknown classes; `index` without --add chooses it anew"
        )


def _remove(options: Namespace) -> None:
    from proxygml.gallery.filters import column_values
    from proxygml.gallery.folder import Gallery

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


def search(arguments: Sequence[str]) -> None:
    """Find the images of a gallery that are most similar to yours."""
    parser = Parser("search", str(search.__doc__))
    parser.add_argument("gallery", type=str, help=_GALLERY_HELP)
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
    from proxygml.gallery.build import Model
    from proxygml.gallery.filters import column_values
    from proxygml.gallery.folder import Gallery
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


def cluster(arguments: Sequence[str]) -> None:
    """Sort images into clusters, report near-duplicates, draw a contact sheet of each cluster."""
    from proxygml.gallery.clustering import ClusterSettings, Layout, check_clusters_folder, summary, write_clusters

    parser = Parser("cluster", str(cluster.__doc__))
    parser.add_argument("run", type=Path, help="the run folder")
    _add_source(parser)
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    layout = "table: clusters.csv; links or copies: folders of the images too"
    parser.add_argument("--layout", type=Layout, default="links", help=layout)
    parser.add_class_arguments(ClusterSettings, as_group=False)
    _add_embedding(parser)
    options = parser.parse(arguments)
    from proxygml.data.image_list import ImageList
    from proxygml.gallery.build import Model
    from proxygml.models.embed_images import discard

    settings = ClusterSettings(**{key.name: options[key.name] for key in fields(ClusterSettings)})
    check_clusters_folder(options.out, options.force)
    model, work = Model.of(options.run), options.out.with_name(f".{options.out.name}.partial")
    embedded = _embedded(model, work, options)
    vectors, table = embedded.whole()
    found = write_clusters(options.out, ImageList(table), vectors, settings, options.layout, options.force)
    discard(work)
    say(summary(*found), f"clusters: {options.out / 'clusters.csv'}", f"sheets:   {options.out / 'sheets'}")


def serve(arguments: Sequence[str]) -> None:
    """Answer searches over HTTP, and show a page to search on."""
    check_extra("serve", "fastapi", "gradio", "python_multipart", "prometheus_client", "uvicorn")
    from proxygml.serving.service import Limits, Service

    parser = Parser("serve", str(serve.__doc__))
    parser.add_argument("gallery", help="the folder of the gallery, NAME.db or the URI of a Milvus server")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--run", type=Path | None, default=None, help="the run folder, if it has moved")
    parser.add_argument("--page", type=bool, default=True, help="whether there is a page beside the interface")
    parser.add_class_arguments(Limits, as_group=False)
    options = parser.parse(arguments)
    from proxygml.gallery.build import Model
    from proxygml.gallery.folder import Gallery
    from proxygml.serving.api import listen, make_app, run_server

    limits = Limits(**{key.name: options[key.name] for key in fields(Limits)})
    gallery = Gallery.load(options.gallery)
    service = Service(gallery, Model.of_gallery(gallery, options.run).embedder(), limits)
    token = os.environ.get("PROXYGML_TOKEN", "")
    app = make_app(service, token)
    if options.page:
        from proxygml.serving.page import add_page

        app = add_page(app, service)
    with listen(options.host, options.port) as (socket, address):
        say(
            f"{len(gallery):,} items: {address}",
            f"interface: {address}/docs",
            "changes: with the token of PROXYGML_TOKEN" if token else "changes: none, as PROXYGML_TOKEN is not set",
        )
        run_server(app, socket)


def demo(arguments: Sequence[str]) -> None:
    """Prepare the built-in glyphs, train on some scripts, test on others, and report; a few minutes on two cores."""
    parser = Parser("demo", str(demo.__doc__))
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="the folder to make; a stopped demo goes on there"
    )
    options = parser.parse(arguments)
    from proxygml.training.recipe import Recipe, find_recipe

    catalog, run = options.out / "glyphs.parquet", options.out / "run"
    if not catalog.exists():
        prepare(["glyphs", "--out", str(catalog), "--force"])
    started = (run / "recipe.yaml").exists()
    recipe = None if started else replace(Recipe.read(find_recipe("glyphs")), catalog=str(catalog.resolve()))
    _train(run, recipe, before=True)
    content = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    first, last = (part["recall"]["1"]["value"] for part in (content["before_training"], content))
    say(f"Recall@1 on scripts never seen in training: {first:.1%} before training, {last:.1%} after")
    say(f"the run: {run}", f"open the report: {run / 'report.html'}")


def export(arguments: Sequence[str]) -> None:
    """Write a trained embedder as an ONNX file, and how to prepare images for it as JSON beside it."""
    parser = Parser("export", str(export.__doc__))
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--onnx", type=Path, required=True, help="the file to write, such as birds.onnx")
    parser.add_argument("--force", action="store_true", help="replace what is there already")
    options = parser.parse(arguments)
    from proxygml.models.onnx import export_onnx

    difference = export_onnx(options.run, options.onnx, force=options.force)
    say(f"model:         {options.onnx} (differs from PyTorch by at most {difference:.1e})")
    say(f"preprocessing: {options.onnx.with_suffix('.json')}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": demo,
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "embed": embed,
    "index": index,
    "search": search,
    "cluster": cluster,
    "serve": serve,
    "export": export,
}


def say(*lines: str) -> None:
    """Results on standard output, as they are."""
    for line in lines:
        output.print(line, markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit status 2 for a user's mistake, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _run(arguments)
        _part()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks for all
            console.print(f"proxygml: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        console.print(f"proxygml: {error.filename}: {error.strerror}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print(
            "stopped; the same command goes on with an embed, index, cluster or compare, train --resume RUN with a run",
            markup=False,
        )
        sys.exit(130)


def _part() -> None:
    """Part from the other processes of a run, if any: threads that still talk to them at the exit would abort it."""
    distributed = sys.modules.get("torch.distributed")  # not loaded by commands that need no torch
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _run(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        say("usage: proxygml COMMAND [options]", "", "Image embeddings for classes never seen in training.", "")
        say(*(f"  {name:<10}{function.__doc__}" for name, function in COMMANDS.items()))
        say("", "proxygml COMMAND --help lists the options of one.")
    elif arguments[0] == "--version":
        say(__version__)
    elif arguments[0] in COMMANDS:
        COMMANDS[arguments[0]](arguments[1:])
    else:
        close = get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"those are {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {arguments[0]!r}: {hint}")
