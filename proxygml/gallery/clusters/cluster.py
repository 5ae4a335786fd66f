"""Clustering the images of a catalog or of folders, or vectors: the function behind `proxygml cluster`."""

from collections.abc import Sequence

from proxygml.arguments import check_arguments
from proxygml.data.images.image_list import ImageList
from proxygml.files import PathLike, local_path
from proxygml.gallery.clusters.clustering import Clusters
from proxygml.gallery.clusters.folder import check_clusters_folder, write_clusters
from proxygml.gallery.clusters.settings import ClusterSettings, Layout
from proxygml.gallery.embed import embed_source
from proxygml.gallery.source import Model, Source
from proxygml.models.embed_images import OnBad, discard
from proxygml.models.engines import Engine
from proxygml.urls import as_place


@check_arguments
def cluster(
    run: PathLike,
    out: PathLike,
    settings: ClusterSettings,
    *,
    catalog: PathLike | None = None,
    images: PathLike | Sequence[PathLike] = (),
    vectors: PathLike | None = None,
    split: str = "all",
    layout: Layout = "links",
    on_bad: OnBad = "fail",
    force: bool = False,
    workers: int = 2,
    batch_size: int = 64,
    engine: Engine = "torch",
) -> Clusters:
    """Sort images into clusters, and write a folder with their table, near-duplicates and a contact sheet of each.

    A call that was stopped continues when it is repeated.

    Args:
        run: the run folder of the model.
        out: the folder to make: clusters.csv, duplicates.csv, sheets/, and a folder for each cluster.
        settings: how images are grouped, such as ClusterSettings("hdbscan").
        catalog: a table of images, or of vectors; give exactly one of `catalog`, `images` and `vectors`.
        images: an image file or a folder of them, or several.
        vectors: a file that `embed` wrote; or, for a model of vectors, one of vectors to embed (.parquet or .npy).
        split: of the catalog: train, val, test, or all.
        layout: table: no folders of the clusters; links or copies: folders with links to the images, or with copies.
        on_bad: what images that cannot be read lead to: fail after all others are embedded, or drop them.
        force: replace the result of an earlier call.
        workers: processes that decode images; 0 decodes in this one.
        batch_size: images embedded at a time.
        engine: what computes the embeddings; see `embed`.

    Returns:
        The cluster of each image that could be read, and the groups of near-duplicates.

    Raises:
        UserError: a source is missing, an image cannot be read, something is at `out` already, or there are fewer
            images than clusters.
    """
    folder, place = local_path(out, "out"), as_place(run, "run")
    source = Source.of(catalog, images, vectors, split)
    check_clusters_folder(folder, force)
    model = Model.of(place, engine)
    if source.vectors is not None or model.takes_vectors:
        embeddings, items = source.vector_input(model).whole()
        if "path" in items:
            return write_clusters(folder, ImageList(items), embeddings, settings, layout, force)
        # Without images there is nothing to sort or to show, and rows may have to name the items.
        return write_clusters(folder, ImageList(items, source.rows()), embeddings, settings, "table", force)
    work = folder.with_name(f".{folder.name}.partial")
    embedded = embed_source(model, source, work, on_bad=on_bad, workers=workers, batch_size=batch_size)
    embeddings, items = embedded.whole()
    found = write_clusters(folder, ImageList(items), embeddings, settings, layout, force)
    discard(work)
    return found
