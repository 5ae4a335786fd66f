"""`proxygml demo`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.cli.prepare import prepare
from proxygml.cli.train import train_and_evaluate


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
    train_and_evaluate(run, recipe, before=True)
    content = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    first, last = (part["recall"]["1"]["value"] for part in (content["before_training"], content))
    say(f"Recall@1 on scripts never seen in training: {first:.1%} before training, {last:.1%} after")
    say(f"the run: {run}", f"open the report: {run / 'report.html'}")
