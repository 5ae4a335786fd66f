"""`proxygml prepare`."""

from collections.abc import Sequence
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING

from proxygml.cli.inputs import check_inputs
from proxygml.cli.options import add_force, add_on_bad, add_ray, chosen
from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.errors import UserError
from proxygml.urls import Place, as_place

if TYPE_CHECKING:
    from proxygml.data.datasets import Dataset


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Prepare the data set that is named first, or list all; or change the paths or the labels of a catalog."""
    from proxygml.data.datasets import find_dataset
    from proxygml.data.datasets.layout import check_root

    if not arguments or arguments[0] in ("-h", "--help"):
        _print_datasets(parser)
        return
    if arguments[0].startswith("-"):
        _change(parser, arguments)
        return
    dataset = find_dataset(arguments[0])
    parser = Parser(f"prepare {dataset.name}", _purpose(dataset))
    given = 1 if dataset.makes_images else 0  # the folder to make images in is not an option; --root is one
    own = parser.add_function_arguments(dataset.read, as_group=False, skip={given} if given else None)
    parser.add_argument("--out", type=Path, required=True, help="the catalog to write, a .parquet or .csv file")
    add_on_bad(parser, "write no catalog")
    add_force(parser)
    if not dataset.has_vectors:
        words = "how many images are opened at a time (default: one per processor)"
        parser.add_argument("--workers", type=int | None, default=None, help=words)
        words = "store smaller copies of the images, this many pixels on the shorter side"
        parser.add_argument("--resize", type=int | None, default=None, help=words)
        words = "put the images together in shards, for training from a store of objects"
        parser.add_argument("--pack", action="store_true", help=words)
        add_ray(parser, "open the images in many processes")
    parser.takes_urls("root")
    options = parser.parse(arguments[1:])
    root = options.get("root")
    if root is not None:
        check_root(as_place(root, "--root"), dataset.name)
    from proxygml.data.preparing.prepare import prepare

    prepare(
        dataset,
        root,
        options.out,
        options=chosen(options, *(key for key in own if key != "root")),
        **chosen(options, "on_bad", "force", *(() if dataset.has_vectors else ("workers", "resize", "pack", "ray"))),
    )
    say(f"catalog: {options.out}")


def _change(parser: Parser, arguments: Sequence[str]) -> None:
    """Change a catalog: no data set is named, but one of the options that say how."""
    given = {argument.partition("=")[0] for argument in arguments}
    if "--labels" in given:
        _correct(parser, arguments)
    elif "--rebase" in given:
        _rebase(parser, arguments)
    else:
        raise UserError(f"name what to prepare first, as in `proxygml prepare folder {' '.join(arguments[:2])} ...`")


def _rebase(parser: Parser, arguments: Sequence[str]) -> None:
    """Change where the paths of a catalog begin."""
    parser.usage = "%(prog)s --rebase OLD NEW --out CATALOG"
    words = "change where the images' paths begin, because their files were moved"
    parser.add_argument("--rebase", nargs=2, metavar=("OLD", "NEW"), required=True, help=words)
    parser.add_argument("--out", type=Path, required=True, help="the catalog, or a file that `proxygml embed` wrote")
    options = parser.parse(arguments)
    from proxygml.console import warn
    from proxygml.data.preparing.rebase import rebase_catalog
    from proxygml.errors import counted, first_few

    done = rebase_catalog(options.out, *options.rebase)
    if done.missing:
        words = f"{counted(len(done.missing), 'file')} not found at the new place: {first_few(done.missing)}"
        warn(words)
    say(f"{done.changed:,} of {counted(done.rows, 'path')} changed: {options.out}")


def _correct(parser: Parser, arguments: Sequence[str]) -> None:
    """Apply corrected labels to a catalog."""
    parser.usage = "%(prog)s --labels CORRECTIONS --catalog CATALOG --out CATALOG [options]"
    words = "corrections, as the page of `proxygml audit` saves them: row, decision (keep, correct, remove), corrected"
    parser.add_argument("--labels", type=Path, required=True, help=words)
    parser.add_argument("--catalog", type=Place, required=True, help="the catalog that was audited")
    words = "the corrected catalog to write; with --force it may be the same file"
    parser.add_argument("--out", type=Path, required=True, help=words)
    words = "accept corrected labels that no row of the catalog has"
    parser.add_argument("--new_classes", action="store_true", help=words)
    add_force(parser)
    options = parser.parse(arguments)
    check_inputs(catalog=options.catalog)
    from proxygml.console import warn
    from proxygml.data.catalog.corrections import correct_labels
    from proxygml.data.preparing.report import print_counts
    from proxygml.errors import counted

    done = correct_labels(options.labels, options.catalog, options.out, **chosen(options, "new_classes", "force"))
    for warning in done.warnings:
        warn(warning)
    print_counts(done.catalog, options.out)
    say(
        f"{counted(done.changed, 'label')} corrected ({done.moved:,} moved to the split of the new class), "
        f"{counted(done.removed, 'row')} removed",
        f"catalog: {options.out}",
    )


def _print_datasets(parser: Parser) -> None:
    from proxygml.data.datasets import DATASETS

    say(f"usage: {parser.prog} DATASET --out CATALOG [options]")
    say(f"       {parser.prog} --rebase OLD NEW --out CATALOG")
    say(f"       {parser.prog} --labels CORRECTIONS --catalog CATALOG --out CATALOG", "", str(parser.description), "")
    width = min(get_terminal_size().columns, 120)
    for dataset in DATASETS:
        say(fill(_purpose(dataset), width, initial_indent=f"  {dataset.name:<12}", subsequent_indent=" " * 14))
    say("", f"{parser.prog} DATASET --help lists the options of a data set.")
    say("--rebase OLD NEW changes where the paths of a catalog begin, after its images were moved.")
    say("--labels CORRECTIONS applies corrected labels, as the page of `proxygml audit` saves them, to a catalog.")


def _purpose(dataset: "Dataset") -> str:
    return str(dataset.read.__doc__).splitlines()[0]
