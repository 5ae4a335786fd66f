"""`proxygml serve`."""

import os
from collections.abc import Sequence
from dataclasses import fields

from proxygml.cli.inputs import check_inputs
from proxygml.cli.options import GALLERY_HELP, add_run, chosen
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
    parser.add_argument(
        "--page", type=bool, default=True, help="whether to serve a page to search on, beside the HTTP interface"
    )
    words = "a further name that clients call this server by (this machine's names are allowed); * allows any"
    parser.add_argument("--allowed_host", action="append", default=None, metavar="NAME", help=words)
    parser.add_class_arguments(Limits, as_group=False)
    options = parser.parse(arguments)
    check_extra("serve", "fastapi", "fastapi_offline", "python_multipart", "prometheus_client", "uvicorn")
    check_inputs(gallery=options.gallery, run=options.run)
    from proxygml.gallery.base import Gallery
    from proxygml.gallery.source import Model
    from proxygml.serving.api import make_app
    from proxygml.serving.hosts import local_names
    from proxygml.serving.server import listen, run_server
    from proxygml.serving.service import Service

    limits = Limits(**chosen(options, *(key.name for key in fields(Limits))))
    gallery = Gallery.load(options.gallery)
    service = Service(gallery, Model.of_gallery(gallery, options.run).embedder(), limits)
    token = os.environ.get("PROXYGML_TOKEN", "")
    app = make_app(service, token, [*local_names(options.host), *(options.allowed_host or [])])
    if options.page:
        from proxygml.serving.page import add_page

        app = add_page(app)
    with listen(options.host, options.port) as (socket, address):
        say(
            f"{counted(len(gallery), 'item')}: {address}",
            f"interface: {address}/docs",
            "changes: with the token of PROXYGML_TOKEN" if token else "changes: none, as PROXYGML_TOKEN is not set",
        )
        run_server(app, socket, limits)
