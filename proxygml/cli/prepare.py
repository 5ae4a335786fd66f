"""`proxygml prepare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from proxygml.cli.options import add_force, add_on_bad, chosen
from proxygml.cli.output import say
from proxygml.cli.parser import Parser

if TYPE_CHECKING:
    from proxygml.data.datasets import Dataset


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Prepare the data set that is named first, or list all."""
    from proxygml.data.datasets import find_dataset

    if not arguments or arguments[0] in ("-h", "--help"):
        _print_datasets(parser)
        return
    dataset = find_dataset(arguments[0])
    parser = Parser(f"prepare {dataset.name}", _purpose(dataset))
    if not dataset.makes_images:
        parser.add_argument("--root", type=Path, required=True, help="the official archive, or the folder of it")
    parser.add_argument("--out", type=Path, required=True, help="the catalog to write, a .parquet or .csv file")
    add_on_bad(parser, "write no catalog")
    add_force(parser)
    words = "images opened at a time (default: as many as there are processors)"
    parser.add_argument("--workers", type=int | None, default=None, help=words)
    words = "store copies whose shorter side has so many pixels"
    parser.add_argument("--resize", type=int | None, default=None, help=words)
    own = parser.add_function_arguments(dataset.read, as_group=False, skip={1})
    options = parser.parse(arguments[1:])
    from proxygml.data.prepare import prepare

    prepare(
        dataset,
        options.get("root"),
        options.out,
        options=chosen(options, *own),
        **chosen(options, "on_bad", "force", "workers", "resize"),
    )
    say(f"catalog: {options.out}")


def _print_datasets(parser: Parser) -> None:
    from proxygml.data.datasets import DATASETS

    say(f"usage: {parser.prog} DATASET --out CATALOG [options]", "", str(parser.description), "")
    say(*(f"  {dataset.name:<10}{_purpose(dataset)}" for dataset in DATASETS))
    say("", f"{parser.prog} DATASET --help lists the options of one.")


def _purpose(dataset: "Dataset") -> str:
    return str(dataset.read.__doc__).splitlines()[0]
