"""`proxygml evaluate`."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxygml.cli.inputs import check_inputs
from proxygml.cli.output import output, say
from proxygml.cli.parser import Parser
from proxygml.urls import Place

if TYPE_CHECKING:
    from proxygml.evaluation.metrics import Evaluation
    from proxygml.training.run_folder import RunFolder


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Evaluate a run."""
    parser.usage = "%(prog)s RUN [options]"
    parser.add_argument("run", type=Place, help="the run folder")
    words = "a table whose test split is used in place of the run's own"
    parser.add_argument("--catalog", type=Place | None, default=None, help=words)
    words = "also evaluate the network as it was before training"
    parser.add_argument("--before", action="store_true", help=words)
    words = "also show training and validation items on the report's map, at most as many as there are test items"
    parser.add_argument("--all_splits", action="store_true", help=words)
    options = parser.parse(arguments)
    check_inputs(run=options.run, catalog=options.catalog)
    from proxygml.training.evaluate_run import evaluate_run
    from proxygml.training.remote_run import evaluated_run

    with evaluated_run(options.run, options.catalog) as folder:
        vectors = folder.read_recipe().takes_vectors  # whose map and whose figures as they came cost nothing
        before, all_splits = options.before or vectors, options.all_splits or vectors
        evaluation = evaluate_run(folder, options.catalog, before=before, all_splits=all_splits)
        print_evaluation(folder, evaluation, options.catalog, before=before)


def print_evaluation(
    folder: "RunFolder", evaluation: "Evaluation | None", catalog: Place | None = None, before: bool = False
) -> None:
    """Print the figures and the paths of their files; only the main process has them, so the others print nothing.

    Args:
        folder: the run.
        evaluation: the figures that were just written.
        catalog: the catalog that they are of, where it is not the run's own.
        before: whether the file also holds those of the network before training, to print beside them.
    """
    if evaluation is not None:
        from proxygml.evaluation.metrics import Estimate, Evaluation

        place = folder.evaluation_on(catalog)
        content = json.loads(place.figures.read_text(encoding="utf-8"))
        earlier = Evaluation.from_dict(content["before_training"]) if before else None
        gain = {name: Estimate(**estimate) for name, estimate in content.get("gain", {}).items()} if before else None
        output.print(evaluation.table(earlier, gain))
        for size, figures in content.get("prefixes", {}).items():
            shorter = Evaluation.from_dict(figures).figures()
            values = ", ".join(f"{name} {100 * figure.value:.1f}" for name, figure in shorter.items())
            say(f"by the first {size} numbers: {values}")
        say(f"figures: {folder.shown(place.figures)}", f"report:  {folder.shown(place.report)}")
