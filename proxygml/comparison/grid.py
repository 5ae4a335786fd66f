"""Every trial and cell that a comparison plans, and the recipe of each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from proxygml.comparison.plan import Comparison, Method
from proxygml.comparison.row import Key
from proxygml.comparison.settings import Settings
from proxygml.training.recipe import Recipe
from proxygml.training.splits import split_for_training


@dataclass(frozen=True)
class Grid:
    """The methods of a comparison by its seeds, and the trials before them."""

    comparison: Comparison
    has_validation: bool  # whether the cells too are trained with validation classes
    trials: dict[str, list[Settings]]  # what is drawn for each trial, by the method's name

    @classmethod
    def of(cls, comparison: Comparison) -> "Grid":
        """The grid of a comparison.

        Raises:
            UserError: its catalog is missing or of no use.
        """
        has_validation = split_for_training(comparison.shared, own=False)[1] is not None
        trials = {method.name: comparison.trials_of(method) for method in comparison.methods}
        return cls(comparison, has_validation, trials)

    @property
    def methods(self) -> tuple[Method, ...]:
        return self.comparison.methods

    def cells(self, method: Method) -> list[Key]:
        """A method's cells, one for each seed."""
        return [Key(method.name, seed) for seed in self.comparison.seeds]

    def trial(self, method: Method, number: int) -> Key:
        """A method's trial of that number."""
        return Key(method.name, self.comparison.seeds[0], number)

    def trials_of(self, method: Method) -> list[Key]:
        """A method's trials; none where it is taken as given."""
        return [self.trial(method, number) for number in range(len(self.trials[method.name]))]

    def keys(self) -> set[Key]:
        """All cells and trials."""
        return {key for method in self.methods for key in (*self.cells(method), *self.trials_of(method))}

    def trial_recipe(self, method: Method, number: int) -> Recipe:
        """The recipe of a trial: the method's with what is drawn, and with validation classes where it has none."""
        recipe = self.comparison.recipe_of(method, self.trials[method.name][number], self.comparison.seeds[0])
        return recipe if self.has_validation else replace(recipe, validation_classes=self.comparison.tune_on)

    def cell_recipe(self, method: Method, seed: int, chosen: int | None) -> Recipe:
        """The recipe of a cell: the method's with what is drawn for the chosen trial, or as given."""
        settings = {} if chosen is None else self.trials[method.name][chosen]
        return self.comparison.recipe_of(method, settings, seed)

    def recipes(self, method: Method) -> Iterator[tuple[int | None, Recipe]]:
        """The recipes of a method's trials, each with its number, and of the first cell that each may lead to."""
        numbers = range(len(self.trials[method.name]))
        for number in numbers:
            yield number, self.trial_recipe(method, number)
        for chosen in numbers or [None]:
            yield None, self.cell_recipe(method, self.comparison.seeds[0], chosen)
