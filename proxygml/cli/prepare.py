"""`proxygml prepare`."""

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.errors import UserError

if TYPE_CHECKING:
    from proxygml.data.datasets import Dataset


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
    prepare_dataset(DATASETS[names.index(arguments[0])], arguments[1:])


def prepare_dataset(dataset: "Dataset", arguments: Sequence[str]) -> None:
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
