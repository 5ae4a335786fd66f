"""Running a comparison and making its table: the functions behind `proxygml compare`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from proxygml.arguments import check_arguments
from proxygml.comparison.on_ray import RayOptions, run_on_ray
from proxygml.comparison.plan import Comparison
from proxygml.comparison.process import end_where_imported
from proxygml.comparison.report import write_comparison
from proxygml.comparison.row import Row, read_rows, write_rows
from proxygml.comparison.runner import Runner
from proxygml.comparison.side_by_side import Processes, run_side_by_side
from proxygml.comparison.tables import Summary
from proxygml.errors import UserError
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
    methods: Sequence[str] = (),
    rows: PathLike | Sequence[PathLike] = (),
    parallel: int = 1,
    ray: str | None = None,
    ray_cpus: int | None = None,
    ray_gpus: float | None = None,
) -> Summary | None:
    """Train and evaluate methods with several seeds under one protocol, and write one table of all.

    To continue a call that was stopped, or whose recipe has grown, repeat it. Each cell is trained in a process of its
    own, which imports your script again: in a script, call this under `if __name__ == "__main__":`.

    Args:
        recipe: its values, its YAML file, or the name of a comparison that comes with proxygml ("glyphs").
        run: the folder of the comparison: a run folder for each cell, cells.csv, table.md, table.csv, comparison.html.
        catalog: the table of images, in place of the recipe's own.
        methods: names of methods, or of families of methods: the others are left out, with their rows; by default none
            is.
        rows: cells.csv files whose rows are not trained again.
        parallel: trials and cells that train at a time on this machine. They divide its processors, and take its GPUs
            in turn; on a large GPU, several networks that are too small to fill it share it.
        ray: the address of a Ray cluster, which trains many cells at a time; "auto" takes the Ray that runs on this
            machine, or starts one. The folder, the catalog, its images and the weights must be where all machines find
            them under the same paths. None trains one cell after the other.
        ray_cpus: with `ray`, processors of each cell, and threads that it computes with; by default one for each of the
            recipe's workers.
        ray_gpus: with `ray`, GPUs of each cell, such as 0.5 where two share one; by default one, where there are some.

    Returns:
        The table; None on all but the main process.

    Raises:
        UserError: the recipe, a catalog or weights are missing or do not fit each other, `parallel` and `ray` are both
            given, the folder holds cells of another recipe or damaged files, or a script calls this without
            `if __name__ == "__main__":`.
    """
    end_where_imported()
    if ray is not None and parallel != 1:
        raise UserError("--parallel is for one machine, --ray for a cluster: give one of them")
    check_places(catalog=catalog)
    folder, files = local_path(run, "run"), local_paths(rows, "rows")
    comparison = recipe if isinstance(recipe, Comparison) else Comparison.read(find_recipe(str(recipe), "compare"))
    runner = _runner(comparison, folder, catalog, methods, read_rows(files))
    several = "ray" if ray is not None else "parallel" if parallel != 1 else None
    if several and PartialState().num_processes > 1:
        raise UserError(f"--{several} starts the processes itself: call it without torchrun and accelerate launch")
    if ray is not None:
        run_on_ray(runner, RayOptions(ray, ray_cpus, ray_gpus))
    elif several:
        with Processes(parallel) as processes:
            run_side_by_side(runner, processes)
    else:
        runner.run()
    if not PartialState().is_main_process:
        return None
    found = runner.rows()
    write_rows(runner.store.rows_file, found)
    return _write(Summary(found, runner.planned()), folder)


def _runner(
    comparison: Comparison, folder: Path, catalog: PathLike | None, methods: Sequence[str], known: Sequence[Row]
) -> Runner:
    """What trains the chosen methods on the catalog; rows of the methods that are left out are left out too."""
    shared = comparison.shared if catalog is None else replace(comparison.shared, catalog=str(catalog))
    plan = replace(comparison, shared=with_absolute_paths(shared))
    plan = plan.of_methods(methods) if methods else plan
    left_out = {method.name for method in comparison.methods} - {method.name for method in plan.methods}
    return Runner(plan, folder.resolve(), [row for row in known if row.method not in left_out])


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
