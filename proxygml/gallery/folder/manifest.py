"""What a gallery knows about itself beside its vectors and items, and how that is written as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, ClassVar, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from proxygml.errors import GalleryError, counted
from proxygml.gallery.items.column_types import ColumnType
from proxygml.gallery.kinds import Kind

FORMAT = 2

MANIFEST_BYTES = 64 * 2**20
"""Larger manifests are refused before they are read."""

Count = Annotated[int, Field(ge=0, lt=2**48)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Score = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


@dataclass(frozen=True)
class Threshold:
    """The score from which a query is accepted as one of the gallery's classes, and how it was chosen."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    score: Score
    """Cosine of the nearest item, -1..1; a query that scores less is none of the gallery's classes."""

    false_accept_rate: Share
    """Share, 0..1, of the calibration queries that were accepted although the gallery held nothing of their class."""

    true_accept_rate: Share | None
    """Share, 0..1, that was accepted when their class was there too; None where no class had two images."""

    queries: Count
    classes: Count


@dataclass(frozen=True)
class Manifest:
    """What every backend keeps."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Kind = "exact"
    model: str = ""
    """Fingerprint of the embedder; empty where it is not known."""

    run: str = ""
    """Absolute path of the run folder, where the embedder was when the gallery was made."""

    refine: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Of codes, how many candidates for each result are compared again by their exact vectors; None: 10 of them."""

    threshold: Threshold | None = None
    recall: Share | None = None
    """Recall@10 of an approximate index against exact search, 0..1, over a sample of the gallery's own items."""

    code_recall: Share | None = None
    """The same of the codes alone, without looking again at the exact vectors; None where the index holds no codes."""

    dimension: Annotated[int, Field(ge=0, le=2**20)] = 0
    """D, the size of the vectors."""

    rows: Count = 0
    """How many vectors are stored."""

    next_id: Count = 0
    """The id of the next item that is added."""

    generation: Count = 0
    """Grows by one with every save."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """The columns of the item table and their types, as items/column_types.py writes them."""

    @property
    def schema(self) -> dict[str, ColumnType]:
        """The types of the item table's columns."""
        return {name: ColumnType.parse(text) for name, text in self.columns.items()}


AnyManifest = TypeVar("AnyManifest", bound=Manifest)


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON."""
    return json.dumps({"format": FORMAT} | asdict(manifest), indent=2) + "\n"


def parse_manifest(text: str, place: str, kind: type[AnyManifest]) -> AnyManifest:
    """Read what `manifest_text` wrote.

    Args:
        text: the JSON.
        place: where it was found, for messages.
        kind: the backend's class of manifests.

    Raises:
        GalleryError: it is damaged or of another format.
    """
    try:
        content = json.loads(text)
        found = content.pop("format")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise GalleryError(f"{place} cannot be read ({error}): build the gallery again") from error
    if found != FORMAT:
        raise GalleryError(f"{place} has format {found!r}, but this version of proxygml reads format {FORMAT}")
    try:
        manifest: AnyManifest = TypeAdapter(kind).validate_json(json.dumps(content), strict=True)
        _ = manifest.schema
    except ValidationError as error:
        first = error.errors()[0]
        where, value = ".".join(map(str, first["loc"])), repr(first["input"])
        shown = value if len(value) < 100 else f"{value[:100]}..."
        raise GalleryError(f"{place} has {where} {shown}: {first['msg']}: build the gallery again") from error
    except ValueError as error:
        raise GalleryError(f"{place} is damaged ({error}): build the gallery again") from error
    if manifest.dimension < 1 or not manifest.rows <= manifest.next_id:
        raise GalleryError(
            f"{place} has vectors of size {manifest.dimension}, {counted(manifest.rows, 'row')} and the next id "
            f"{manifest.next_id}, which cannot be: build the gallery again"
        )
    return manifest
