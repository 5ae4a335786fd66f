"""The plan of a comparison: methods x seeds under one protocol, and the settings that are varied or chosen from.

It is read from a YAML file. runner.py carries it out, tables.py makes the tables.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from proxygml.comparison.settings import Settings, is_word, merged, merged_settings, nested, short_key
from proxygml.errors import RecipeError, counted, did_you_mean
from proxygml.training.recipe import Recipe, check_content
from proxygml.training.recipe_files import find_recipe, read_yaml

MOST_COMBINATIONS = 100_000  # of the values of a vary or a tune section
LONGEST_NAME = 100  # characters of a method's name, values that are varied included: its folder has it too
KEYS = ("like", "recipe", "seeds", "methods", "trials", "tune_on", "chosen")
SHARED = ("catalog", "seed", "validation_classes", "recall_at")  # what a method may not have of its own


@dataclass(frozen=True)
class Method:
    """A row of the table: what sets it apart from the shared recipe, and the values to choose from."""

    name: str
    changes: dict[str, Any]  # keys of a recipe, nested as in its file
    tune: dict[str, list[Any]]  # the values to try for a key, dotted; none for a method that is taken as given
    family: str  # the name in the file, which the methods of a sweep have in common
    varied: Settings = field(default_factory=dict)  # what sets it apart from its family; among the changes too


@dataclass(frozen=True)
class Comparison:
    """Methods, seeds and what they share: the content of a comparison's YAML file.

    Raises:
        RecipeError: a key or value is impossible; the message names it.
    """

    shared: Recipe
    """The recipe of every cell, but for what its method changes and for the seed."""

    methods: tuple[Method, ...]
    """The first is the one that the others are tested against."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Each method is trained once with each."""

    trials: int = 0
    """How many settings are tried for every method that has a `tune` section, the method as given among them."""

    tune_on: float = 0.25
    """Fraction of the training classes that judge the trials, held out whole; unused where the shared recipe or its
    catalog has validation classes already."""

    where: str = "the comparison"
    """The file, for messages."""

    def __post_init__(self) -> None:
        self._check(bool(self.methods), "methods is empty: name at least one")
        names = [method.name for method in self.methods]
        twice = [name for name in names if names.count(name) > 1]
        self._check(
            not twice,
            f"two methods are called {twice[0] if twice else ''!r}: names and values of vary must differ",
        )
        self._check(bool(self.seeds), "seeds is empty: give at least one")
        self._check(len(set(self.seeds)) == len(self.seeds), f"seeds is {list(self.seeds)}: no seed may come twice")
        wrong = [seed for seed in self.seeds if not 0 <= seed < 2**32]
        self._check(not wrong, f"seeds holds {wrong[0] if wrong else 0}, but must hold numbers from 0 to 2**32 - 1")
        self._check(self.trials >= 0, f"trials is {self.trials}, but must be 0 or more")
        self._check(0 < self.tune_on < 1, f"tune_on is {self.tune_on}, but must be between 0 and 1")
        seed = self.shared.seed
        self._check(seed == Recipe().seed, f"seed is {seed}, but a comparison has several: list them under seeds")
        tuned = [method.name for method in self.methods if method.tune]
        if tuned and not self.trials:
            self._check(False, f"{tuned[0]} has values to tune, but trials is 0: say how many settings are tried")
        if self.trials and not tuned:
            self._check(False, f"trials is {self.trials}, but no method has a tune section: give the values to try")
        for method in self.methods:
            for values in self.trials_of(method) or [{}]:
                recipe = self.recipe_of(method, values, self.seeds[0])
                learned = bool(recipe.epochs) or not method.tune
                self._check(learned, f"{method.name} has values to tune, but epochs is 0: no epoch could judge them")

    def _check(self, holds: bool, message: str) -> None:
        if not holds:
            raise RecipeError(f"{self.where}: {message}")

    @classmethod
    def read(cls, path: Path) -> "Comparison":
        """Read a comparison from YAML.

        A file that is `like` another, beside it or one of ours, takes that one's keys where it has none of its own; the
        recipes of both are merged. What is `chosen` for a method stands over its own keys, in place of its trials.

        Raises:
            RecipeError: the file is missing or no YAML, a key is unknown or a value is impossible.
        """
        content, where = _content(path), str(path)
        return cls(
            shared=_recipe(_section(content.get("recipe"), f"{where}: recipe"), f"{where}: recipe"),
            methods=_methods(_as_chosen(content, where), where),
            seeds=tuple(
                _typed(seed, int, f"{where}: seeds")
                for seed in _list(content.get("seeds", [0, 1, 2]), f"{where}: seeds")
            ),
            trials=_typed(content.get("trials", 0), int, f"{where}: trials"),
            tune_on=_typed(content.get("tune_on", 0.25), float, f"{where}: tune_on"),
            where=where,
        )

    def of_methods(self, names: Sequence[str]) -> "Comparison":
        """The comparison of some of its methods, or families of methods, in its own order.

        Raises:
            RecipeError: there is no such method.
        """
        known = [name for method in self.methods for name in dict.fromkeys((method.name, method.family))]
        for name in names:
            self._check(name in known, f"there is no method {name!r}; {did_you_mean(name, known)}")
        chosen = tuple(method for method in self.methods if method.name in names or method.family in names)
        tuned = any(method.tune for method in chosen)
        return replace(self, methods=chosen, trials=self.trials if tuned else 0)

    def recipe_of(self, method: Method, values: Mapping[str, Any], seed: int) -> Recipe:
        """The shared recipe with a method's changes, chosen values and a seed."""
        content = merged_settings(merged(self.shared.content(), method.changes), values)
        where = f"{self.where}: {method.name}"
        return replace(_recipe(content, where), seed=seed)

    def _check_choices(self, method: Method) -> None:
        """Name a value to try that no recipe can have: each of them, and not those alone that happen to be drawn."""
        first = {key: choices[0] for key, choices in method.tune.items()}
        for key, choices in method.tune.items():
            for value in choices:
                try:
                    self.recipe_of(method, first | {key: value}, self.seeds[0])
                except RecipeError:
                    self.recipe_of(method, {key: value}, self.seeds[0])

    def trials_of(self, method: Method) -> list[Settings]:
        """The settings to try: the method as given, then others drawn at random from its space, none twice.

        As many for every method, or the whole space where that is smaller. The draws follow from the space alone, so
        every machine and every new start tries the same.
        """
        if not method.tune:
            return []
        self._check_choices(method)
        sizes = [len(values) for values in method.tune.values()]
        seen = [self.recipe_of(method, {}, self.seeds[0])]
        drawn: list[Settings] = [{}]
        for number in np.random.default_rng(0).permutation(math.prod(sizes)):
            if len(drawn) == self.trials:
                break
            places = np.unravel_index(number, sizes)
            values = {key: choices[place] for (key, choices), place in zip(method.tune.items(), places, strict=True)}
            recipe = self.recipe_of(method, values, self.seeds[0])
            if recipe not in seen:
                seen.append(recipe)
                drawn.append(values)
        return drawn


def _recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from its keys and values; errors name where they stand."""
    try:
        return Recipe.of(content, where)
    except RecipeError as error:
        raise RecipeError(str(error) if where in str(error) else f"{where}: {error}") from error


def _content(path: Path, followed: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys and values of a comparison's file, over those of the one that it is like."""
    content = read_yaml(path)
    for key in content:
        if key not in KEYS:
            raise RecipeError(f"{path}: a comparison has no key {key!r}; {did_you_mean(str(key), KEYS)}")
    like = content.pop("like", None)
    if like is None:
        return content
    beside = path.parent / str(like)
    other = beside if beside.is_file() else find_recipe(str(like), "compare")
    if other.resolve() in (path.resolve(), *followed):
        raise RecipeError(f"{path}: like is {like!r}, which is in the end like this file itself")
    inherited = _content(other, (*followed, path.resolve()))
    recipes = [_section(keys.get("recipe"), f"{path}: recipe") for keys in (inherited, content)]
    return inherited | content | {"recipe": merged(*recipes)}


def _as_chosen(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The methods of a comparison's file with what is chosen for them, which is then no longer tried."""
    methods = _section(content.get("methods"), f"{where}: methods")
    for name, values in _section(content.get("chosen"), f"{where}: chosen").items():
        if name not in methods:
            hint = did_you_mean(str(name), map(str, methods))
            raise RecipeError(f"{where}: chosen names {name!r}, which is no method; {hint}")
        section = {key: value for key, value in _section(methods[name], f"{where}: {name}").items() if key != "tune"}
        settings = _section(values, f"{where}: chosen.{name}")
        for key in settings:
            if key in ("tune", "vary") or key in (section.get("vary") or {}):
                raise RecipeError(
                    f"{where}: chosen.{name} holds {key}, but must hold values of keys that are not varied"
                )
        methods = methods | {name: merged_settings(section, settings)}
    return methods


def _methods(sections: Mapping[str, Any], where: str) -> tuple[Method, ...]:
    return tuple(
        method
        for name, section in sections.items()
        for method in _family(str(name), _section(section, f"{where}: methods.{name}"), f"{where}: {name}")
    )


def _family(name: str, section: Mapping[str, Any], where: str) -> Iterator[Method]:
    """The methods that a section stands for: one, or one for each combination of the values that it varies."""
    if not re.fullmatch(r"\w[\w .,=+()-]*", name):
        raise RecipeError(f"{where}: a method's name is its folder's too: take letters, digits and . , = + - ( )")
    changes = {key: value for key, value in section.items() if key not in ("tune", "vary")}
    tune, vary = (_choices(section.get(key), f"{where}: {key}") for key in ("tune", "vary"))
    for key, choices in (("tune", tune), ("vary", vary)):
        count = math.prod(map(len, choices.values()))
        if count > MOST_COMBINATIONS:
            raise RecipeError(
                f"{where}: {key} has {counted(count, 'combination')} of values, but may have at most "
                f"{MOST_COMBINATIONS:,}: list fewer"
            )
    for content in (changes, _spread(tune), _spread(vary)):
        check_content(content, where)
        for key in SHARED:
            if key in content:
                raise RecipeError(f"{where}: {key} is the same for all methods: give it in the shared recipe")
    for key in tune.keys() & vary.keys():
        raise RecipeError(f"{where}: {key} is in tune and in vary: a value is either chosen or given")
    for values in product(*vary.values()):
        varied = dict(zip(vary, values, strict=True))
        for key, value in varied.items():
            if not is_word(value):
                raise RecipeError(f"{where}: vary.{key} holds {value!r}, but must hold numbers, true, false or words")
        label = " ".join([name, *(f"{short_key(key)}={value}" for key, value in varied.items())])
        if len(label) > LONGEST_NAME:
            raise RecipeError(
                f"{where}: a method's name is {counted(len(label), 'character')} long with the values that are varied, "
                f"but must have at most {LONGEST_NAME}: shorten it"
            )
        yield Method(label, merged_settings(changes, varied), tune, name, varied)


def _choices(section: object, what: str) -> dict[str, list[Any]]:
    """Keys, dotted, each with a list of values."""
    return {str(key): _list(values, f"{what}.{key}") for key, values in _section(section, what).items()}


def _spread(choices: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Dotted keys as a recipe's file has them, nested, each with the first of its values."""
    content: dict[str, Any] = {}
    for key, values in choices.items():
        content = merged(content, nested(key, values[0]))
    return content


def _section(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict | None):
        raise RecipeError(f"{what} is {value!r}, but must be keys and values of its own")
    return value or {}


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise RecipeError(f"{what} is {value!r}, but must be a list of values")
    return value


def _typed(value: object, kind: type, what: str) -> Any:
    number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if not number:
        raise RecipeError(f"{what} is {value!r}, but must be a {'number' if kind is float else 'whole number'}")
    return value
