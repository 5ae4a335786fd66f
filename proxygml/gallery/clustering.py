"""Sorting images that nobody has labelled: clusters, near-duplicates, and a contact sheet for each cluster."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from proxygml.arrays import Vectors
from proxygml.console import track
from proxygml.data.archives import atomic_folder
from proxygml.data.image_list import ImageList
from proxygml.data.images import thumbnail
from proxygml.errors import OverwriteError, UserError
from proxygml.files import check_overwrite
from proxygml.reports import figures

Method = Literal["kmeans", "hdbscan", "agglomerative"]
Layout = Literal["table", "links", "copies"]
Codes = npt.NDArray[np.int64]

MOST_AGGLOMERATIVE = 20_000
"""Images whose pairwise distances, 1.6 GB, are still computed."""
SHEET_TILES, TILE_PIXELS = 48, 120
_PAIRS_AT_A_TIME = 2**22


@dataclass(frozen=True)
class ClusterSettings:
    """How images are grouped: the options of `proxygml cluster`.

    Raises:
        UserError: a value is impossible, or one that the method needs is missing.
    """

    method: Method = "kmeans"
    """kmeans (needs num_clusters), hdbscan (finds their number; leaves odd images out), agglomerative (average linkage;
    needs num_clusters or max_distance)."""

    num_clusters: int | None = None
    """For kmeans and agglomerative."""

    max_distance: float | None = None
    """For agglomerative: clusters are joined up to this mean cosine distance (1 - cosine) between their images."""

    min_cluster_size: int = 5
    """For hdbscan: fewer images are no cluster."""

    duplicate_cosine: float = 0.97
    """Images at least so similar are reported as near-duplicates."""

    seed: int = 0
    """Of kmeans."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UserError(f"method is {self.method!r}, but must be one of {', '.join(get_args(Method))}")
        if self.method == "kmeans" and self.num_clusters is None:
            raise UserError("kmeans needs --num_clusters; if you do not know how many there are, take --method hdbscan")
        if self.method == "agglomerative" and (self.num_clusters is None) == (self.max_distance is None):
            raise UserError("agglomerative needs either --num_clusters or --max_distance, such as 0.4")
        if self.num_clusters is not None and self.num_clusters < 1:
            raise UserError(f"num_clusters is {self.num_clusters}, but must be 1 or more")
        if self.max_distance is not None and not 0 < self.max_distance <= 2:
            raise UserError(f"max_distance is {self.max_distance}, but must be above 0 and at most 2")
        if self.min_cluster_size < 2:
            raise UserError(f"min_cluster_size is {self.min_cluster_size}, but must be 2 or more")
        if not -1 <= self.duplicate_cosine <= 1:
            raise UserError(f"duplicate_cosine is {self.duplicate_cosine}, but must be in -1..1")


def cluster(vectors: Vectors, settings: ClusterSettings) -> Codes:
    """The cluster of each vector: (n, D) of length 1 -> int64 (n,), the largest is 0; -1 for none (hdbscan only).

    Raises:
        UserError: fewer vectors than clusters, or too many for the method.
    """
    count = len(vectors)
    if settings.num_clusters is not None and settings.num_clusters > count:
        raise UserError(f"num_clusters is {settings.num_clusters}, but there are {count} images")
    if settings.method == "agglomerative" and count > MOST_AGGLOMERATIVE:
        raise UserError(f"agglomerative takes at most {MOST_AGGLOMERATIVE:,} images, not {count:,}: take kmeans")
    if count == 1:
        return np.zeros(1, dtype=np.int64)
    methods = {"kmeans": _kmeans, "hdbscan": _hdbscan, "agglomerative": _agglomerative}
    return _by_size(methods[settings.method](vectors, settings))


def _kmeans(vectors: Vectors, settings: ClusterSettings) -> Codes:
    from sklearn.cluster import KMeans  # noqa: PLC0415

    model = KMeans(settings.num_clusters or 1, init="k-means++", n_init=3, random_state=settings.seed)
    codes: Codes = model.fit_predict(vectors).astype(np.int64)
    return codes


def _hdbscan(vectors: Vectors, settings: ClusterSettings) -> Codes:
    from sklearn.cluster import HDBSCAN  # noqa: PLC0415

    # On vectors of length 1 the Euclidean distance orders pairs as the cosine does.
    model = HDBSCAN(min_cluster_size=min(settings.min_cluster_size, len(vectors)), copy=True)
    codes: Codes = model.fit_predict(vectors).astype(np.int64)
    return codes


def _agglomerative(vectors: Vectors, settings: ClusterSettings) -> Codes:
    from sklearn.cluster import AgglomerativeClustering  # noqa: PLC0415

    model = AgglomerativeClustering(
        n_clusters=settings.num_clusters,
        distance_threshold=settings.max_distance,
        metric="cosine",
        linkage="average",
    )
    codes: Codes = model.fit_predict(vectors).astype(np.int64)
    return codes


def _by_size(codes: Codes) -> Codes:
    """The same clusters numbered by falling size, those of equal size by their first image; -1 stays."""
    found, first, counts = np.unique(codes, return_index=True, return_counts=True)
    order = [place for place in np.lexsort((first, -counts)) if found[place] >= 0]
    renumbered = np.full(len(codes), -1, dtype=np.int64)
    for number, place in enumerate(order):
        renumbered[codes == found[place]] = number
    return renumbered


def near_duplicates(vectors: Vectors, least_cosine: float) -> list[Codes]:
    """Groups of rows that hang together by pairs of at least that cosine, in the order of their first rows.

    Args:
        vectors: (n, D), of length 1.
        least_cosine: in -1..1.
    """
    from scipy.sparse import coo_array  # noqa: PLC0415
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    count = len(vectors)
    group = np.arange(count)
    height = max(1, _PAIRS_AT_A_TIME // max(count, 1))
    for start in track(range(0, count, height), "looking for near-duplicates", disable=count < 5000):
        # A pair is seen from its first row only: the others of the block are compared with those after it.
        row, column = np.nonzero(vectors[start : start + height] @ vectors[start:].T >= least_cosine)
        # Every row so far hangs on the first of its group, and the new pairs join groups.
        ends = np.concatenate([row + start, np.arange(count)]), np.concatenate([column + start, group])
        edges = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(count, count))
        labels = connected_components(edges, directed=False)[1]
        group = np.unique(labels, return_index=True)[1][labels]
    firsts, sizes = np.unique(group, return_counts=True)
    return [np.flatnonzero(group == first) for first in firsts[sizes > 1]]


def check_clusters_folder(out: Path, force: bool) -> None:
    """Raise OverwriteError when clusters may not be put there."""
    if out.exists() and not (out / "clusters.csv").is_file():
        raise OverwriteError(f"{out} holds something that is no result of `proxygml cluster`: choose another name")
    check_overwrite(out, force)


def write_clusters(
    out: Path, images: ImageList, vectors: Vectors, settings: ClusterSettings, layout: Layout, force: bool = False
) -> tuple[Codes, list[Codes]]:
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
        UserError: see `cluster`.
        OverwriteError: something is at `out`, and `force` is False or it is no earlier result.
    """
    check_clusters_folder(out, force)
    codes = cluster(vectors, settings)
    duplicates = near_duplicates(vectors, settings.duplicate_cosine)
    closeness = _closeness(vectors, codes)
    with atomic_folder(out) as folder:
        table = images.table.assign(cluster=codes, cosine_to_centre=closeness.round(4))
        table.sort_values(["cluster", "cosine_to_centre"], ascending=[True, False]).to_csv(
            folder / "clusters.csv", index=False
        )
        _duplicates_table(images, vectors, duplicates).to_csv(folder / "duplicates.csv", index=False)
        (folder / "sheets").mkdir()
        for code, rows in track(list(_members(codes, closeness)), "drawing contact sheets"):
            _draw_sheet(folder / "sheets" / f"{_name(code)}.png", code, rows, images, closeness)
            if layout != "table":
                _place(folder / _name(code), [Path(images.paths[row]) for row in rows], layout)
    return codes, duplicates


def _closeness(vectors: Vectors, codes: Codes) -> Vectors:
    """(n,): the cosine between each vector and the mean of its cluster."""
    closeness = np.zeros(len(codes), np.float32)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        mean = vectors[rows].mean(axis=0)
        closeness[rows] = vectors[rows] @ (mean / max(float(np.linalg.norm(mean)), 1e-12))
    return closeness


def _members(codes: Codes, closeness: Vectors) -> Iterator[tuple[int, Codes]]:
    """Each cluster with its rows, the most typical first."""
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        yield int(code), rows[np.argsort(-closeness[rows], kind="stable")]


def _name(code: int) -> str:
    return f"cluster-{code:04d}" if code >= 0 else "no-cluster"


def _duplicates_table(images: ImageList, vectors: Vectors, groups: list[Codes]) -> pd.DataFrame:
    paths = images.paths
    rows = [
        (number, paths[row], round(float(vectors[group[0]] @ vectors[row]), 4))
        for number, group in enumerate(groups)
        for row in group
    ]
    return pd.DataFrame(rows, columns=["group", "path", "cosine_to_first"])


def _draw_sheet(path: Path, code: int, rows: Codes, images: ImageList, closeness: Vectors) -> None:
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
    path.write_bytes(figures.png(figures.contact_sheet(tiles, f"{name}: {len(rows):,} images{some}")))


def _place(folder: Path, files: list[Path], layout: Layout) -> None:
    """Links or copies of the files; of several with one name, the later get a number."""
    folder.mkdir()
    taken: dict[str, int] = {}
    for file in files:
        number = taken.get(file.name, 1)
        target = folder / file.name
        while target.is_symlink() or target.exists():
            number += 1
            target = folder / f"{file.stem}-{number}{file.suffix}"
        taken[file.name] = number
        if layout == "links":
            target.symlink_to(file)
        else:
            shutil.copy2(file, target)


def summary(codes: Codes, duplicates: list[Codes]) -> str:
    """One sentence for the console."""
    clusters = int(codes.max()) + 1
    alone = f", {int((codes < 0).sum()):,} in none" if (codes < 0).any() else ""
    return (
        f"{_counted(len(codes), 'image')} in {_counted(clusters, 'cluster')}{alone}; "
        f"{_counted(sum(map(len, duplicates)), 'image')} in {_counted(len(duplicates), 'group')} of near-duplicates"
    )


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
