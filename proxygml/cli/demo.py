"""`proxygml demo`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.cli.train import train_and_evaluate


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Prepare, train and evaluate on images that are made here."""
    words = "the folder to make; a stopped demo continues there"
    parser.add_argument("--out", type=Path, default=Path("demo"), help=words)
    options = parser.parse(arguments)
    from proxygml.data.preparing.prepare import prepare
    from proxygml.training.recipe import Recipe
    from proxygml.training.recipe_files import find_recipe
    from proxygml.training.run_folder import RunFolder

    catalog, folder = options.out / "glyphs.parquet", options.out / "run"
    if not catalog.exists():
        prepare("glyphs", None, catalog, force=True)
    started = (folder / "recipe.yaml").exists()
    recipe = None if started else replace(Recipe.read(find_recipe("glyphs")), catalog=str(catalog))
    train_and_evaluate(recipe, RunFolder(folder), before=True)
    content = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    first, last = (part["recall"]["1"]["value"] for part in (content["before_training"], content))
    say(f"Recall@1 on scripts never seen in training: {first:.1%} before training, {last:.1%} after")
    say(f"the run: {folder}", f"open the report: {folder / 'report.html'}")
