"""The files of a run that others need, also where the run folder lies at a URL: fetched once, as long as they stay."""

from pathlib import Path

from proxygml.errors import RunError
from proxygml.models.model_files import DESCRIPTION, TENSORS
from proxygml.remote import local_folder
from proxygml.urls import Place

NEEDED = ("recipe.yaml", "metrics.csv", TENSORS, DESCRIPTION)


def local_run(run: Place) -> Path:
    """The run folder; or a folder in the cache with the files of a run at a URL, to be read only.

    Raises:
        RunError: there is no finished run at the URL, or it cannot be read.
    """
    if isinstance(run, Path):
        return run
    folder = local_folder(run, NEEDED, RunError)
    if not (folder / DESCRIPTION).is_file():
        raise RunError(f"{run} holds no {DESCRIPTION}: give a run folder in which training has finished")
    return folder
