"""`proxygml compare`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace

from proxygml.cli.inputs import check_inputs
from proxygml.cli.options import add_ray, recipe_with
from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.errors import UserError

RAY = ("ray", "ray_cpus", "ray_gpus")
OWN = ("recipe", "run", "methods", "from", "out", "parallel", *RAY)


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Run a comparison, or make a table of rows that exist already."""
    from proxygml.training.recipe import Recipe

    parser.usage = "%(prog)s --recipe RECIPE --catalog CATALOG --run FOLDER [options]"
    words = "the YAML file of a comparison, or the name of one that comes with proxygml, such as glyphs"
    parser.add_argument("--recipe", default="", help=words)
    parser.add_argument("--run", type=Path | None, default=None, help="the folder of the comparison")
    words = "names of methods, or of families of them, that are compared; the others are left out (default: all)"
    parser.add_argument("--methods", type=str, nargs="+", default=[], help=words)
    words = "cells.csv files of other machines or days: with --recipe, their rows are not trained again; with --out, "
    parser.add_argument("--from", type=Path, nargs="+", default=[], help=words + "the table is made of them alone")
    words = "the folder for a table of the rows of --from alone"
    parser.add_argument("--out", type=Path | None, default=None, help=words)
    words = "trials and cells that train at a time on this machine, which share its processors and GPUs (default: 1)"
    parser.add_argument("--parallel", type=int, help=words)
    add_ray(parser, "train many cells at a time")
    words = "with --ray: processors of each cell (default: one for each of its workers)"
    parser.add_argument("--ray_cpus", type=int, help=words)
    words = "with --ray: GPUs of each cell, such as 0.5 where two share one (default: one, where there are some)"
    parser.add_argument("--ray_gpus", type=float, help=words)
    parser.add_class_arguments(Recipe, as_group=False)
    parser.takes_urls("catalog", "embedder.weights")
    options = parser.parse(arguments, only_given=True)
    rows = options.get("from", [])
    if "out" in options:
        _check_table_options(options)
        check_inputs(rows=rows)
        from proxygml.comparison.compare import tabulate

        tabulate(rows, options.out)
        _print_table(options.out)
        return
    if not options.get("recipe") or "run" not in options:
        alone = "; or, for a table of rows alone, --from and --out" if rows else ""
        raise UserError(f"a comparison needs its recipe, --recipe, and its folder, --run{alone}")
    check_inputs(rows=rows)
    from proxygml.comparison.plan import Comparison
    from proxygml.training.recipe_files import find_recipe

    path = find_recipe(options.recipe, "compare")
    comparison = Comparison.read(path)
    shared = recipe_with(comparison.shared.content(), options, OWN, str(path))
    check_inputs(catalog=shared.catalog)
    from proxygml.comparison.compare import compare

    given = {name: options[name] for name in RAY if name in options}
    if "ray" not in given and given:
        raise UserError(f"--{next(iter(given))} is for --ray, which is not given")
    parallel = options.get("parallel", 1)
    methods = options.get("methods", [])
    found = compare(
        replace(comparison, shared=shared), options.run, methods=methods, rows=rows, parallel=parallel, **given
    )
    if found is not None:
        say(f"cells:  {options.run / 'cells.csv'}")
        _print_table(options.run)


def _check_table_options(options: Namespace) -> None:
    """Raise UserError where options beside --from and --out were given, which would change nothing."""
    if "from" not in options or "recipe" in options or "run" in options:
        raise UserError("--out is the folder for a table of --from alone, without --recipe and --run")
    for name in vars(options):
        if name not in ("from", "out"):
            raise UserError(f"--{name} changes nothing beside --from and --out: leave it out")


def _print_table(folder: Path) -> None:
    say((folder / "table.md").read_text(encoding="utf-8"))
    say(f"table:  {folder / 'table.md'}", f"report: {folder / 'comparison.html'}")
