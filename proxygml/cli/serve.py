"""`proxygml serve`."""

import os
from collections.abc import Sequence
from dataclasses import fields

from proxygml.cli.inputs import check_inputs
from proxygml.cli.options import GALLERY_HELP, add_engine, add_run, chosen
from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.errors import check_extra, counted


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Serve a gallery over HTTP."""
    from proxygml.serving.limits import Limits

    parser.usage = "%(prog)s GALLERY [options]"
    parser.takes_gallery(parser.add_argument("gallery", help=GALLERY_HELP))
    parser.add_argument("--port", type=int, default=8000, help="the port to listen on; 0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0 lets other machines in")
    add_run(parser)
    add_engine(parser)
    parser.add_argument(
        "--page", type=bool, default=True, help="whether to serve a page to search on, beside the HTTP interface"
    )
    words = "a further name that clients call this server by (this machine's names are allowed); * allows any"
    parser.add_argument("--allowed_host", action="append", default=None, metavar="NAME", help=words)
    words = "the path under which a proxy shows this server, such as /birds"
    parser.add_argument("--root_path", type=str, default="", metavar="PATH", help=words)
    words = (
        "a web site whose pages may use the interface from a browser, such as https://shop.example.org; none by default"
    )
    parser.add_argument("--cors_origin", action="append", default=None, metavar="ORIGIN", help=words)
    words = (
        "where the images of added items are kept: a folder, or a URL such as s3://bucket/images; "
        "by default in the gallery's folder, and a gallery in Milvus takes no changes without"
    )
    parser.add_argument("--added_images", type=str, default="", metavar="PLACE", help=words)
    parser.add_class_arguments(Limits, as_group=False)
    parser.takes_urls("added_images")
    options = parser.parse(arguments)
    check_extra("serve", "fastapi", "fastapi_offline", "python_multipart", "prometheus_client", "uvicorn")
    check_inputs(gallery=options.gallery, run=options.run)
    from proxygml.gallery.base import Gallery
    from proxygml.gallery.source import Model
    from proxygml.serving.api import make_app
    from proxygml.serving.hosts import local_names
    from proxygml.serving.server import limit_network_threads, listen, run_server
    from proxygml.serving.service import Service

    limits = Limits(**chosen(options, *(key.name for key in fields(Limits))))
    gallery = Gallery.load(options.gallery)
    limit_network_threads()
    embedder = Model.of_gallery(gallery, options.run, options.engine).embedder()
    service = Service(gallery, embedder, limits, options.added_images or None)
    token = os.environ.get("PROXYGML_TOKEN", "")
    names = [*local_names(options.host), *(options.allowed_host or [])]
    app = make_app(service, token, names, root_path=options.root_path, cors_origins=options.cors_origin or [])
    if options.page:
        from proxygml.serving.page import add_page

        app = add_page(app)
    with listen(options.host, options.port) as (socket, address):
        say(
            f"{counted(len(gallery), 'item')}: {address}",
            f"interface: {address}/docs",
            f"changes: {_changes(bool(token), service.keeps_images)}",
        )
        run_server(app, socket, limits)


def _changes(has_token: bool, keeps_images: bool) -> str:
    """Who may change the gallery."""
    if not has_token:
        return "none, as PROXYGML_TOKEN is not set"
    return "with the token of PROXYGML_TOKEN" if keeps_images else "none, as --added_images is not given"
