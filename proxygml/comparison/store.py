"""The folder of a comparison: where its cells lie, and what they were trained with.

<folder>/<method>/tune/00, 01, ...     the trials; judged on validation classes, never on the test classes
<folder>/<method>/seed-0, seed-1, ...  the cells
<folder>/cells.csv                     a row for each of them
<folder>/data.json                     the catalog and the weights that they were trained with
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from proxygml.comparison.cell import Cell
from proxygml.comparison.row import Key
from proxygml.data.catalog import Catalog
from proxygml.errors import RecipeError, RunError, WeightsError
from proxygml.files import atomic_write
from proxygml.remote import local_file
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.typed_json import read_typed_json
from proxygml.urls import Place, as_place

LARGEST_INPUTS = 2**24
"""Bytes of data.json."""

TRIALS = "tune"  # the folder of a method's trials


@dataclass(frozen=True)
class Inputs:
    """What cells are trained with: the catalog and the files of weights, known by their content."""

    data: str  # the catalog's name
    fingerprint: str  # of the catalog's content
    weights: Mapping[str, str] = field(default_factory=dict)  # a digest for each file, tables to drop too, by its name

    @classmethod
    def of(cls, catalog: Place, recipes: Iterable[Recipe]) -> "Inputs":
        """The inputs of recipes, without files that are not there.

        Raises:
            UserError: the catalog is missing, or has no test split or a bad vector, or two files share a name.
        """
        table = Catalog.read(catalog)
        table.split("test")  # an error where it is missing, before anything is trained
        if table.vectors is not None and any(recipe.takes_vectors for recipe in recipes):
            table.vectors.mapped()  # checks each of them, and is then there for all cells
        digests: dict[str, str] = {}
        names = {(recipe.embedder.weights, "embedder.weights") for recipe in recipes}
        names |= {(recipe.drop, "drop") for recipe in recipes if recipe.drop}
        for place in sorted({as_place(name, key) for name, key in names}, key=str):
            path = local_file(place, WeightsError)
            if path.is_file():
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
                if digests.setdefault(path.name, digest) != digest:
                    raise RecipeError(
                        f"two different files are called {path.name}, and rows know them by that: rename one"
                    )
        return cls(catalog.stem, table.fingerprint, digests)


class Store:
    """The cells of a comparison on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def rows_file(self) -> Path:
        """Where a comparison leaves its rows."""
        return self.folder / "cells.csv"

    @property
    def _inputs_file(self) -> Path:
        return self.folder / "data.json"

    def cell(self, key: Key) -> Cell:
        """Where a method is trained with a seed, or a setting of it is tried."""
        place = Path(f"seed-{key.seed}") if key.trial is None else Path(TRIALS, f"{key.trial:02d}")
        return Cell(key, RunFolder(self.folder / key.method / place))

    def inputs(self) -> Inputs | None:
        """What the cells of the folder were trained with; None in a folder without any."""
        if not self._inputs_file.exists():
            return None
        advice = "put the file back, or give the comparison another --run"
        return read_typed_json(self._inputs_file, Inputs, most=LARGEST_INPUTS, error=RunError, advice=advice)

    def add_inputs(self, inputs: Inputs) -> None:
        """Note what cells are trained with from now on; files of weights that others used stay noted."""
        kept = self.inputs()
        weights = {**(kept.weights if kept else {}), **inputs.weights}
        with atomic_write(self._inputs_file) as temporary:
            content = asdict(Inputs(inputs.data, inputs.fingerprint, weights))
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
