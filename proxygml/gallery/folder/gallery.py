"""A gallery in memory or in a folder: exact search, or a FAISS index with the newest items searched exactly.

How its files are written is files.py's.

The class is one thing, though long: the methods of backend.py, each a few lines.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from proxygml.arguments import check_arguments
from proxygml.arrays import Rows, Vectors
from proxygml.errors import GalleryError, OverwriteError
from proxygml.files import exclusive_lock
from proxygml.gallery.approximate import ApproximateIndex
from proxygml.gallery.backend import Candidates, Change, Embeddings, GalleryContent
from proxygml.gallery.backends import backend_of
from proxygml.gallery.base import Gallery, recall_sample
from proxygml.gallery.filters.grammar import Condition
from proxygml.gallery.folder.checksums import same_start, whole_parts
from proxygml.gallery.folder.files import (
    FolderManifest,
    append_vectors,
    check_files,
    check_gallery_folder,
    mapped_vectors,
    publish,
    read_manifest,
    read_state,
    replaced_generation,
    rewrite_vectors,
    unfinished_vectors,
    write_blocks,
)
from proxygml.gallery.folder.manifest import Manifest
from proxygml.gallery.folder.single_changes import changed_at_once
from proxygml.gallery.index_kinds import REFINED
from proxygml.gallery.items.coercion import check_items, conformed, first_equal_ids
from proxygml.gallery.items.column_types import column_texts
from proxygml.gallery.items.ids import Ids
from proxygml.gallery.items.table import ItemTable
from proxygml.gallery.kinds import CODED, SMALLEST, Kind
from proxygml.gallery.neighbors import candidates_among, recall_against_exact
from proxygml.gallery.rounded import RoundedVectors, rounded_vectors
from proxygml.gallery.vectors import VectorRows

_TAIL = 1000
"""Items, or a tenth of all, that may be added before an approximate index is extended by them."""

_REMOVED_SHARE = 4
"""When one row in so many is a removed one, the next save writes all files anew, without them."""


class FolderGallery(Gallery):
    """See Gallery. Removed items stay in the files until a quarter of the rows are removed ones.

    Attributes:
        folder: where it was loaded from or saved to; None for a gallery in memory.
    """

    def __init__(
        self,
        vectors: Vectors,
        table: ItemTable,
        manifest: FolderManifest,
        index: ApproximateIndex | None = None,
        folder: Path | None = None,
    ) -> None:
        self.manifest: FolderManifest = manifest
        super().__init__(manifest)
        self.folder = folder
        self._vectors = VectorRows(vectors)
        self._index = index
        self._table = table
        self._rounded: RoundedVectors | None = None

    @classmethod
    def in_memory(cls, vectors: Vectors, items: pd.DataFrame, manifest: Manifest) -> Self:
        """See Gallery.create; of the manifest kind, model and run are filled in."""
        made = FolderManifest(manifest.kind, manifest.model, manifest.run, manifest.refine, dimension=vectors.shape[1])
        check_items(items, len(vectors))
        gallery = cls(vectors[:0], ItemTable.of(pd.DataFrame(), {}), made)
        gallery.add(vectors, items)
        gallery._build_index()
        return gallery

    @classmethod
    def _build(cls, place: str | Path, content: GalleryContent, force: bool) -> Self:
        folder, manifest = Path(place), content.manifest
        check_gallery_folder(folder, force)
        with exclusive_lock(folder / ".lock"):
            name = unfinished_vectors(folder)
            try:
                table, schema, dimension, digest = write_blocks(content.blocks, folder / name, content.total)
                made = FolderManifest(manifest.kind, manifest.model, manifest.run, manifest.refine, vectors=name)
                made = replace(
                    made, dimension=dimension, rows=len(table), next_id=len(table), columns=column_texts(schema)
                )
                made = replace(made, generation=replaced_generation(folder))
                gallery = cls(mapped_vectors(folder, made), ItemTable.of(table, schema), made, folder=folder)
                gallery._build_index(folder / f".{manifest.kind}-{digest[:16]}.faiss")
                if content.finish is not None:
                    content.finish(gallery)
                gallery._publish(folder)
            except Exception:  # what was only stopped, by Ctrl-C too, stays and is continued
                (folder / name).unlink(missing_ok=True)
                raise
        return gallery

    @classmethod
    def _load(cls, place: str | Path) -> Self:
        manifest, vectors, table, index = read_state(Path(place))
        return cls(vectors, ItemTable(table, manifest.schema), manifest, index, Path(place))

    @staticmethod
    def check_place(place: str | Path, kind: Kind, force: bool) -> None:
        """See backends.check_place."""
        check_gallery_folder(Path(place), force)

    @staticmethod
    def work_place(place: str | Path, purpose: str) -> Path:
        """See backends.work_place."""
        return Path(place) / f".{purpose}"

    def __len__(self) -> int:
        return int(np.count_nonzero(self._table.alive))

    @property
    def place(self) -> str:
        """See Backend.place."""
        return str(self.folder or "")

    @property
    def index_bytes(self) -> float | None:
        """See Backend.index_bytes."""
        stored = self.manifest.files.get(self.manifest.index)
        return None if stored is None or self._index is None else stored.size / len(self._index)

    @property
    def keeps_images(self) -> Path | None:
        """The folder `images` in the gallery's own."""
        return None if self.folder is None else self.folder.resolve() / "images"

    @property
    def items(self) -> pd.DataFrame:
        """The item table, by id, without removed items."""
        return self._table.items

    def rows(self, ids: Ids) -> pd.DataFrame:
        """See Backend.rows."""
        return self._table.shown.iloc[self._table.rows_of(self._chosen(ids))]

    def vectors(self, ids: Ids) -> Vectors:
        """See Backend.vectors."""
        return self._vectors.take(self._table.rows_of(self._chosen(ids)))

    def file_stamps(self, ids: Ids) -> Rows:
        """See Backend.file_stamps."""
        return self._table.file_stamps(self._table.rows_of(self._chosen(ids)))

    def ids_of(self, items: pd.DataFrame, columns: Sequence[str]) -> Rows:
        """See Backend.ids_of."""
        return first_equal_ids(items, self.items, columns)

    def add(self, embeddings: Embeddings, items: pd.DataFrame) -> Rows:
        """See Backend.add."""
        vectors = self._normalized(embeddings)
        check_items(items, len(vectors))
        fitting, schema = conformed(items, self._table.schema)
        ids = np.arange(self.manifest.next_id, self.manifest.next_id + len(items))
        self._vectors.append(vectors)
        self._table = self._table.with_items(ids, fitting, schema)
        end = self.manifest.next_id + len(items)
        self.manifest = replace(self.manifest, next_id=end, columns=column_texts(schema))
        return ids

    def remove(self, ids: Ids) -> None:
        """See Backend.remove."""
        self._table = self._table.without(self._table.rows_of(self._chosen(ids)))

    def rebase(self, old: str, new: str) -> int:
        """See Backend.rebase."""
        self._table, changed = self._table.rebased(old, new)
        return changed

    @check_arguments
    def save(self, place: str | Path | None = None) -> None:
        """See Backend.save."""
        if place is not None and backend_of(place) is not FolderGallery:
            raise GalleryError(f"save writes folders, which {place} is not: Gallery.build puts a gallery there")
        target = Path(place) if place is not None else self.folder
        if target is None:
            raise GalleryError("the gallery has no folder yet: give one to save it in")
        self._check_not_empty()
        new = self.folder is None or target.resolve() != self.folder.resolve()
        if new:
            check_gallery_folder(target, False)
        with exclusive_lock(target / ".lock"):
            if not new and read_manifest(target).generation != self.manifest.generation:
                raise OverwriteError(f"{target} was changed since it was loaded: load it again, and repeat the change")
            if new or _REMOVED_SHARE * (len(self._table) - len(self)) >= len(self._table):
                self._drop_removed(target)
            else:
                self.manifest = append_vectors(target, self.manifest, self._vectors)
                self._vectors = VectorRows(mapped_vectors(target, self.manifest))
            tail = len(self._table) - (0 if self._index is None else len(self._index))
            if self.manifest.kind != "exact" and tail >= max(_TAIL, len(self._table) // 10):
                self._extend_index()
            self._publish(target)

    def change_at_once(self, changes: Sequence[Change]) -> tuple[Self, list[int | GalleryError]]:
        """See Backend.change_at_once: they are saved together."""
        return changed_at_once(self, self._own_folder(), changes)

    def refreshed(self) -> Self:
        """See Backend.refreshed."""
        folder = self._own_folder()
        return self if read_manifest(folder).generation == self.manifest.generation else self._load(folder)

    def prepare_searches(self, before: Gallery | None = None) -> None:
        """See Backend.prepare_searches: an exact gallery holds a rounded copy of its vectors.

        It is of the parts of the file that have checksums and will not grow, and is kept while these stay the same.
        """
        if self.manifest.kind != "exact" or self.folder is None:
            return
        stored, row = self.manifest.files[self.manifest.vectors], 4 * self.manifest.dimension
        rows = whole_parts(stored) // row
        if isinstance(before, FolderGallery):
            old, held = before.manifest.files[before.manifest.vectors], len(before._rounded or ())
            few = 10 * (rows - held) <= rows if held else whole_parts(old) == whole_parts(stored)
            if few and same_start(old, stored, held * row):
                self._rounded = before._rounded
                return
        self._rounded = rounded_vectors(self._vectors, rows)

    def check_writable(self) -> None:
        """See Backend.check_writable."""
        if self.folder is not None and not os.access(self.folder, os.W_OK):
            raise GalleryError(f"{self.folder} cannot be written to: ask for the right to, or copy the gallery")

    def _own_folder(self) -> Path:
        if self.folder is None:
            raise GalleryError("the gallery is in memory only: save it first")
        return self.folder

    def verify(self) -> str:
        """See Backend.verify: every file, to the bit."""
        check_files(self._own_folder())
        return "nothing has changed since it was written"

    def _drop_removed(self, folder: Path) -> None:
        """Write the items that can be found to new files, and keep only those."""
        kept = np.flatnonzero(self._table.alive)
        self.manifest = rewrite_vectors(folder, self.manifest, self._vectors, kept)
        self._rounded = None
        self._vectors = VectorRows(mapped_vectors(folder, self.manifest))
        if len(kept) < len(self._table):
            self._table = self._table.only_alive()
            if len(kept) >= SMALLEST.get(self.manifest.kind, 1):
                self._build_index()
            else:  # so few are searched exactly, until there are enough again
                self._index = None
                self.manifest = replace(self.manifest, index="", recall=None, code_recall=None)

    def _publish(self, folder: Path) -> None:
        self.manifest = publish(folder, self.manifest, self._table, self._index)
        self.folder = folder

    def _matching(self, conditions: Sequence[Condition]) -> Rows:
        allowed = self._table.allowed(conditions)
        return self._table.ids if allowed is None else self._table.ids[allowed]

    def _table_with(self, ids: Rows) -> pd.DataFrame:
        return self._table.shown

    def _candidates(self, queries: Vectors, wanted: int, conditions: Sequence[Condition]) -> list[Candidates]:
        allowed = self._table.allowed(conditions)
        refine = REFINED if self.manifest.refine is None else self.manifest.refine
        found = candidates_among(self._vectors, self._index, queries, wanted, allowed, refine, self._rounded)
        return [Candidates(self._table.ids[rows], self._vectors, rows, scores) for rows, scores in found]

    def _build_index(self, checkpoint: Path | None = None) -> None:
        """Build the approximate index, if the kind has one, and measure what it loses."""
        if self.manifest.kind != "exact":
            self._index = ApproximateIndex.build(self.manifest.kind, self._vectors, checkpoint=checkpoint)
            self._measure_recall()

    def _extend_index(self) -> None:
        """Index the items that were added since."""
        if self._index is None:
            self._build_index()
        else:
            self._index.add(self._vectors)
            self._measure_recall()

    def _measure_recall(self) -> None:
        """Note how many of the exact neighbours a changed index finds, and that it is not written yet."""
        manifest, recall, of_codes, sample = self.manifest, None, None, recall_sample(self._matching([]))
        if len(sample):
            found = self._neighbors_of(sample)
            index, self._index = self._index, None  # without it, search is exact
            try:
                exact = self._neighbors_of(sample)
            finally:
                self._index = index
            recall = of_codes = recall_against_exact(found, exact)
            if manifest.kind in CODED and manifest.refine != 0:
                self.manifest = replace(manifest, refine=0)
                of_codes = recall_against_exact(self._neighbors_of(sample), exact)
        code_recall = of_codes if manifest.kind in CODED else None
        self.manifest = replace(manifest, index="", recall=recall, code_recall=code_recall)
