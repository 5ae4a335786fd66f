"""Run folders at URLs: worked on in a folder of this machine, whose finished files are put there.

A checkpoint is many files that must belong together, which no object store promises. So a run is trained on one
machine's disk; when it has finished, its files go to the URL, those that say that there is a model last.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proxygml.errors import OverwriteError, RunError, UserError
from proxygml.files import PathLike, cache_folder, remove_folder, temporary_folder
from proxygml.models.model_files import DESCRIPTION
from proxygml.remote import check_free, exists, files_below, local_file, upload
from proxygml.training.run_folder import RunFolder
from proxygml.urls import WEB, Place, Url, url_of

KEPT_HERE = ("checkpoints", "figures")
"""Folders of a run that are not fetched: what training resumes from stays on its machine, and reports draw anew."""

LAST = ("recipe.yaml", DESCRIPTION)
"""The files that say that there is a run, and a model: put there when all others are."""


@contextmanager
def evaluated_run(place: Place, catalog: PathLike | None) -> Iterator[RunFolder]:
    """The run folder; of a URL a copy, whose new and changed files are put there when the block ends without an error.

    Args:
        place: the run folder.
        catalog: what it is evaluated on; None for the catalog that its recipe names.

    Raises:
        RunError: there is no run at the URL, or its recipe names a catalog of another machine.
        UserError: it cannot be read or written.
    """
    if isinstance(place, Path):
        yield RunFolder(place)
        return
    _check_writable(place)
    with temporary_folder(cache_folder("runs") / place.name) as folder:
        run = RunFolder(folder / place.name, url=place)
        run.path.mkdir()
        for name in files_below(place, RunError):
            if not name.startswith((*(f"{part}/" for part in KEPT_HERE), ".")):
                target = run.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(local_file(place / name, RunError), target)
        if catalog is None:
            _check_catalog(run)
        before = _states(run.path)
        yield run
        _put(run, [name for name, state in _states(run.path).items() if before.get(name) != state])


@contextmanager
def trained_run(place: Place, resumed: bool) -> Iterator[RunFolder]:
    """The run folder to train in; of a URL a folder of this machine, whose files are put there when the block ends.

    After an error or a kill the folder stays, and training goes on in it.

    Args:
        place: the run folder.
        resumed: whether a run that was stopped goes on.

    Raises:
        OverwriteError: there is a run at the URL already.
        RunError: there is nothing to go on with on this machine, or several machines would share the folder.
        UserError: nothing can be written at the URL.
    """
    if isinstance(place, Path):
        yield RunFolder(place)
        return
    run = RunFolder(_work_folder(place), url=place)
    _check_one_machine(place)
    _check_writable(place)
    if resumed and not run.recipe.is_file():
        raise RunError(f"there is no run for {place} to continue on this machine: continue it where it was started")
    if not resumed and exists(place / LAST[0]):
        raise OverwriteError(f"{place} holds a run already: choose another --run")
    check_free(place / ".writable", force=True)
    yield run
    if int(os.environ.get("RANK", "0")) == 0:
        names = [name for name in _states(run.path) if name.split("/")[0] != "checkpoints"]
        _put(run, [name for name in names if not Path(name).name.startswith(".")])
        remove_folder(run.path)


def _work_folder(url: Url) -> Path:
    return cache_folder("training") / hashlib.sha256(url.encode()).hexdigest()[:16] / url.name


def _check_one_machine(url: Url) -> None:
    if os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")):
        raise RunError(
            f"--run is {url}, but several machines train: give a folder that all of them share, and copy it there "
            "when the run has finished"
        )


def _check_catalog(run: RunFolder) -> None:
    """Check that the recipe of a run at a URL has no file of this machine read: a stranger may have written it."""
    catalog = run.read_recipe().catalog
    if url_of(catalog) is None:
        raise RunError(f"{run.url} was trained on {catalog}, a file on the machine of its training: give --catalog")


def _check_writable(url: Url) -> None:
    if url.scheme in WEB:
        raise UserError(f"{url} is an address of a web server, where nothing can be written: copy the run folder here")


def _states(folder: Path) -> dict[str, tuple[int, int]]:
    """The size and time of each file within a folder."""
    files = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in files.items()}


def _put(run: RunFolder, names: list[str]) -> None:
    assert run.url is not None
    for name in sorted(names, key=lambda name: (name in LAST, name)):
        upload(run.path / name, run.url / name)
