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
from typing import TYPE_CHECKING, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from rich.console import Console

from proxygml import __version__
from proxygml.console import console
from proxygml.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

    from proxygml.datasets import Dataset
    from proxygml.recipe import Recipe

output = Console()

set_parsing_settings(docstring_parse_attribute_docstrings=True)

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
        from proxygml.recipe import nearest_key

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
    from proxygml.recipe import Recipe, check_content, find_recipe, read_yaml

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
    from proxygml.recipe import Recipe

    recipe = Recipe(**{key.name: options[key.name] for key in fields(Recipe)})
    catalog = str(Path(recipe.catalog).resolve()) if recipe.catalog else ""
    weights = recipe.embedder.weights
    if weights not in ("pretrained", "none"):
        weights = str(Path(weights).resolve())
    return replace(recipe, catalog=catalog, embedder=replace(recipe.embedder, weights=weights))


def _train(folder: Path, recipe: "Recipe | None", before: bool = False) -> None:
    """Start a run, or go on with one where no recipe is given; then evaluate it."""
    from proxygml.catalog import Catalog
    from proxygml.run_folder import RunFolder
    from proxygml.training import fit, resume

    run = RunFolder(folder)
    if recipe is None:
        resume(run)
    else:
        fit(recipe, run)
    if "test" in Catalog.read(run.read_recipe().catalog).counts:
        _evaluate(folder, None, before)


def _evaluate(folder: Path, catalog: Path | None, before: bool) -> None:
    from proxygml.protocol import evaluate_run
    from proxygml.run_folder import RunFolder

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
    from proxygml.recipe import Recipe

    parser = Parser("compare", str(compare.__doc__))
    parser.add_argument("--recipe", default="", help="a comparison's YAML file, or the name of one of ours")
    parser.add_argument("--run", type=Path | None, default=None, help="the folder of the comparison")
    parser.add_argument("--part", default="1/1", help="2/8: the second of eight parts, on machines that share --run")
    parser.add_argument("--from", type=Path, nargs="+", default=[], help="make the table of these cells.csv alone")
    parser.add_argument("--out", type=Path | None, default=None, help="with --from: the folder for the table")
    parser.add_class_arguments(Recipe, as_group=False)
    options = parser.parse(arguments)
    if options["from"]:
        if options.out is None or options.recipe or options.run:
            raise UserError("--from takes --out, the folder for the table, and no other option")
        _tabulate(options["from"], options.out)
    elif not options.recipe or options.run is None:
        raise UserError("a comparison needs its recipe, --recipe, and its folder, --run")
    else:
        _compare(parser, arguments, options.recipe, options.run, options.part)


def _compare(parser: Parser, arguments: Sequence[str], name: str, folder: Path, part: str) -> None:
    from accelerate import PartialState

    from proxygml.cells import Cells, Part
    from proxygml.comparison import Comparison
    from proxygml.recipe import SECTIONS, find_recipe, flattened, recipe_keys

    comparison = Comparison.read(find_recipe(name, "compare"))
    shared = flattened(comparison.shared.content())
    # Options win over what all methods share.
    parser.set_defaults({key: shared[key] for key in recipe_keys() if key in shared and key not in SECTIONS})
    comparison = replace(comparison, shared=_recipe(parser.instantiate(parser.parse(arguments))))
    share, cells = Part.read(part), Cells(comparison, folder)
    cells.run(share)
    if not PartialState().is_main_process:
        return
    from proxygml.files import written_whole

    rows = cells.gather()
    with written_whole(folder / "cells.csv") as temporary:
        rows.to_csv(temporary, index=False)
    _write_comparison(rows, folder, cells.planned())


def _tabulate(paths: Sequence[Path], folder: Path) -> None:
    from proxygml.summary import read_rows

    _write_comparison(read_rows(paths), folder, ())


def _write_comparison(rows: "DataFrame", folder: Path, planned: Sequence[tuple[str, int]]) -> None:
    from proxygml.report import write_comparison
    from proxygml.summary import Summary

    summary = Summary(rows, planned)
    write_comparison(folder, folder.resolve().name, summary)
    say((folder / "table.md").read_text(encoding="utf-8"))
    say(f"cells:  {folder / 'cells.csv'}", f"table:  {folder / 'table.md'}", f"report: {folder / 'comparison.html'}")


def prepare(arguments: Sequence[str]) -> None:
    """Turn an official download, or images of your own, into a checked catalog."""
    from proxygml.datasets import DATASETS

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
    from proxygml.prepare import OnBad, prepare

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


def demo(arguments: Sequence[str]) -> None:
    """Prepare the built-in glyphs, train on some scripts, test on others, and report; a few minutes on two cores."""
    parser = Parser("demo", str(demo.__doc__))
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="the folder to make; a stopped demo goes on there"
    )
    options = parser.parse(arguments)
    from proxygml.recipe import Recipe, find_recipe

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


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": demo,
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
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
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks for all
            console.print(f"proxygml: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        console.print(f"proxygml: {error.filename}: {error.strerror}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print(
            "stopped; a training run goes on with proxygml train --resume RUN, a comparison by the same command",
            markup=False,
        )
        sys.exit(130)


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
