"""The folder of a gallery: which files belong together, and how a reader and a writer keep out of each other's way.

gallery.json names the files of a state and is replaced in one step. A writer puts new files beside the old ones, or
appends to the vectors beyond what any reader looks at; then it replaces gallery.json and deletes what that leaves out.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from proxygml.arrays import Vectors
from proxygml.errors import GalleryError, OverwriteError
from proxygml.files import atomic_write
from proxygml.gallery.neighbors import Kind

FORMAT = 1
MANIFEST = "gallery.json"
PARTS = ("vectors-*.f32", "items-*.parquet", "index-*.faiss", ".*.faiss", ".*.tmp")
"""Files of a state, and what a writer that was stopped may leave: half an index, half a file."""


@dataclass(frozen=True)
class Threshold:
    """The score below which a query is taken for none of the gallery's classes, and how it was chosen."""

    score: float
    """Cosine of the nearest item; a query is accepted from here on."""

    false_accept_rate: float
    """Share of the calibration queries that were accepted although none of their class was there, at most as asked."""

    true_accept_rate: float | None
    """Share that was accepted when their class was there too; None where no class had two images."""

    queries: int
    classes: int


@dataclass(frozen=True)
class Facts:
    """What a gallery knows about itself beside its items: the content of gallery.json."""

    kind: Kind = "exact"
    model: str = ""
    """Fingerprint of the embedder; empty where it is not known."""

    run: str = ""
    """Absolute path of the run folder, where the embedder was when the gallery was made."""

    threshold: Threshold | None = None
    recall: float | None = None
    """Recall@10 of an approximate index against exact search, over a sample of its own items."""

    next_id: int = 0
    generation: int = 0
    """Grows by one with every save."""

    dimension: int = 0
    rows: int = 0
    vectors: str = ""
    items: str = ""
    index: str = ""


AnyFacts = TypeVar("AnyFacts", bound=Facts)


def check_gallery_folder(folder: Path, force: bool) -> None:
    """Raise OverwriteError when a gallery may not be put there."""
    if (folder / MANIFEST).exists():
        if not force:
            raise OverwriteError(f"{folder} is a gallery already: add to it with --add, or give --force to replace it")
        return
    ours = tuple(pattern.partition("*")[0] for pattern in PARTS)  # of a build that was stopped
    if folder.exists() and any(not path.name.startswith(ours) for path in folder.iterdir()):
        raise OverwriteError(f"{folder} holds something that is no gallery: choose another name")


def facts_to_replace(folder: Path) -> Facts:
    """What gallery.json says where there is a sound one, else nothing: a damaged gallery is there to be built again."""
    try:
        return read_facts(folder)
    except GalleryError:
        return Facts()


def read_facts(folder: Path) -> Facts:
    """What gallery.json says.

    Raises:
        GalleryError: it is missing, damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise GalleryError(f"{folder} is no gallery: it holds no {MANIFEST}; `proxygml index` makes one")
    try:
        facts = parsed_facts(path.read_text(encoding="utf-8"), str(path), Facts)
    except OSError as error:
        raise GalleryError(f"{path} cannot be read ({error}): build the gallery again") from error
    names = [Path(name).name == name for name in (facts.vectors, facts.items, facts.index)]
    if not all(names):
        raise GalleryError(f"{path} names files outside of its folder: build the gallery again")
    return facts


def parsed_facts(text: str, place: str, kind: type[AnyFacts]) -> AnyFacts:
    """What `facts_text` wrote.

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


def facts_text(facts: Facts) -> str:
    """Facts as JSON."""
    return json.dumps({"format": FORMAT} | asdict(facts), indent=2) + "\n"


def mapped(folder: Path, facts: Facts) -> Vectors:
    """The file of vectors as an array, read where it is touched; the file cannot be changed through it.

    Raises:
        FileNotFoundError: a writer has replaced it meanwhile.
        GalleryError: it is too short.
    """
    shape = (facts.rows, facts.dimension)
    size = (folder / facts.vectors).stat().st_size
    if size < 4 * facts.rows * facts.dimension:
        raise GalleryError(f"{folder / facts.vectors} has {size} bytes, too few for {shape} vectors: build it again")
    return np.memmap(folder / facts.vectors, "<f4", "c", shape=shape).view(np.ndarray)


def write_facts(folder: Path, facts: Facts) -> None:
    """Make the files that `facts` names the gallery, in one step."""
    with atomic_write(folder / MANIFEST) as path:
        path.write_text(facts_text(facts), encoding="utf-8")


def clear_up(folder: Path, facts: Facts) -> None:
    """Delete the files of earlier states, and of writers that were stopped."""
    for pattern in PARTS:
        for file in folder.glob(pattern):
            if file.name not in (facts.vectors, facts.items, facts.index):
                file.unlink(missing_ok=True)
