"""The methods at the real size of photos: the plan of runs, the rule that drops methods, tables and the Pareto picture.

`benchmarks/results.sh DATA OUT` runs it. Each of SETUPS is the comparison `real_size` on one catalog with one backbone:

1. Choose: every method tries its settings on validation classes, and trains seed 0 with the best.
2. Drop: a published method whose best MAP@R on the validation classes is more than OUT_OF_THE_RACE below that of the
   best published method gets no further seeds. Our recipe, the same with Proxy-Anchor's loss, ProxyGML and Proxy-Anchor
   stay whatever they reach. Test classes decide nothing.
3. Finish: the other seeds of the methods that stay.
4. Views: every model judged by the ways to embed of benchmarks/views.py, beside the training of those after it.

What is done is not done again: repeat the command to continue. Setups train in the order of what they decide, each
whole before the next, so that a run that is stopped leaves whole comparisons. Times of images, tables.md and pareto.png
come last, when all are judged.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from benchmarks import views
from proxygml.comparison.compare import tabulate
from proxygml.comparison.plan import Comparison
from proxygml.comparison.row import Row, write_rows
from proxygml.comparison.runner import Runner
from proxygml.comparison.settings import merged_settings
from proxygml.comparison.side_by_side import Processes, run_side_by_side
from proxygml.data.catalog import Catalog
from proxygml.training.recipe_files import find_recipe

OUT_OF_THE_RACE = 0.03
STAY = ("Our recipe", "Proxy-Anchor in our recipe", "ProxyGML", "Proxy-Anchor")
OURS = STAY[:2]


@dataclass(frozen=True)
class Setup:
    """One catalog with one backbone, and the side of its images in pixels."""

    data: str  # the catalog's name, and that of the folder
    backbone: str
    size: int
    packshots: str = ""  # the catalog of packshots, where there is one

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.data}-{self.backbone}-{self.size}"


SETUPS = (
    Setup("groceries", "mobilenetv2_100", 224, "packshots"),
    Setup("birds", "mobilenetv2_100", 160),
    Setup("groceries", "tf_efficientnet_lite2", 224, "packshots"),
    Setup("birds", "tf_efficientnet_lite2", 160),
    Setup("groceries", "mobilenetv2_100", 96, "packshots"),  # with the finer map as dear as 224 pixels without
)
JUDGING_THREADS = 2  # the others are for training, which is what takes long
QUICK = (Setup("groceries", "mobilenetv2_100", 32, "packshots"),)
QUICK_METHODS = ("Our recipe", "ProxyGML", "Proxy-NCA")
QUICK_PHOTOS = 4  # of each product


def comparison_of(setup: Setup, data: Path, workers: int, quick: bool) -> Comparison:
    """The comparison `real_size` of a setup."""
    plan = Comparison.read(find_recipe("real_size", "compare"))
    shared = plan.shared
    weights = str(data / f"{setup.backbone}.imagenet.safetensors")
    shared = replace(
        shared,
        catalog=str(data / f"{setup.data}.csv"),
        embedder=replace(shared.embedder, backbone=setup.backbone, weights=weights),
        images=replace(shared.images, size=setup.size, resize=round(setup.size * 8 / 7)),
        precision=shared.precision if torch.cuda.is_available() else "fp32",  # a CPU may emulate bf16
        workers=workers,
    )
    if not quick:
        return replace(plan, shared=shared)
    small = replace(shared.embedder, embedding_size=32)  # fewer than there are photos to find directions in
    shared = replace(shared, embedder=small, epochs=2, milestones=(1,))
    few = tuple(method for method in plan.methods if method.name in QUICK_METHODS)
    return replace(plan, shared=shared, methods=few, trials=2, seeds=(0, 1))


def staying(rows: Sequence[Row]) -> list[str]:
    """The methods that get all seeds, by the trials of seed 0 alone."""
    best: dict[str, float] = {}
    for row in rows:
        if row.trial is not None and row.val_map_at_r is not None:
            best[row.method] = max(best.get(row.method, 0.0), row.val_map_at_r)
    lead = max((value for method, value in best.items() if method not in OURS), default=0.0)
    return [method for method, value in best.items() if method in STAY or value >= lead - OUT_OF_THE_RACE]


def finish(plan: Comparison, rows: Sequence[Row]) -> Comparison:
    """The seeds after the first of the methods that stay, with the settings that their trials chose."""
    chosen = {row.method: row.tried or {} for row in rows if row.chosen}
    methods = tuple(
        replace(method, changes=merged_settings(method.changes, chosen[method.name]), tune={})
        for method in plan.methods
        if method.name in staying(rows) and method.name in chosen
    )
    return replace(plan, methods=methods, seeds=plan.seeds[1:], trials=0)


def smaller(data: Path, out: Path) -> Path:
    """A folder with a few photos of each class of every catalog of QUICK, and links to the weights."""
    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name in {name for setup in QUICK for name in (setup.data, setup.packshots)}:
        whole = Catalog.read(data / f"{name}.csv")
        few = whole.table.groupby("label").head(QUICK_PHOTOS)
        if "is_gallery" in few:  # no packshot is left out
            few = whole.table[whole.table.index.isin(few.index) | whole.table["is_gallery"]]
        whole.with_table(few).write(folder / f"{name}.csv", force=True)
    for weights in data.glob("*.safetensors"):
        (folder / weights.name).unlink(missing_ok=True)
        (folder / weights.name).symlink_to(weights)
    return folder


def train(setup: Setup, data: Path, out: Path, workers: int, processes: Processes, quick: bool) -> None:
    """Choose, drop and finish, with a table of the methods as each embeds by itself."""
    plan = comparison_of(setup, data, workers, quick)
    choosing, finishing = parts_of(setup, out)
    rows = compared(replace(plan, seeds=plan.seeds[:1]), choosing, processes)
    dropped = sorted({row.method for row in rows} - set(staying(rows)))
    print(f"out of the race: {', '.join(dropped) or 'none'}", flush=True)
    compared(finish(plan, rows), finishing, processes)
    tabulate([part / "cells.csv" for part in (choosing, finishing)], choosing.parent)


def compared(plan: Comparison, folder: Path, processes: Processes) -> list[Row]:
    """The rows of a comparison, which `proxygml.compare` would train in other processes each time."""
    runner = Runner(plan, folder)
    run_side_by_side(runner, processes)
    rows = runner.rows()
    write_rows(runner.store.rows_file, rows)
    return rows


def judge(setups: Sequence[Setup], data: Path, out: Path, workers: int, trained: Event, stopped: Event) -> None:
    """Every model by every way to embed as soon as it is there, until all are trained and judged, or `stopped`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that trains too, which sets `stopped`
    multiprocessing.set_start_method(None, force=True)  # or loaders' workers would load PyTorch anew, as this one did
    torch.set_num_threads(JUDGING_THREADS)
    parent = multiprocessing.parent_process()
    judges: dict[Setup, views.Judge] = {}
    whole = False
    while not (whole or stopped.is_set()) and (parent is None or parent.is_alive()):
        whole = trained.is_set()  # before the last look
        for setup in setups:
            for part in parts_of(setup, out):
                if setup not in judges and part.exists():
                    for other in judges.values():
                        other.forget_images()
                    packshots = data / f"{setup.packshots}.csv" if setup.packshots else None
                    rows = part.parent / "views.csv"
                    judges[setup] = views.Judge(data / f"{setup.data}.csv", packshots, rows, workers)
                if setup in judges:
                    judges[setup].judge(part, stopped)
        stopped.wait(1)


def show(out: Path) -> None:
    """Tables and picture of all that has been judged."""
    found = [row for path in sorted(out.glob("*/views.csv")) for row in views.read(path)]
    (out / "tables.md").write_text(views.tables(found), encoding="utf-8")
    views.picture(found, out / "pareto.png")


def parts_of(setup: Setup, out: Path) -> tuple[Path, Path]:
    """The folders of the two comparisons of a setup."""
    return out / setup.name / "choose", out / setup.name / "finish"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder with the catalogs and the weights")
    parser.add_argument("out", type=Path, help="the folder for runs, rows, tables and the picture")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images, for each run")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, which share the GPU")
    names = [setup.name for setup in SETUPS]
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--setups", nargs="+", choices=names, default=names, help="which, all by default")
    which.add_argument("--quick", action="store_true", help="one of small sizes, to try it on a CPU")
    options = parser.parse_args()
    data = smaller(options.data, options.out) if options.quick else options.data
    setups = QUICK if options.quick else [setup for setup in SETUPS if setup.name in options.setups]
    context = multiprocessing.get_context("spawn")
    trained, stopped = context.Event(), context.Event()
    given = (setups, data, options.out, options.workers, trained, stopped)
    judging = context.Process(target=judge, args=given)
    judging.start()
    try:
        with Processes(options.parallel) as processes:
            for setup in setups:
                train(setup, data, options.out, options.workers, processes, options.quick)
                if judging.exitcode:  # or the whole training would end before anybody noticed
                    break
        trained.set()
        judging.join()
    finally:  # after Ctrl-C, when the model that is being judged is done
        stopped.set()
        judging.join()
    if judging.exitcode:
        sys.exit("judging failed: its traceback is above")
    for setup in setups:  # when nothing else runs
        choosing, _ = parts_of(setup, options.out)
        views.add_times(choosing, choosing.parent / "views.csv")
    show(options.out)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
