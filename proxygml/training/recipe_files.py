"""The files of recipes and comparisons: finding one by path or name, and reading its keys and values.

What the keys mean is in recipe.py and in comparison/plan.py.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from proxygml.errors import RecipeError, did_you_mean
from proxygml.files import check_local, check_size

LARGEST_RECIPE = 2**20
"""Bytes."""

MOST_VALUES = 100_000
"""In a recipe, aliases written out; they would multiply without end."""

MOST_BITS = 1000
"""Of a whole number in a recipe: float() and str() fail for larger ones."""

SHIPPED = Path(__file__).parents[1] / "recipes"


def find_recipe(name: str, kind: str = "") -> Path:
    """The file of that path, or of that name among the recipes that come with proxygml (`cub200`, `sop`, ...).

    Args:
        name: a path or a name.
        kind: the folder of ours to look in: none for the recipes of runs, `compare` for those of comparisons.

    Raises:
        RecipeError: there is neither.
    """
    check_local(name, "the recipe", RecipeError)
    shipped = {path.stem: path for path in sorted((SHIPPED / kind).glob("*.yaml"))}
    path = Path(name)
    if path.is_file():
        return path
    if path.stem in shipped and path.name in (path.stem, f"{path.stem}.yaml"):
        return shipped[path.stem]
    raise RecipeError(
        f"the recipe {name} is neither a file nor the name of one that comes with proxygml: "
        f"{did_you_mean(path.stem, shipped)}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        RecipeError: the file is missing or no YAML, or holds something else.
    """
    check_local(path, "the recipe", RecipeError)
    check_size(path, LARGEST_RECIPE, RecipeError)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)
    except (OSError, yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        # The last four are PyYAML's for other encodings, and for dates and numbers that cannot be.
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"the recipe {path} is nested too deeply: a recipe has two levels, or three") from error
    if content is not None and not isinstance(content, dict):
        raise RecipeError(f"the recipe {path} holds {type(content).__name__}, but must hold keys and values")
    if any(True for _ in islice(_values(content), MOST_VALUES, None)):
        raise RecipeError(
            f"the recipe {path} repeats its aliases to more than {MOST_VALUES:,} values: write out what is meant"
        )
    for value in _values(content):
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise RecipeError(f"the recipe {path} holds a whole number beyond 2**{MOST_BITS}, which no key takes")
    return content or {}


def _values(content: object) -> Iterator[object]:
    """All values within others, with each alias written out."""
    left = [content]
    while left:
        value = left.pop()
        yield value
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that comes twice; plain YAML would silently keep the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a list or a mapping", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} comes twice: give each key once", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return node
