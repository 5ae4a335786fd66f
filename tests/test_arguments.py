"""A value of a wrong type is named by every public function, before anything is read or written."""

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

import proxygml
from proxygml.arguments import check_types
from proxygml.data.images.settings import ImageSettings
from proxygml.errors import RecipeError, UserError
from proxygml.files import PathLike
from proxygml.gallery.clusters.settings import ClusterSettings
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.training.loss_settings import LossSettings
from proxygml.training.recipe import Recipe

FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(proxygml, name) for name in proxygml.__all__ if inspect.isfunction(getattr(proxygml, name))
} | {
    "Catalog.read": proxygml.Catalog.read,
    "Embedder.load": proxygml.Embedder.load,
    "Gallery.load": proxygml.Gallery.load,
}
UNFIT = (float("nan"), True, 2.5, "", "\0", b"x", [5], {"a": 1}, object(), None)
"""Values of which a parameter takes some at most; each that it does not take must be named."""

VALID = {"recipe": "photos", "dataset": "folder", "settings": ClusterSettings("hdbscan"), "labels": [0, 1]}


def refused_values() -> list[tuple[str, str, object]]:
    """Function, parameter and value, for the parameters whose types are checked."""
    cases = []
    for name, function in FUNCTIONS.items():
        hints = get_type_hints(function)
        for parameter in inspect.signature(function).parameters:
            for value in UNFIT:
                try:
                    check_types({parameter: hints[parameter]}, {parameter: value})
                except UserError:
                    cases.append((name, parameter, value))
    return cases


@pytest.mark.parametrize(("name", "parameter", "value"), refused_values(), ids=lambda value: repr(value)[:20])
def test_a_value_of_a_wrong_type_is_named(
    name: str, parameter: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function = FUNCTIONS[name]
    needed = {
        key: VALID.get(key, "a") for key, kind in inspect.signature(function).parameters.items()
        if kind.default is inspect.Parameter.empty
    }  # fmt: skip
    with pytest.raises(UserError, match=rf"^{parameter} is .*, but must be "):
        function(**needed | {parameter: value})
    assert not list(tmp_path.iterdir())


def test_every_path_number_and_choice_is_checked() -> None:
    checked = {(name, parameter) for name, parameter, _ in refused_values()}
    unchecked = {
        (name, parameter)
        for name, function in FUNCTIONS.items()
        for parameter in inspect.signature(function).parameters
        if (name, parameter) not in checked
    }
    arrays = {"embeddings", "labels", "is_query", "is_gallery", "sequence", "camera", "is_junk", "is_distractor"}
    assert {parameter for _, parameter in unchecked} == arrays | {"device", "process_group"}


@pytest.mark.parametrize(
    ("hint", "fitting"),
    [
        (int, [3, np.int64(3), np.uint8(3), torch.tensor(3)]),
        (int | None, [None, np.int32(-1)]),
        (float, [0.5, 1, np.float32(0.5), np.int64(1), float("inf")]),
        (bool, [True, np.bool_(False)]),
        (str | Path, ["a", Path("a")]),
        (tuple[int, ...], [(1, 2), [np.int64(1)], (), np.arange(3)]),
        (PathLike | tuple[PathLike, ...], ["a", Path("a"), ["a", Path("b")], {"a"}]),
        (np.ndarray | None, [5, "anything that is not checked here"]),
    ],
)
def test_values_that_fit(hint: object, fitting: list[object]) -> None:
    for value in fitting:
        check_types({"a": hint}, {"a": value})


@pytest.mark.parametrize(
    "kind", [Recipe, EmbedderSettings, LossSettings, ImageSettings], ids=lambda kind: kind.__name__
)
def test_values_of_a_recipe_that_do_not_fit_are_named(kind: type[Any]) -> None:
    hints = get_type_hints(kind)
    numbers = [key.name for key in fields(kind) if hints[key.name] in (int, float, bool)]
    assert numbers
    for name in numbers:
        for value in ("3", None, [1], float("nan"), 2.5 if hints[name] is int else object()):
            with pytest.raises(RecipeError, match=rf"\b{name} is .*, but must be "):
                kind(**{name: value})


def test_a_recipe_takes_numbers_of_numpy_and_writes_them(tmp_path: Path) -> None:
    recipe = replace(Recipe(), epochs=np.int64(7), proxy_lr=np.float32(0.5), milestones=(np.int64(3),))
    recipe.write(tmp_path / "recipe.yaml")
    written = Recipe.read(tmp_path / "recipe.yaml")
    assert (written.epochs, written.proxy_lr, written.milestones) == (7, 0.5, (3,))


@pytest.mark.parametrize(
    ("name", "values"),
    [("seed", (-1, 2**32, 2**70)), ("bootstrap", (0, -1, 2**70)), ("memory_limit", (0, -1)), ("labels", (None,))],
)
def test_numbers_out_of_range_are_named_by_evaluate(name: str, values: tuple[object, ...]) -> None:
    arguments: dict[str, Any] = {"embeddings": torch.eye(4), "labels": [0, 0, 1, 1]}
    for value in values:
        with pytest.raises(UserError, match=f"^{name} is {value}"):
            proxygml.evaluate(**arguments | {name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("num_clusters", (0, -1, 2.5, "3", float("nan"))),
        ("max_distance", (0, 3, "0.4", float("nan"))),
        ("min_cluster_size", (1, None, 2.5)),
        ("duplicate_cosine", (2, None, float("nan"))),
        ("seed", (-1, 2**32, 2.5)),
    ],
)
def test_settings_of_clusters_that_are_impossible_are_named(name: str, values: tuple[object, ...]) -> None:
    for value in values:
        with pytest.raises(UserError, match=f"^{name} is "):
            ClusterSettings(**{"method": "hdbscan", name: value})
