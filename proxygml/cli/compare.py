"""`proxygml compare`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.cli.train import recipe_of
from proxygml.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame


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
    comparison = replace(comparison, shared=recipe_of(parser.instantiate(parser.parse(arguments))))
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
