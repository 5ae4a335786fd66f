"""Where the items of a gallery, a file or a clustering come from, and the model that embeds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from proxygml.arrays import Rows
from proxygml.data.catalog import Catalog
from proxygml.data.images.image_list import ImageList
from proxygml.data.vectors.file import VectorFile
from proxygml.errors import GalleryError, UserError
from proxygml.files import PathLike
from proxygml.gallery.base import Gallery
from proxygml.gallery.vector_input import VectorInput, items_of, of_catalog_file, of_file
from proxygml.models.embedder import Embedder
from proxygml.models.engines import Engine, load_embedder
from proxygml.models.model_files import fingerprint, read_description
from proxygml.models.run_files import local_run, naming_run
from proxygml.urls import Place, as_place, as_places


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Source:
    """Where the items come from: exactly one of the three.

    Raises:
        UserError: none is given, or several.
    """

    catalog: Place | None = None
    images: tuple[Place, ...] = ()
    vectors: Place | None = None
    split: str = "all"
    """Of the catalog: train, val, test, or all."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.catalog, self.images, self.vectors))) != 1:
            raise UserError("give exactly one of --catalog TABLE, --images FOLDER or --vectors FILE")
        if self.split not in ("all", "train", "val", "test"):
            raise UserError(f"--split is {self.split!r}, but must be all, train, val or test")
        if self.split != "all" and self.catalog is None:
            raise UserError(f"--split {self.split} is a part of a catalog: give --catalog TABLE, or leave --split out")

    @classmethod
    def of(
        cls,
        catalog: PathLike | None = None,
        images: PathLike | Sequence[PathLike] = (),
        vectors: PathLike | None = None,
        split: str = "all",
    ) -> "Source":
        """The same from text or paths, which may be URLs; `images` may be one folder or file, or several."""
        table = None if catalog is None else as_place(catalog, "catalog")
        file = None if vectors is None else as_place(vectors, "vectors")
        return cls(table, as_places(images, "images"), file, split)

    def vector_input(self, model: "Model") -> VectorInput:
        """The items of the catalog or the file with vectors of the model, embedded where that is needed.

        Raises:
            UserError: the model takes images, and the vectors are not its own; or it takes vectors, and these are
                images; see checked_vectors too.
        """
        if self.vectors is not None and not model.takes_vectors:
            file = checked_vectors(self.vectors, model)
            return VectorInput(file.rows, items_of(file))
        embedder = model.embedder()
        if self.vectors is not None:
            return of_file(self.vectors, model.fingerprint, embedder)
        if self.catalog is None:
            raise UserError(f"{model.run} takes vectors, not images: give --vectors FILE or --catalog TABLE")
        return of_catalog_file(self.catalog, self.split, embedder)

    def rows(self) -> Rows | None:
        """The row in the catalog, int64 (n,), of each item of a split; None where the items are no part of a table."""
        if self.catalog is None or self.split == "all":
            return None
        return np.flatnonzero(Catalog.read(self.catalog, own=False).table["split"] == self.split)

    def image_list(self) -> ImageList:
        """The images of the catalog or the folders."""
        if self.catalog is None:
            return ImageList.from_files(self.images)
        catalog = Catalog.read(self.catalog)
        return ImageList.from_catalog(catalog if self.split == "all" else catalog.split(self.split))


@dataclass(frozen=True)
class Model:
    """A run's embedder, loaded when it is first needed, and its fingerprint."""

    run: Place
    """The run folder, or its URL."""
    fingerprint: str
    folder: Path
    """Where its files are on this machine."""
    engine: Engine = "torch"
    """What computes the embeddings; those of all engines can be compared."""

    @classmethod
    def of(cls, run: Place, engine: Engine = "torch") -> "Model":
        """The model of a run folder.

        Raises:
            RunError: there is none.
        """
        folder = local_run(run)
        with naming_run(run, folder):
            model = fingerprint(folder)
        return cls(run.resolve() if isinstance(run, Path) else run, model, folder.resolve(), engine)

    @classmethod
    def of_gallery(cls, gallery: Gallery, run: Place | None, engine: Engine = "torch") -> "Model":
        """The gallery's own model, from where it was or from `run`.

        Raises:
            GalleryError: the run is another model's, or it is not known.
        """
        if run is None and not gallery.manifest.run:
            raise GalleryError("the gallery does not say where its run folder is: give it with --run")
        place = run or as_place(gallery.manifest.run, "the gallery's run folder", GalleryError)
        if isinstance(place, Path) and not place.is_dir():
            raise GalleryError(f"the gallery's run folder {place} is not there: say where it is with --run")
        model = cls.of(place, engine)
        if gallery.manifest.model and model.fingerprint != gallery.manifest.model:
            raise GalleryError(
                f"{place} is another model (fingerprint {model.fingerprint[:12]}) than the one that the gallery was "
                f"built with ({gallery.manifest.model[:12]}): embeddings of two models cannot be compared. Give that "
                "model with --run, or build the gallery again"
            )
        return model

    @property
    def takes_vectors(self) -> bool:
        """Whether it embeds vectors of another model, not images."""
        return "vectors" in read_description(self.folder)

    def embedder(self) -> Embedder:
        """The embedder; of the engine torch, on the GPU where there is one."""
        with naming_run(self.run, self.folder):
            return load_embedder(self.folder, self.engine, default_device())


def checked_vectors(path: Place, model: Model) -> VectorFile:
    """A file of vectors of that model.

    Raises:
        GalleryError: it is another model's, or no such file.
    """
    file = VectorFile(path)
    if file.model and file.model != model.fingerprint:
        raise GalleryError(f"{path} was made by another model ({file.run}) than {model.run}: embed its images again")
    size = read_description(model.folder).get("embedder", {}).get("embedding_size")
    is_prefix = bool(file.model) and file.dimension < (size or 0)  # of `embed --dimensions`
    if size and file.rows and file.dimension != size and not is_prefix:
        raise GalleryError(f"{path} has vectors of size {file.dimension}, but {model.run} makes them of {size}")
    return file
