"""The results of a comparison: which trial is chosen, and a row for each finished cell.

A cell is known by its run in the store, or by a row of an earlier comparison whose runs are gone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from proxygml.comparison.grid import Grid
from proxygml.comparison.plan import Method
from proxygml.comparison.row import Key, Row
from proxygml.comparison.settings import Settings, result_settings
from proxygml.comparison.store import Inputs, Store
from proxygml.training.history import trained_epochs
from proxygml.training.recipe import Recipe


class Results:
    """The results of a grid.

    Args:
        grid: what there should be.
        store: where the cells lie.
        inputs: what they are trained with.
        known: rows that stand for runs that are gone.
    """

    def __init__(self, grid: Grid, store: Store, inputs: Inputs, known: Mapping[Key, Row]) -> None:
        self.grid = grid
        self.store = store
        self.inputs = inputs
        self.known = known

    def is_done(self, key: Key) -> bool:
        """Whether a cell or trial is finished, or known by a row."""
        return key in self.known or self.store.cell(key).finished

    def chosen(self, method: Method) -> int | None:
        """The trial with the best MAP@R on validation classes, the first of several.

        None while trials are left, where all diverged, and for a method that is taken as given.
        """
        trials = self.grid.trials_of(method)
        if not all(map(self.is_done, trials)):
            return None
        scores = {number: score for number, trial in enumerate(trials) if (score := self.score(trial)) is not None}
        return max(scores, key=lambda number: scores[number], default=None)

    def score(self, trial: Key) -> float | None:
        """MAP@R of a finished trial on validation classes, at the epoch that a cell would keep; None if it diverged.

        That is the last epoch, unless cells have validation classes too and keep the best.
        """
        if trial in self.known:
            return self.known[trial].val_map_at_r
        cell = self.store.cell(trial)
        if cell.diverged:
            return None
        scores = cell.history()["val_map_at_r"]
        return float(scores.max() if self.grid.has_validation else scores.iloc[-1])

    def recipes(self, method: Method) -> Iterator[tuple[Key, Recipe]]:
        """A method's trials and cells with their recipes; without the cells while no trial is chosen for them."""
        for number, key in enumerate(self.grid.trials_of(method)):
            yield key, self.grid.trial_recipe(method, number)
        chosen = self.chosen(method)
        if chosen is not None or not method.tune:
            for key in self.grid.cells(method):
                yield key, self.grid.cell_recipe(method, key.seed, chosen)

    def own_settings(self, recipe: Recipe) -> Settings:
        """What a recipe has beside that which all methods share."""
        return result_settings(recipe.content(), self.grid.comparison.shared.content())

    def protocol(self) -> Settings:
        """What all methods share, where it is not a recipe's default."""
        return result_settings(self.grid.comparison.shared.content(), Recipe().content())

    def rows(self) -> list[Row]:
        """A row for every known or finished trial and cell, by method."""
        rows = []
        for method in self.grid.methods:
            chosen = self.chosen(method)
            for number, key in enumerate(self.grid.trials_of(method)):
                if self.is_done(key):
                    row = replace(self._row(method, key), tried=self.grid.trials[method.name][number])
                    rows.append(replace(row, val_map_at_r=self.score(key), chosen=number == chosen))
            rows += [self._row(method, key) for key in self.grid.cells(method) if self.is_done(key)]
        return rows

    def _row(self, method: Method, key: Key) -> Row:
        if key in self.known:
            return replace(self.known[key], family=method.family, varied=method.varied)
        cell = self.store.cell(key)
        row = Row(
            *key,
            family=method.family,
            varied=method.varied,
            data=self.inputs.data,
            data_fingerprint=self.inputs.fingerprint,
            protocol=self.protocol(),
            settings=self.own_settings(cell.run.read_recipe()),
        )
        if cell.diverged:
            return replace(row, note=cell.note())
        history = cell.history()
        curve = trained_epochs(history).get("val_recall_at_1", ())
        row = replace(row, cost=cell.cost(), val_recall_at_1=tuple(round(float(value), 4) for value in curve))
        return row if cell.is_trial else replace(row, metrics=cell.metrics())
