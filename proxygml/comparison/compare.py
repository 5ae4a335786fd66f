"""Running a comparison and making its table: the functions behind `proxygml compare`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from proxygml.arguments import check_arguments
from proxygml.comparison.plan import Comparison
from proxygml.comparison.process import end_where_imported
from proxygml.comparison.report import write_comparison
from proxygml.comparison.row import read_rows, write_rows
from proxygml.comparison.runner import Part, Runner
from proxygml.comparison.tables import Summary
from proxygml.console import console
from proxygml.files import PathLike, local_path, local_paths
from proxygml.training.recipe_files import find_recipe
from proxygml.training.train import with_absolute_paths
from proxygml.urls import check_places


@check_arguments
def compare(
    recipe: Comparison | PathLike,
    run: PathLike,
    *,
    catalog: PathLike | None = None,
    part: str = "1/1",
    rows: PathLike | Sequence[PathLike] = (),
) -> Summary | None:
    """Train and evaluate methods with several seeds under one protocol, and write one table of all.

    To continue a call that was stopped, or whose recipe has grown, repeat it. Each cell is trained in a process of its
    own, which imports your script again: in a script, call this under `if __name__ == "__main__":`.

    Args:
        recipe: its values, its YAML file, or the name of a comparison that comes with proxygml ("glyphs").
        run: the folder of the comparison: a run folder for each cell, cells.csv, table.md, table.csv, comparison.html.
        catalog: the table of images, in place of the recipe's own.
        part: "2/8" runs the second of eight parts, for machines that share the folder.
        rows: cells.csv files whose rows are not trained again.

    Returns:
        The table; None where no cell is finished yet, and on all but the main process.

    Raises:
        UserError: the recipe, a catalog or weights are missing or do not fit each other, the folder holds cells of
            another recipe or damaged files, or a script calls this without `if __name__ == "__main__":`.
    """
    end_where_imported()
    check_places(catalog=catalog)
    folder, files = local_path(run, "run"), local_paths(rows, "rows")
    comparison = recipe if isinstance(recipe, Comparison) else Comparison.read(find_recipe(str(recipe), "compare"))
    shared = comparison.shared if catalog is None else replace(comparison.shared, catalog=str(catalog))
    share, known = Part.read(part), read_rows(files)
    runner = Runner(replace(comparison, shared=with_absolute_paths(shared)), folder, known)
    runner.run(share)
    if not PartialState().is_main_process:
        return None
    found = runner.rows()
    if not found:
        console.print("no cell is finished yet, and this part has none to train: there is no table", markup=False)
        return None
    write_rows(runner.store.rows_file, found)
    return _write(Summary(found, runner.planned()), folder)


@check_arguments
def tabulate(rows: PathLike | Sequence[PathLike], out: PathLike) -> Summary:
    """Make the table and the report of a comparison from the rows of its cells.csv files alone.

    Args:
        rows: the files.
        out: the folder to write table.md, table.csv and comparison.html into.

    Returns:
        The table.

    Raises:
        UserError: a file is missing or no table of cells, or the rows are not of one comparison.
    """
    folder = local_path(out, "out")
    return _write(Summary(read_rows(local_paths(rows, "rows")), ()), folder)


def _write(summary: Summary, folder: Path) -> Summary:
    write_comparison(folder, folder.resolve().name, summary)
    return summary
