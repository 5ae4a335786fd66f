"""What a gallery knows about itself beside its vectors and items, and how that is written as JSON."""

import json
from dataclasses import asdict, dataclass
from typing import TypeVar

from proxygml.errors import GalleryError
from proxygml.gallery.neighbors import Kind

FORMAT = 1


@dataclass(frozen=True)
class Threshold:
    """The score from which a query is accepted as one of the gallery's classes, and how it was chosen."""

    score: float
    """Cosine of the nearest item, -1..1; a query that scores less is none of the gallery's classes."""

    false_accept_rate: float
    """Share, 0..1, of the calibration queries that were accepted although the gallery held nothing of their class."""

    true_accept_rate: float | None
    """Share, 0..1, that was accepted when their class was there too; None where no class had two images."""

    queries: int
    classes: int


@dataclass(frozen=True)
class Manifest:
    """What every backend keeps."""

    kind: Kind = "exact"
    model: str = ""
    """Fingerprint of the embedder; empty where it is not known."""

    run: str = ""
    """Absolute path of the run folder, where the embedder was when the gallery was made."""

    threshold: Threshold | None = None
    recall: float | None = None
    """Recall@10 of an approximate index against exact search, 0..1, over a sample of the gallery's own items."""

    dimension: int = 0
    """D, the size of the vectors."""

    rows: int = 0
    """How many vectors are stored."""

    next_id: int = 0
    """The id of the next item that is added."""

    generation: int = 0
    """Grows by one with every save."""


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
        threshold = content.pop("threshold")
        if found == FORMAT:
            return kind(**content, threshold=None if threshold is None else Threshold(**threshold))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GalleryError(f"{place} cannot be read ({error}): build the gallery again") from error
    raise GalleryError(f"{place} has format {found!r}, but this version of proxygml reads format {FORMAT}")
