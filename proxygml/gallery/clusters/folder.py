"""The folder that `proxygml cluster` writes: tables of clusters and near-duplicates, contact sheets, sorted images."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from proxygml.arrays import Rows, Vectors
from proxygml.console import track
from proxygml.data.images.decode import read_file
from proxygml.data.images.image_list import ImageList
from proxygml.data.images.tensors import thumbnail
from proxygml.errors import OverwriteError, counted
from proxygml.evaluation.duplicates import near_duplicates
from proxygml.files import atomic_folder, check_overwrite, remove_leftovers
from proxygml.gallery.clusters.clustering import Clusters, cluster_vectors
from proxygml.gallery.clusters.settings import ClusterSettings, Layout
from proxygml.reports import figures
from proxygml.spreadsheet import without_formulas
from proxygml.urls import Place, Url, as_place

SHEET_TILES, TILE_PIXELS = 48, 120


def check_clusters_folder(out: Path, force: bool) -> None:
    """Raise OverwriteError when clusters may not be put there."""
    remove_leftovers(out.parent)  # which also moves back what a command that was killed has moved away
    if out.exists() and not (out / "clusters.csv").is_file():
        raise OverwriteError(f"{out} holds something that is no result of `proxygml cluster`: choose another name")
    check_overwrite(out, force)


def write_clusters(
    out: Path, images: ImageList, vectors: Vectors, settings: ClusterSettings, layout: Layout, force: bool = False
) -> Clusters:
    """Cluster images and write a folder: clusters.csv, duplicates.csv, sheets/, and the images in folders if asked.

    Args:
        out: the folder, written whole or not at all.
        images: n images.
        vectors: (n, D), theirs, of length 1.
        settings: how.
        layout: table: clusters.csv alone; links or copies: a folder of the images for each cluster too.
        force: replace `out`, if it is the result of an earlier call.

    Returns:
        The cluster of each image, and the groups of near-duplicates.

    Raises:
        UserError: see `cluster_vectors`.
        OverwriteError: something is at `out`, and `force` is False or it is no earlier result.
    """
    check_clusters_folder(out, force)
    codes = cluster_vectors(vectors, settings)
    duplicates = near_duplicates(vectors, settings.duplicate_cosine)
    closeness = _closeness(vectors, codes)
    with atomic_folder(out) as folder:
        table = images.table.assign(cluster=codes, cosine_to_centre=closeness.round(4))
        if not {"path", "item_id", "item"} & set(table):  # the rows are sorted: nothing else says which is which
            table.insert(0, "item", images.names)
        without_formulas(table).sort_values(["cluster", "cosine_to_centre"], ascending=[True, False]).to_csv(
            folder / "clusters.csv", index=False
        )
        without_formulas(_duplicates_table(images, vectors, duplicates)).to_csv(folder / "duplicates.csv", index=False)
        if "path" not in images.table:
            return Clusters(codes, duplicates)
        (folder / "sheets").mkdir()
        paths = images.paths
        for code, rows in track(list(_members(codes, closeness)), "Drawing contact sheets"):
            _draw_sheet(folder / "sheets" / f"{_name(code)}.png", code, rows, images, closeness)
            if layout != "table":
                _sort_images(folder / _name(code), [as_place(paths[row], "an image") for row in rows], layout)
    return Clusters(codes, duplicates)


def _closeness(vectors: Vectors, codes: Rows) -> Vectors:
    """(n,): the cosine between each vector and the mean of its cluster."""
    closeness = np.zeros(len(codes), np.float32)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        mean = vectors[rows].mean(axis=0)
        closeness[rows] = vectors[rows] @ (mean / max(float(np.linalg.norm(mean)), 1e-12))
    return closeness


def _members(codes: Rows, closeness: Vectors) -> Iterator[tuple[int, Rows]]:
    """Each cluster with its rows, the most typical first."""
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        yield int(code), rows[np.argsort(-closeness[rows], kind="stable")]


def _name(code: int) -> str:
    return f"cluster-{code:04d}" if code >= 0 else "no-cluster"


def _duplicates_table(images: ImageList, vectors: Vectors, groups: list[Rows]) -> pd.DataFrame:
    names = images.names
    rows = [
        (number, names[row], round(float(vectors[group[0]] @ vectors[row]), 4))
        for number, group in enumerate(groups)
        for row in group
    ]
    return pd.DataFrame(rows, columns=["group", "path" if "path" in images.table else "item", "cosine_to_first"])


def _draw_sheet(path: Path, code: int, rows: Rows, images: ImageList, closeness: Vectors) -> None:
    shown = rows if len(rows) <= SHEET_TILES else rows[np.linspace(0, len(rows) - 1, SHEET_TILES).astype(int)]
    boxes = images.boxes
    tiles = [
        figures.Tile(
            thumbnail(images.paths[row], None if boxes is None else boxes[row].tolist(), TILE_PIXELS),
            Path(images.paths[row]).name,
            f"{closeness[row]:.2f}",
        )
        for row in shown
    ]
    name = f"Cluster {code}" if code >= 0 else "In no cluster"
    some = "" if len(shown) == len(rows) else f"; {len(shown)} of them, from the most to the least typical"
    path.write_bytes(figures.png(figures.contact_sheet(tiles, f"{name}: {counted(len(rows), 'image')}{some}")))


def _sort_images(folder: Path, files: Sequence[Place], layout: Layout) -> None:
    """Links or copies of the files; of those at URLs, copies. Of several with one name, the later get a number."""
    folder.mkdir()
    taken: dict[str, int] = {}
    for file in files:
        number = taken.get(file.name, 1)
        target = folder / file.name
        while target.is_symlink() or target.exists():
            number += 1
            target = folder / f"{file.stem}-{number}{file.suffix}"
        taken[file.name] = number
        if isinstance(file, Url):
            target.write_bytes(read_file(file))
        elif layout == "links":
            target.symlink_to(file)
        else:
            shutil.copy2(file, target)


def describe(found: Clusters, noun: str = "image") -> str:
    """One sentence for the console; `noun` says what an item is."""
    codes, duplicates = found
    clusters = int(codes.max()) + 1
    alone = f", {int((codes < 0).sum()):,} in none" if (codes < 0).any() else ""
    return (
        f"{counted(len(codes), noun)} in {counted(clusters, 'cluster')}{alone}; "
        f"{counted(sum(map(len, duplicates)), noun)} in {counted(len(duplicates), 'group')} of near-duplicates"
    )
