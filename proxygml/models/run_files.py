"""The files of a run that others need, also where the run folder lies at a URL: fetched once, as long as they stay."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proxygml.errors import RunError, UserError
from proxygml.models.model_files import DESCRIPTION, TENSORS
from proxygml.remote import local_folder
from proxygml.urls import Place

NEEDED = ("recipe.yaml", "metrics.csv", TENSORS, DESCRIPTION)


MODEL = (TENSORS, DESCRIPTION)
"""Those of a run on the Hugging Face Hub, where anybody publishes: a stranger's recipe could name files to be read."""

LARGEST = {"recipe.yaml": 2**20, "metrics.csv": 2**26, TENSORS: 2**36, DESCRIPTION: 2**30}
"""Bytes that are fetched at most."""


def local_run(run: Place) -> Path:
    """The run folder; or a folder in the cache with the files of a run at a URL, to be read only.

    Raises:
        RunError: there is no finished run at the URL, or it cannot be read.
    """
    if isinstance(run, Path):
        return run
    names = MODEL if run.scheme == "hf" else NEEDED
    folder = local_folder(run, {name: LARGEST[name] for name in names}, RunError)
    if not (folder / DESCRIPTION).is_file():
        raise RunError(f"{run} holds no {DESCRIPTION}: give a run folder in which training has finished")
    return folder


@contextmanager
def naming_run(run: Place, folder: Path) -> Iterator[None]:
    """Name the run where it was fetched from, not its copy in the cache, in what is raised."""
    try:
        yield
    except UserError as error:
        if isinstance(run, Path) or str(folder) not in str(error):
            raise
        raise type(error)(str(error).replace(str(folder), str(run))) from error
