"""What model.json says, typed: the settings that a saved embedder is built from, each of them checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from proxygml.data.images.settings import ImageSettings
from proxygml.data.vectors.checks import LARGEST_VECTOR
from proxygml.errors import RunError, did_you_mean
from proxygml.models.backbones import InputSpace
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.model_files import DESCRIPTION, read_description

Section = TypeVar("Section", EmbedderSettings, ImageSettings, InputSpace)
SECTIONS = ("embedder", "images", "input")


@dataclass(frozen=True)
class ModelDescription:
    """A saved model without its tensors."""

    embedder: EmbedderSettings
    images: ImageSettings
    input: InputSpace
    classes: tuple[str, ...]


@dataclass(frozen=True)
class VectorModelDescription:
    """A saved model that takes vectors, without its tensors."""

    embedder: EmbedderSettings
    num_features: int
    """F, the size of the vectors."""
    classes: tuple[str, ...]


def read_model(folder: Path) -> ModelDescription | VectorModelDescription:
    """What the model.json of a run folder says.

    Raises:
        RunError: it is missing, damaged or of another format, or a value is of another type or impossible.
    """
    path = folder / DESCRIPTION
    content = read_description(folder)
    classes = content.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise RunError(f"{path} does not describe an embedder: classes must be a list of names")
    if "vectors" in content:
        return _vector_model(content, tuple(classes), path)
    for name in SECTIONS:
        section = content.get(name)
        if not isinstance(section, dict) or None in section.values():
            raise RunError(f"{path} does not describe an embedder: {name} must be keys and values, none of them null")
    embedder = _section(EmbedderSettings, content, "embedder", path)
    images = _section(ImageSettings, content, "images", path)
    return ModelDescription(embedder, images, _section(InputSpace, content, "input", path), tuple(classes))


def _vector_model(content: Mapping[str, Any], classes: tuple[str, ...], path: Path) -> VectorModelDescription:
    size = content["vectors"].get("size") if isinstance(content["vectors"], dict) else None
    if type(size) is not int or not 1 <= size <= LARGEST_VECTOR:
        raise RunError(
            f"{path} does not describe an embedder: vectors.size is {size!r}, but must be a number of 1 or more"
        )
    if not isinstance(content.get("embedder"), dict) or None in content["embedder"].values():
        raise RunError(f"{path} does not describe an embedder: embedder must be keys and values, none of them null")
    embedder = _section(EmbedderSettings, content, "embedder", path)
    if not embedder.takes_vectors:
        raise RunError(f"{path} does not describe an embedder: it has vectors, but its backbone is {embedder.backbone}")
    return VectorModelDescription(embedder, size, classes)


def _section(kind: type[Section], content: Mapping[str, Any], name: str, path: Path) -> Section:
    """A section's keys and values, each checked against the type of its field."""
    prefix, keys = f"{path} does not describe an embedder: {name}", {field.name for field in fields(kind)}
    if unknown := sorted(content[name].keys() - keys):
        raise RunError(f"{prefix} has no key {unknown[0]!r}; {did_you_mean(unknown[0], keys)}")
    try:
        section: Section = TypeAdapter(kind).validate_json(json.dumps(content[name]), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f".{part}" for part in problem["loc"])
        raise RunError(f"{prefix}{place}: {problem['msg']}") from error
    return section
