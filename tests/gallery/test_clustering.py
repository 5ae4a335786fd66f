"""Clusters and near-duplicates of images, and the folder that shows them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proxygml.data.images.image_list import ImageList
from proxygml.errors import OverwriteError, UserError
from proxygml.evaluation.duplicates import near_duplicates
from proxygml.gallery.clusters.clustering import cluster_vectors
from proxygml.gallery.clusters.folder import write_clusters
from proxygml.gallery.clusters.settings import ClusterSettings
from tests.helpers.pictures import write_picture
from tests.helpers.vectors import Array


def groups(sizes: list[int], size: int = 8) -> tuple[Array, list[int]]:
    random = np.random.default_rng(0)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    vectors = np.eye(size)[codes] + 0.05 * random.normal(size=(len(codes), size))
    order = random.permutation(len(codes))
    unit: Array = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)[order]
    return unit, codes[order].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        ClusterSettings("kmeans", num_clusters=3),
        ClusterSettings("hdbscan"),
        ClusterSettings("agglomerative", num_clusters=3),
        ClusterSettings("agglomerative", max_distance=0.5),
    ],
)
def test_every_method_finds_plain_groups_largest_first(settings: ClusterSettings) -> None:
    vectors, codes = groups([30, 20, 10])
    assert cluster_vectors(vectors, settings).tolist() == codes


def test_hdbscan_leaves_odd_images_out() -> None:
    vectors, _ = groups([30, 20, 1])
    assert (cluster_vectors(vectors, ClusterSettings("hdbscan")) < 0).sum() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "kmeans"}, "needs --num_clusters"),
        ({"method": "agglomerative"}, "either --num_clusters or --max_distance"),
        ({"method": "dbscan"}, "one of kmeans"),
        ({"num_clusters": 0}, "1 or more"),
        ({"method": "agglomerative", "max_distance": -1.0}, "above 0"),
        ({"method": "hdbscan", "min_cluster_size": 1}, "2 or more"),
        ({"num_clusters": 3, "duplicate_cosine": 2.0}, "-1..1"),
    ],
)
def test_impossible_settings_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClusterSettings(**arguments)  # type: ignore[arg-type]


def test_more_clusters_than_images() -> None:
    with pytest.raises(UserError, match="num_clusters is 4, more than the 3 images"):
        cluster_vectors(groups([3])[0], ClusterSettings(num_clusters=4))


def test_near_duplicates_hang_together_in_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = np.array([0.0, 2.0, 0.1, 1.0, 0.2, 1.05])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    least = float(np.cos(0.15))
    expected = [[0, 2, 4], [3, 5]]
    assert [group.tolist() for group in near_duplicates(vectors, least)] == expected
    monkeypatch.setattr("proxygml.evaluation.duplicates._PAIRS_AT_A_TIME", 12)  # two rows at a time
    assert [group.tolist() for group in near_duplicates(vectors, least)] == expected


def test_the_folder_holds_tables_sheets_and_links(tmp_path: Path) -> None:
    vectors, codes = groups([6, 4])
    paths = [write_picture(tmp_path / "photos" / str(n) / "same name.png", n) for n in range(10)]
    images = ImageList(pd.DataFrame({"path": [str(path) for path in paths], "note": "x"}))
    settings = ClusterSettings(num_clusters=2, duplicate_cosine=0.9)
    out = tmp_path / "clusters"
    write_clusters(out, images, vectors, settings, "links")
    table = pd.read_csv(out / "clusters.csv").set_index("path")
    assert [int(table.loc[str(path), "cluster"]) for path in paths] == codes  # type: ignore[arg-type]
    linked = {code: {link.resolve() for link in (out / f"cluster-{code:04d}").iterdir()} for code in (0, 1)}
    assert linked == {code: {path for path, own in zip(paths, codes, strict=True) if own == code} for code in (0, 1)}
    assert set(pd.read_csv(out / "duplicates.csv").groupby("group").size()) == {6, 4}
    assert sorted(path.name for path in (out / "sheets").iterdir()) == ["cluster-0000.png", "cluster-0001.png"]
    with pytest.raises(OverwriteError, match="already there"):
        write_clusters(out, images, vectors, settings, "table")
    write_clusters(out, images, vectors, settings, "copies", force=True)
    assert all(path.is_file() and not path.is_symlink() for path in (out / "cluster-0000").iterdir())
    with pytest.raises(OverwriteError, match="no result of"):
        write_clusters(tmp_path / "photos", images, vectors, settings, "table", force=True)


def test_vectors_without_path_or_id_are_named_by_their_row_in_both_tables(tmp_path: Path) -> None:
    vectors, codes = groups([6, 4])
    images = ImageList(pd.DataFrame({"label": ["x"] * 10}))
    settings = ClusterSettings(num_clusters=2, duplicate_cosine=0.9)
    write_clusters(tmp_path / "c", images, vectors, settings, "table")
    clusters = pd.read_csv(tmp_path / "c" / "clusters.csv").set_index("item")
    assert [int(clusters.loc[f"row {row}", "cluster"]) for row in range(10)] == codes
    assert set(pd.read_csv(tmp_path / "c" / "duplicates.csv")["item"]) == set(clusters.index)
