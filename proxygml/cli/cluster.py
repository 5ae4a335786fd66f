"""`proxygml cluster`."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from proxygml.cli.options import add_embedding_options, add_source_options, embed_source
from proxygml.cli.output import say
from proxygml.cli.parser import Parser


def cluster(arguments: Sequence[str]) -> None:
    """Sort images into clusters, report near-duplicates, draw a contact sheet of each cluster."""
    from proxygml.gallery.cluster_folder import Layout, check_clusters_folder, summary, write_clusters
    from proxygml.gallery.clustering import ClusterSettings

    parser = Parser("cluster", str(cluster.__doc__))
    parser.add_argument("run", type=Path, help="the run folder")
    add_source_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    layout = "table: clusters.csv; links or copies: folders of the images too"
    parser.add_argument("--layout", type=Layout, default="links", help=layout)
    parser.add_class_arguments(ClusterSettings, as_group=False)
    add_embedding_options(parser)
    options = parser.parse(arguments)
    from proxygml.data.image_list import ImageList
    from proxygml.gallery.build import Model
    from proxygml.models.embed_images import discard

    settings = ClusterSettings(**{key.name: options[key.name] for key in fields(ClusterSettings)})
    check_clusters_folder(options.out, options.force)
    model, work = Model.of(options.run), options.out.with_name(f".{options.out.name}.partial")
    embedded = embed_source(model, work, options)
    vectors, table = embedded.whole()
    found = write_clusters(options.out, ImageList(table), vectors, settings, options.layout, options.force)
    discard(work)
    say(summary(*found), f"clusters: {options.out / 'clusters.csv'}", f"sheets:   {options.out / 'sheets'}")
