"""The files of recipes and comparisons: finding one by path or name, and reading its keys and values.

What the keys mean is in recipe.py and in comparison/plan.py.
"""

from pathlib import Path
from typing import Any

import yaml

from proxygml.errors import RecipeError, did_you_mean
from proxygml.files import check_local, check_size

LARGEST_RECIPE = 2**20
"""Bytes."""

MOST_VALUES = 100_000
"""In a recipe, aliases written out; they would multiply without end."""

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
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"the recipe {path} is nested too deeply: a recipe has two levels, or three") from error
    if content is not None and not isinstance(content, dict):
        raise RecipeError(f"the recipe {path} holds {type(content).__name__}, but must hold keys and values")
    if _values(content) > MOST_VALUES:
        raise RecipeError(
            f"the recipe {path} repeats its aliases to more than {MOST_VALUES:,} values: write out what is meant"
        )
    return content or {}


def _values(content: object) -> int:
    """How many values there are with each alias written out; counted no further than is allowed."""
    count, left = 0, [content]
    while left and count <= MOST_VALUES:
        value = left.pop()
        count += 1
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
    return count


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
