"""What model.json says, typed: the settings that a saved embedder is built from, each of them checked."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from proxygml.data.image_settings import ImageSettings
from proxygml.errors import RunError
from proxygml.models.backbones import InputSpace
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.model_files import DESCRIPTION, read_description

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SECTIONS = ("embedder", "images", "input")


@dataclass(frozen=True)
class _Sections:
    embedder: EmbedderSettings
    images: ImageSettings
    input: InputSpace


@dataclass(frozen=True)
class ModelDescription:
    """A saved model without its tensors."""

    embedder: EmbedderSettings
    images: ImageSettings
    input: InputSpace
    classes: tuple[str, ...]


def read_model(folder: Path) -> ModelDescription:
    """What the model.json of a run folder says.

    Raises:
        RunError: it is missing, damaged or of another format, or a value is of another type or impossible.
    """
    from jsonargparse import ArgumentError  # noqa: PLC0415

    path = folder / DESCRIPTION
    content = read_description(folder)
    classes = content.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise RunError(f"{path} does not describe an embedder: classes must be a list of names")
    for name in SECTIONS:
        section = content.get(name)
        if not isinstance(section, dict) or None in section.values():
            raise RunError(f"{path} does not describe an embedder: {name} must be keys and values, none of them null")
    parser = _parser()
    try:
        given = parser.parse_object({"model": {name: content[name] for name in SECTIONS}})
        sections: _Sections = parser.instantiate(given).model
    except ArgumentError as error:
        raise RunError(f"{path} does not describe an embedder: {error.message}") from error
    return ModelDescription(sections.embedder, sections.images, sections.input, tuple(classes))


@cache
def _parser() -> "ArgumentParser":
    from jsonargparse import ArgumentParser  # noqa: PLC0415

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(_Sections, "model")
    return parser
