"""A server in a thread of this process, and images to send to it."""

import io
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pytest
from PIL import Image

from proxygml import Gallery
from proxygml.data.images.formats import register_heif
from proxygml.gallery.build import build_gallery
from proxygml.gallery.source import Model, Source
from proxygml.models.engines import Engine, load_embedder
from proxygml.serving.limits import Limits
from proxygml.serving.service import Service

if TYPE_CHECKING:
    import httpx

listening = pytest.importorskip("proxygml.serving.server", reason="the extra serve is not installed")
app = pytest.importorskip("proxygml.serving.api", reason="the extra serve is not installed")

TOKEN = "a secret of the operator"
TIMES = {"trust_env": False, "timeout": 60}
AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}


Place = TypeVar("Place", Path, str)


def gallery_at(folder: Place, run: Path, catalog: Path) -> Place:
    build_gallery(Model.of(run), Source(catalog, split="test"), folder, workers=0)
    return folder


class Running:
    """A server in a thread, on a free port of the loopback interface."""

    def __init__(
        self,
        folder: Path | str,
        run: Path,
        limits: Limits,
        token: str = TOKEN,
        added_images: Path | str | None = None,
        engine: Engine = "torch",
        **options: object,
    ) -> None:
        self.service = Service(Gallery.load(folder), load_embedder(run, engine), limits, added_images)
        self.app = app.make_app(self.service, token, **options)
        self.server = listening.Server(self.app, limits)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self) -> "Running":
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    if kind == "HEIF":
        register_heif("an image")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def picture(seed: int = 0, kind: str = "PNG", side: int = 24) -> bytes:
    return encoded(np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8), kind)


def post(client: "httpx.Client", path: str, data: bytes, **form: object) -> "httpx.Response":
    headers = AUTHORISED if path == "/items" else {}
    return client.post(path, files={"image": ("photo", data)}, data=form, headers=headers)
