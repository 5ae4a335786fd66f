"""The page of a gallery: drop an image, see the nearest, click one to search on from it. Gradio, mounted beside the
interface, asking the same service under the same limits."""

import asyncio
import html
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read as Gradio is imported

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from PIL import Image
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

from proxygml.serving.limits import RequestError
from proxygml.serving.service import KINDS, Answer, Service

PATH = "/page"
_SEEN = 240  # pixels
_KEPT = 600  # seconds that Gradio keeps what was sent and shown
_ENDINGS = [".jpeg", *(f".{ending}" for ending in KINDS.values())]
# System fonts, so that the page asks no other server for any.
_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
_CSS = ".caption-label {font-size: 0.8rem; max-width: 96%; white-space: normal} footer {display: none !important}"

Shown = tuple[list[tuple[Image.Image, str]], list[int], str]


def add_page(app: FastAPI, service: Service) -> FastAPI:
    """The application with the page at /page, where / leads to it."""

    @app.get("/", include_in_schema=False)
    async def start() -> RedirectResponse:
        return RedirectResponse(PATH)

    theme = gr.themes.Soft(primary_hue="blue", font=_FONTS, font_mono=["ui-monospace", "monospace"])
    most = round(service.limits.max_upload_mb * 10**6)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        _blocks(service),
        path=PATH,
        max_file_size=most,
        show_error=False,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        theme=theme,
        css=_CSS,
    )
    app.user_middleware.append(Middleware(_GradioPolicy))  # the innermost one
    return mounted


class _GradioPolicy:
    """Lets Gradio's page run its inline code, which SECURITY_HEADERS forbid."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["path"].startswith(PATH):
                policy = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
                MutableHeaders(scope=message)["Content-Security-Policy"] = policy
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _blocks(service: Service) -> gr.Blocks:
    most = min(48, service.limits.max_k)

    async def by_image(data: bytes | None, k: float) -> tuple[Any, ...]:
        if data is None:
            return None, [], [], ""
        async with _admitted(service):
            square = await service.square(data)
            answer = await service.search(await service.embed_square(square), int(k))
            shown = await _shown(service, answer)
        return _enlarged(square), *shown

    async def by_item(ids: list[int], k: float, event: gr.SelectData) -> tuple[Any, ...]:
        if event.index >= len(ids):  # what was found is forgotten after a while
            raise gr.Error("These results are too old: drop your image again.", print_exception=False)
        item = ids[event.index]
        async with _admitted(service):
            shown = await _shown(service, await service.neighbors(item, int(k)))
            picture = Image.open(io.BytesIO(await service.picture(item)))
        return picture, *shown[:2], f"Nearest to item {item}. {shown[2]}", gr.Gallery(selected_index=None)

    blocks: gr.Blocks
    with gr.Blocks(title="proxygml: search by image", analytics_enabled=False, delete_cache=(60, _KEPT)) as blocks:
        gr.Markdown(f"# Search {len(service.gallery):,} images\nDrop an image; click a result to search on from it.")
        ids = gr.State([], time_to_live=_KEPT)
        with gr.Row():
            with gr.Column(scale=1, min_width=240):
                # Not gr.Image, which would decode what comes before anybody has looked at its size.
                sent = gr.File(type="binary", file_types=_ENDINGS, label="Your image", height=140)
                seen = gr.Image(label="Searched with", interactive=False, height=_SEEN, buttons=[])
                k = gr.Slider(1, most, value=min(12, most), step=1, label="How many")
                said = gr.Markdown()
            with gr.Column(scale=3):
                found = gr.Gallery(
                    show_label=False,
                    columns=4,
                    height=760,
                    object_fit="contain",
                    allow_preview=False,
                    format="jpeg",
                    buttons=[],
                )
        for event in (sent.change, k.release):
            event(by_image, [sent, k], [seen, found, ids, said], show_progress="minimal")
        found.select(by_item, [ids, k], [seen, found, ids, said, found], show_progress="minimal")
    blocks.queue(max_size=service.limits.queue, default_concurrency_limit=service.limits.queue)
    return blocks


@asynccontextmanager
async def _admitted(service: Service) -> AsyncIterator[None]:
    """A request of the page, under the limits of all; what is refused is said on the page."""
    try:
        async with service.admitted():
            yield
    except RequestError as error:
        raise gr.Error(html.escape(error.message), print_exception=False) from None


def _enlarged(square: Tensor) -> Image.Image:
    """What the network sees, its pixels large enough to be looked at."""
    image = Image.fromarray(square.permute(1, 2, 0).contiguous().numpy())
    return image if image.width >= _SEEN else image.resize((_SEEN, _SEEN), Image.Resampling.NEAREST)


async def _shown(service: Service, answer: Answer) -> Shown:
    pictures = await asyncio.gather(*(service.picture(item["id"]) for item in answer.items))
    tiles: list[tuple[Image.Image, str]] = [
        (Image.open(io.BytesIO(picture)), f"{item['score']:.3f}  {item.get('label') or ''}".strip())
        for picture, item in zip(pictures, answer.items, strict=True)
    ]
    return tiles, [item["id"] for item in answer.items], _verdict(answer)


def _verdict(answer: Answer) -> str:
    if answer.prediction is None:
        return ""
    label, share = answer.prediction.label, answer.prediction.share
    return "None of the known classes." if label is None else f"**{html.escape(label)}**, {share:.0%} of the votes"
