"""`proxygml evaluate`."""

from collections.abc import Sequence
from pathlib import Path

from proxygml.cli.output import output, say
from proxygml.cli.parser import Parser


def evaluate(arguments: Sequence[str]) -> None:
    """Evaluate a run on the test split of its catalog, or of another one."""
    parser = Parser("evaluate", str(evaluate.__doc__))
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--catalog", type=Path | None, default=None, help="a table whose test split is taken instead")
    parser.add_argument("--before", action="store_true", help="evaluate the network as it was before training too")
    options = parser.parse(arguments)
    evaluate_and_print(options.run, options.catalog, options.before)


def evaluate_and_print(folder: Path, catalog: Path | None, before: bool) -> None:
    from proxygml.training.evaluate_run import evaluate_run
    from proxygml.training.run_folder import RunFolder

    run = RunFolder(folder)
    evaluation = evaluate_run(run, catalog, before=before)
    if evaluation is not None:
        output.print(evaluation.table())
        say(f"figures: {run.evaluation}", f"report:  {run.report}")
