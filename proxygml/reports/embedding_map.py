"""The map of embeddings that a browser can zoom and search: what it shows of each point, as data and scripts of a page.

run_report.py chooses the points, projection.py places them, templates/map.js shows them with Bokeh's plot. Labels and
paths are hostile text: they travel as JSON and reach the page as text nodes alone.
"""

import base64
import colorsys
import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from proxygml.console import track
from proxygml.reports.figures import RIGHT, SERIES, WRONG, Image
from proxygml.reports.projection import Points

THUMBNAIL_BYTES = 6_000_000  # most of all pictures together; a page carries them as base64, a third longer
LETTERS = 120  # most of a label or a path, of whose middle the rest is left out
UNKNOWN = "#8a94a0"  # the colour of what belongs to no group
READERS = 4  # threads that decode images


@dataclass(frozen=True)
class Grouping:
    """One way to colour the points: the names of its groups, and the group of each point.

    Args:
        title: what a reader chooses, such as "class".
        names: of the groups.
        codes: (n,), each an index of `names`.
        colours: of the groups, #rrggbb.
        triangle: a group drawn as a triangle, so that colour is not its only mark.
    """

    title: str
    names: Sequence[str]
    codes: npt.NDArray[np.int64]
    colours: Sequence[str]
    triangle: int | None = None


@dataclass(frozen=True)
class InteractiveMap:
    """What a page needs for a map: its data as JSON that may stand in a script element, and the scripts, in order."""

    data: str
    scripts: tuple[str, ...]


def by_class(labels: npt.NDArray[np.str_]) -> Grouping:
    """Points (n,) by label, in alphabetical order."""
    names, codes = np.unique(labels, return_inverse=True)
    return Grouping("class", names.tolist(), codes, class_colours(len(names)))


def by_outcome(count: int, queries: npt.NDArray[np.int64], first_positive: npt.NDArray[np.int64]) -> Grouping:
    """Each of `count` points by whether the nearest one was of its class.

    Args:
        count: n.
        queries: (q,), the indices of the points that searched.
        first_positive: (q,), how many wrong ones were nearer than the first right one.
    """
    codes = np.full(count, 2)
    codes[queries] = first_positive > 0
    names = ("its own class", "another class", "not a query, or alone in its class")
    return Grouping("nearest neighbour", names, codes, (RIGHT, WRONG, UNKNOWN), triangle=1)


def by_value(title: str, values: Sequence[str]) -> Grouping:
    """Points by a value of each, such as its split."""
    names, codes = np.unique(np.array(values, dtype=str), return_inverse=True)
    return Grouping(title, names.tolist(), codes, class_colours(len(names)))


def class_colours(count: int) -> list[str]:
    """Colours #rrggbb for so many classes: the report's own as far as they go, then hues a golden angle apart.

    Of hundreds, neighbours in this order differ; no two palettes of that size can be told apart by eye, so the legend
    and the search pick a class out.
    """
    if count <= len(SERIES):
        return list(SERIES[:count])
    colours = []
    for index in range(count):
        lightness = (0.5, 0.62, 0.42)[index % 3]
        red, green, blue = colorsys.hls_to_rgb(index * 0.618034 % 1, lightness, 0.65)
        colours.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return colours


def thumbnails(
    count: int, picture: Callable[[int], Image], seed: int, budget: int = THUMBNAIL_BYTES
) -> dict[int, bytes]:
    """WebP pictures of points, in a random order, until their bytes reach the budget.

    Args:
        count: n.
        picture: the small image of a point, by its index.
        seed: of the order.
        budget: most bytes of all together.
    """
    order = np.random.default_rng(seed).permutation(count).tolist()
    kept: dict[int, bytes] = {}
    block = 64
    with ThreadPoolExecutor(READERS) as readers:
        for start in track(range(0, count, block), "Drawing thumbnails"):
            part = order[start : start + block]
            for index, content in zip(part, readers.map(lambda index: _webp(picture(index)), part), strict=True):
                budget -= len(content)
                if budget < 0:
                    return kept
                kept[index] = content
    return kept


def _webp(image: Image) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "webp", quality=60)
    return buffer.getvalue()


def interactive_map(
    points: Points, groupings: Sequence[Grouping], texts: Sequence[str], pictures: dict[int, bytes]
) -> InteractiveMap:
    """The map of points (n, 2).

    Args:
        points: where they lie, in 0..1.
        groupings: ways to colour them; the first, by class, is what the map opens with, and what the search looks in.
        texts: (n,), the path or name of each, which the search looks in too.
        pictures: WebP files by the index of their point.
    """
    data = {
        "plot": _plot(points, groupings),
        "groupings": [
            {"title": group.title, "names": [_bounded(name) for name in group.names], "colours": group.colours}
            for group in groupings
        ],
        "texts": [_bounded(text) for text in texts],
        "pictures": {str(index): base64.b64encode(content).decode("ascii") for index, content in pictures.items()},
    }
    # No "<" may stand in a script element: "</script>" would end it, "<!--" would change how it is read.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return InteractiveMap(
        text, (*_bokeh_scripts(), (files("proxygml.reports") / "templates" / "map.js").read_text("utf-8"))
    )


def _bounded(text: str) -> str:
    """The text as valid Unicode, its middle left out where it is long."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # names of files may hold halves of characters
    half = (LETTERS - 1) // 2
    return text if len(text) <= LETTERS else f"{text[:half]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}"


def _bokeh_scripts() -> list[str]:
    """Bokeh's scripts for a plot drawn by WebGL, as its package holds them."""
    folder = files("bokeh") / "server" / "static" / "js"
    return [(folder / name).read_text("utf-8") for name in ("bokeh.min.js", "bokeh-gl.min.js")]


def _plot(points: Points, groupings: Sequence[Grouping]) -> object:
    """Bokeh's description of the plot; map.js finds its data by the names of the columns."""
    from bokeh.embed import json_item  # noqa: PLC0415  (slow to load, and only the map needs it)
    from bokeh.models import ColumnDataSource, PanTool, Plot, Range1d, Scatter, WheelZoomTool  # noqa: PLC0415

    colours = np.array([int(f"{colour[1:]}ff", 16) for colour in groupings[0].colours], dtype=np.uint32)
    columns: dict[str, object] = {"x": points[:, 0].astype(np.float32), "y": points[:, 1].astype(np.float32)}
    columns["colour"] = colours[groupings[0].codes]
    for place, group in enumerate(groupings):
        columns[f"group_{place}"] = group.codes.astype(np.min_scalar_type(max(len(group.names) - 1, 0)))
    triangles = np.zeros(len(points), dtype=bool)
    for group in groupings:
        if group.triangle is not None:
            triangles |= group.codes == group.triangle
    columns["marker"] = np.where(triangles, "triangle", "circle").tolist()
    size = float(np.clip(320 / np.sqrt(len(points)), 4, 10))
    plot = Plot(
        name="embedding_map",
        x_range=Range1d(start=-0.04, end=1.04),
        y_range=Range1d(start=-0.04, end=1.04),
        output_backend="webgl",
        sizing_mode="stretch_both",
        toolbar_location=None,
        min_border=0,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        lod_threshold=20_000,  # with more points than that, a tenth of them is drawn while the map moves
    )
    pan, wheel = PanTool(), WheelZoomTool()
    plot.add_tools(pan, wheel)
    plot.toolbar.active_drag = pan
    plot.toolbar.active_scroll = None  # map.js lets the wheel zoom once the map was clicked, and else scroll the page

    mark: dict[str, Any] = {"size": size, "marker": "marker", "line_color": None}  # at the columns x and y
    found = Scatter(fill_color="colour", **mark)
    # Without their colours: a hundred faint marks on one place are as strong as the one that was found.
    dimmed = Scatter(fill_color=UNKNOWN, fill_alpha=0.05, **mark)
    usual = Scatter(fill_color="colour", fill_alpha=0.75, **mark)
    source = ColumnDataSource(columns, name="points")
    plot.add_glyph(source, usual, selection_glyph=found, nonselection_glyph=dimmed)
    return _renumbered(json_item(plot), {})


def _renumbered(node: Any, names: dict[str, str]) -> Any:
    """Bokeh's description with ids that do not depend on what the process drew before: a report is reproducible."""
    if isinstance(node, list):
        return [_renumbered(each, names) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        key: names.setdefault(value, f"m{len(names)}")
        if key in ("id", "root_id") and isinstance(value, str)
        else _renumbered(value, names)
        for key, value in node.items()
    }
