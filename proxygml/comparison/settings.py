"""Settings: keys of a recipe, dotted, and their values; what sets one recipe apart from another.

{"loss.scale": 3.0, "epochs": 20}
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxygml.training.recipe import flattened

Settings = dict[str, Any]

AT_WILL = ("workers", "tracker")  # keys that change no result: a cell may go on under others
LEFT_OUT = "default"  # stands for an argument of a loss that is no longer given


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a recipe with changes, by sections; a loss section that names its loss replaces the other."""
    result = dict(content)
    for key, value in changes.items():
        whole = key == "loss" and isinstance(value, dict) and "name" in value
        inner = isinstance(value, dict) and isinstance(result.get(key), dict) and not whole
        result[key] = merged(result[key], value) if inner else value
    return result


def merged_settings(content: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a recipe with settings, the loss's name before its arguments: naming a loss drops those there."""
    for key, value in sorted(settings.items(), key=lambda item: item[0] != "loss.name"):
        content = merged(content, nested(key, value))
    return dict(content)


def nested(key: str, value: object) -> dict[str, Any]:
    """loss.scale, 3 -> {loss: {scale: 3}}"""
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


def differences(content: Mapping[str, Any], other: Mapping[str, Any]) -> Settings:
    """The settings of one recipe's content that the other has not, or has with another value."""
    before = flattened(other)
    return {
        key: value
        for key, value in flattened(content).items()
        if not isinstance(value, dict) and before.get(key) != value
    }


def result_settings(content: Mapping[str, Any], other: Mapping[str, Any]) -> Settings:
    """The differences that change a result, but for the seed; a loss argument that only the other has is `default`."""
    content, other = portable(content), portable(other)
    found = differences(content, other)
    if content["loss"].get("name") == other["loss"].get("name"):
        gone = differences(other, content).keys() - flattened(content).keys()
        found |= dict.fromkeys(sorted(key for key in gone if key.startswith("loss.")), LEFT_OUT)
    return {key: value for key, value in found.items() if key != "seed"}


def portable(content: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's content as far as it changes the result: without workers and tracker, and without folders."""
    embedder = content["embedder"]
    kept = {key: value for key, value in content.items() if key not in ("catalog", *AT_WILL)}
    return kept | {
        "drop": Path(content["drop"]).name,
        "embedder": embedder | {"weights": Path(embedder["weights"]).name},
    }


def described(settings: Mapping[str, Any]) -> str:
    """Settings as one line for a reader."""
    return "; ".join(f"{key}={value}" for key, value in settings.items())


def short_key(key: str) -> str:
    """loss.scale -> scale."""
    return key.rpartition(".")[2]


def is_word(value: object) -> bool:
    """Whether a value is a number, true, false or a word, which a method's name can hold."""
    return re.fullmatch(r"[\w.+-]+", str(value)) is not None
