"""Every picture that proxygml draws, in one style: plain arrays in, a Matplotlib figure out.

Colour is never the only cue: wrong images are also dashed and crossed. Nothing here opens an image, runs a network or
touches pyplot's global state; run_report.py and comparison/report.py choose what is shown.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from proxygml.errors import counted
from proxygml.evaluation.metrics import Estimate
from proxygml.reports.projection import Points

Image = npt.NDArray[np.uint8]  # (H, W, 3), upright RGB

DPI, GRID_DPI = 160, 130  # photographs weigh more than lines
COMPRESSION = 3  # of zlib's 9: the usual 6 is slower, and saves a twentieth of the bytes
LABEL_LETTERS, LABEL_WIDTH = 17, 1.1  # most below a tile; the width is in tiles
INK, MUTED, FAINT = "#1f2933", "#66727f", "#e3e7eb"
RIGHT, WRONG, BEFORE = "#0072b2", "#d55e00", "#a9b4c0"
# Okabe and Ito's colours, which people with any colour vision can tell apart.
SERIES = (RIGHT, WRONG, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8a6d3b")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a label may hold a dollar sign
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.dpi": DPI,
}


@dataclass(frozen=True)
class Tile:
    """An image of a retrieval grid; `right` is None for the query."""

    image: Image
    label: str
    note: str = ""
    right: bool | None = None


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's content."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE), _any_script():
        figure.savefig(buffer, format="png", dpi="figure", pil_kwargs={"compress_level": COMPRESSION})
    return buffer.getvalue()


@contextmanager
def _any_script() -> Iterator[None]:
    """Without warnings of a label in a script that the font lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


@mpl.rc_context(_STYLE)
def recall_bars(figures: Mapping[str, Estimate], before: Mapping[str, Estimate] | None = None) -> Figure:
    """A bar for each figure, by name, with its 95% interval; beside it the same before training, where given."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.add_subplot()
    series = [("after training", RIGHT, figures)]
    if before is not None:
        series.insert(0, ("before training", BEFORE, before))
    width = 0.8 / len(series) if len(series) > 1 else 0.55
    for place, (name, colour, estimates) in enumerate(series):
        offset = (place - (len(series) - 1) / 2) * width
        shown = [(x + offset, estimates[key]) for x, key in enumerate(figures) if key in estimates]
        _bars(axes, shown, width * 0.92, colour, name)
    axes.set_xticks(range(len(figures)), list(figures), color=INK)
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("per cent")
    if before is not None:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return figure


def _bars(axes: Axes, shown: Sequence[tuple[float, Estimate]], width: float, colour: str, name: str) -> None:
    places = [x for x, _ in shown]
    values = np.array([100 * estimate.value for _, estimate in shown])
    ends = np.array([(100 * estimate.low, 100 * estimate.high) for _, estimate in shown]).T
    # A percentile interval may not contain the value; a whisker cannot have negative length.
    whiskers = np.abs([np.minimum(ends[0] - values, 0), np.maximum(ends[1] - values, 0)])
    axes.bar(places, values, width, color=colour, label=name, yerr=whiskers, ecolor=INK, capsize=3)
    for x, value, top in zip(places, values, np.maximum(values, ends[1]), strict=True):
        axes.text(x, top + 1.5, f"{value:.1f}", ha="center", va="bottom", fontsize=8.5)


@mpl.rc_context(_STYLE)
def training_curves(history: pd.DataFrame) -> Figure:
    """What metrics.csv holds by `epoch`: `loss`, validation figures (val_*), `mean_cosine`, learning rates (*_lr)."""
    validation = [name for name in history if str(name).startswith("val_")]
    rates = [name for name in history if str(name).endswith("_lr")]
    groups = [
        ("Loss", ["loss"]),
        ("On validation classes, per cent", validation),
        ("Mean cosine between embeddings of a batch", ["mean_cosine"]),
        ("Learning rates", rates),
    ]
    panels = [(title, [name for name in names if name in history]) for title, names in groups]
    panels = [(title, names) for title, names in panels if names]
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(9, 2.6 * max(rows, 1)), layout="constrained")
    grid = figure.subplots(max(rows, 1), 2, squeeze=False).ravel()
    for axes, (title, names) in zip(grid, panels, strict=False):
        _lines(axes, history, names, scale=100.0 if names[0] in validation else 1.0)
        axes.set_title(title)
        if names == ["mean_cosine"]:
            axes.set_ylim(min(0.0, float(history["mean_cosine"].min())), 1)
            axes.axhspan(0.9, 1, color=WRONG, alpha=0.12, lw=0)
            # Beside the axes, where no line can cross it.
            place = axes.get_yaxis_transform()
            axes.text(1.01, 0.95, "collapse", color=WRONG, fontsize=8, va="center", transform=place)
        if names[0] in rates:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def _lines(axes: Axes, history: pd.DataFrame, names: Sequence[str], scale: float) -> None:
    for place, name in enumerate(names):
        seen = history[["epoch", name]].dropna()
        values = seen[name] * scale
        values = values.where(values > 0) if str(name).endswith("_lr") else values  # 0 has no place on a log scale
        marker, colour = MARKERS[place % len(MARKERS)], SERIES[place % len(SERIES)]
        size = 4 if len(seen) <= 30 else 0
        line = DASHES[place % len(DASHES)]  # lines that lie on each other can still be told apart
        axes.plot(seen["epoch"], values, line, color=colour, marker=marker, markersize=size, label=_spoken(name))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(names) > 1:
        axes.legend(fontsize=8)


def _spoken(column: str) -> str:
    """val_recall_at_1 -> Recall@1, backbone_lr -> backbone."""
    name = column.removeprefix("val_").removesuffix("_lr")
    known = {"map_at_r": "MAP@R", "r_precision": "R-precision", "nmi": "NMI", "loss": "loss"}
    return known.get(name, name.replace("recall_at_", "Recall@").replace("_", " "))


@dataclass(frozen=True)
class Spread:
    """A method's figure, in per cent: its mean with the ends of the interval (NaN: none), and the single runs."""

    mean: float
    low: float
    high: float
    values: Sequence[float]


@mpl.rc_context(_STYLE)
def method_points(methods: Sequence[str], panels: Mapping[str, Sequence[Spread]]) -> Figure:
    """A panel for each figure, a line for each method: the mean, its interval as a bar, single runs as rings."""
    figure = Figure(figsize=(9, 1.1 + 0.34 * len(methods)), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    rows = np.arange(len(methods))
    for axes, (name, spreads) in zip(grid, panels.items(), strict=True):
        means = np.array([spread.mean for spread in spreads])
        ends = np.array([(spread.low, spread.high) for spread in spreads]).T
        whiskers = np.abs(np.nan_to_num(np.stack([means - ends[0], ends[1] - means])))
        axes.errorbar(means, rows, xerr=whiskers, fmt="none", ecolor=MUTED, elinewidth=1.2, capsize=3)
        for row, spread in zip(rows, spreads, strict=True):
            axes.plot(spread.values, [row] * len(spread.values), "o", ms=4, mfc="none", mec=MUTED, mew=0.8)
        axes.plot(means, rows, "D", ms=6, color=RIGHT)
        axes.axvline(means[0], color=FAINT, zorder=0)
        axes.set_title(name)
        axes.set_xlabel("per cent")
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(rows, methods, color=INK)
    grid[0].set_ylim(len(methods) - 0.5, -0.5)
    return figure


@mpl.rc_context(_STYLE)
def method_curves(curves: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Recall@1 by epoch, in per cent: the mean of each method's runs; beside the last epoch, their worst and best."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    last = max(len(run) for runs in curves.values() for run in runs)
    for place, (name, runs) in enumerate(curves.items()):
        length = min(len(run) for run in runs)
        values = np.array([run[:length] for run in runs])
        epochs = np.arange(1, length + 1)
        colour, line = SERIES[place % len(SERIES)], DASHES[place // len(SERIES) % len(DASHES)]
        marker = MARKERS[place % len(MARKERS)]
        means = values.mean(axis=0)
        axes.plot(epochs, means, line, color=colour, marker=marker, markersize=4, label=name)
        # Beside each other, since bands of a dozen methods would hide them all.
        beside = last * (1.04 + 0.02 * place)
        axes.vlines(beside, values[:, -1].min(), values[:, -1].max(), color=colour, alpha=0.6)
        axes.plot(beside, means[-1], color=colour, marker=marker, markersize=4)
    axes.set(xlabel="epoch; beside the last, worst and best run", ylabel="Recall@1 on validation classes, per cent")
    axes.set_xticks(
        [tick for tick in MaxNLocator(integer=True, min_n_ticks=1).tick_values(1, last) if 1 <= tick <= last]
    )
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@mpl.rc_context(_STYLE)
def sweep(key: str, panels: Mapping[str, Mapping[str, Mapping[float, Spread]]]) -> Figure:
    """A panel for each figure, in it a line for each series: the mean by the value of a key, its interval as a bar.

    The axis of the values is logarithmic where they span more than a decade; a 0 then stands at its left end.
    """
    series = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    rows = -(-len(series) // 2)
    figure = Figure(figsize=(9, 3.6 + 0.2 * rows), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for name, points in lines.items():
            place = series.index(name)
            colour, line = SERIES[place % len(SERIES)], DASHES[place // len(SERIES) % len(DASHES)]
            _error_line(axes, points, name, color=colour, linestyle=line, marker=MARKERS[place % len(MARKERS)])
        _scale_values(axes, sorted({value for points in lines.values() for value in points}))
        axes.set(xlabel=key, ylabel="per cent")
        axes.set_title(title)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(2, len(series)), fontsize=8)
    return figure


def _error_line(axes: Axes, points: Mapping[float, Spread], name: str, **style: Any) -> None:
    means = np.array([spread.mean for spread in points.values()])
    ends = np.array([(spread.low, spread.high) for spread in points.values()]).T
    whiskers = np.abs(np.nan_to_num(np.stack([means - ends[0], ends[1] - means])))
    axes.errorbar(
        list(points), means, yerr=whiskers, label=name, elinewidth=1, capsize=3, markersize=5, alpha=0.9, **style
    )


def _scale_values(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at the values themselves; those that would run into the one before have no number."""
    positive = [value for value in values if value > 0]
    if positive and values[0] >= 0 and positive[-1] > 10 * positive[0]:
        if values[0] == 0:
            axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
        else:
            axes.set_xscale("log")
    low, high = (axes.transData.transform((end, 0))[0] for end in (values[0], values[-1]))
    labels, taken = [], -np.inf
    for value in values:
        place = (axes.transData.transform((value, 0))[0] - low) / max(high - low, 1e-9)
        labels.append(f"{value:g}" if place - taken > 0.06 else "")
        taken = place if labels[-1] else taken
    axes.set_xticks(values, labels)
    axes.xaxis.set_minor_locator(NullLocator())


@mpl.rc_context(_STYLE)
def retrieval_grid(rows: Sequence[Sequence[Tile]]) -> Figure:
    """A query in each row, first, and beside it the images nearest to it: right ones framed, wrong ones dashed."""
    pitch, gap, height = 1.12, 0.22, 1.42
    columns = max(len(row) for row in rows)
    width = columns * pitch + gap
    figure = Figure(figsize=(width * 1.05, (len(rows) * height + 0.3) * 1.05), dpi=GRID_DPI)
    FigureCanvasAgg(figure)  # on which labels are measured; otherwise, each is on a new one
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.06, width - 0.06), ylim=(len(rows) * height, -0.3), aspect="equal")
    axes.axis("off")
    axes.apply_aspect()  # before labels are measured
    for column in range(columns):
        x = column * pitch + gap * (column > 0)
        head = "query" if column == 0 else f"nearest {column}" if column == 1 else str(column)
        axes.text(x + 0.5, -0.08, head, ha="center", color=MUTED, fontsize=8)
        for place, row in enumerate(rows):
            if column < len(row):
                _draw_tile(axes, row[column], x, place * height)
    return figure


@mpl.rc_context(_STYLE)
def contact_sheet(tiles: Sequence[Tile], title: str, columns: int = 8) -> Figure:
    """Images side by side, in rows of so many, under a title."""
    pitch, height, head = 1.12, 1.42, 0.45
    rows = -(-len(tiles) // columns)
    figure = Figure(figsize=(columns * pitch * 1.05, (rows * height + head) * 1.05), dpi=GRID_DPI)
    FigureCanvasAgg(figure)  # on which labels are measured; otherwise, each is on a new one
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.06, columns * pitch - 0.06), ylim=(rows * height, -head), aspect="equal")
    axes.axis("off")
    axes.apply_aspect()  # before labels are measured
    axes.text(0, -0.15, title, fontsize=10, fontweight="bold")
    for place, tile in enumerate(tiles):
        _draw_tile(axes, tile, place % columns * pitch, place // columns * height)
    return figure


def _draw_tile(axes: Axes, tile: Tile, x: float, y: float) -> None:
    height, width = tile.image.shape[:2]
    half_height, half_width = height / max(height, width) / 2, width / max(height, width) / 2
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor="#f2f4f6", lw=0))
    extent = (x + 0.5 - half_width, x + 0.5 + half_width, y + 0.5 + half_height, y + 0.5 - half_height)
    axes.imshow(tile.image, extent=extent, interpolation="antialiased", aspect="equal", zorder=1)
    colour = INK if tile.right is None else RIGHT if tile.right else WRONG
    line = (0, (3, 1.6)) if tile.right is False else "solid"
    frame_width = 1.0 if tile.right is None else 2.6
    axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=colour, lw=frame_width, linestyle=line, zorder=2))
    if tile.right is not None:
        axes.add_patch(Circle((x + 0.88, y + 0.12), 0.085, facecolor=colour, edgecolor="white", lw=1, zorder=3))
        mark = "\N{CHECK MARK}" if tile.right else "\N{BALLOT X}"
        axes.text(x + 0.88, y + 0.122, mark, ha="center", va="center", color="white", fontsize=8, zorder=4)
    _write_below(axes, x + 0.5, y + 1.05, tile.label, INK)
    _write_below(axes, x + 0.5, y + 1.18, tile.note, colour)


def _write_below(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Write centred text below a tile, its middle left out as far as it would run into the next or off the picture."""
    drawn = axes.text(x, y, _shortened(text, LABEL_LETTERS), ha="center", va="top", fontsize=7, color=colour)
    with _any_script():
        for most in range(LABEL_LETTERS - 1, 7, -1):
            if drawn.get_window_extent().transformed(axes.transData.inverted()).width <= LABEL_WIDTH:
                break
            drawn.set_text(_shortened(text, most))


def _shortened(label: str, most: int) -> str:
    """At most so many letters of the label, its middle left out."""
    if len(label) <= most:
        return label
    tail = min(7, (most - 1) // 2)
    return f"{label[: most - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{label[-tail:]}"


def uncrowded(points: Points, gap: float, seed: int) -> npt.NDArray[np.int64]:
    """Indices of points of which no two squares of side `gap` around them overlap, chosen in a seeded order."""
    kept: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(points)):
        if not kept or np.abs(points[kept] - points[index]).max(axis=1).min() >= gap:
            kept.append(int(index))
    return np.array(sorted(kept), dtype=np.int64)


@mpl.rc_context(_STYLE)
def embedding_map(points: Points, classes: npt.NDArray[np.int64], thumbnails: Mapping[int, Image]) -> Figure:
    """Every point in its class's colour and marker, some with their image, framed in that colour.

    Args:
        points: (n, 2).
        classes: (n,), 0..C-1; neighbours in this numbering differ in colour and marker.
        thumbnails: images by the index of their point, drawn over the points.
    """
    figure = Figure(figsize=(9, 9))
    axes = figure.add_axes((0.005, 0.005, 0.99, 0.99))
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    axes.axis("off")
    area = float(
        np.clip(13 * 2000 / max(len(points), 1), 1, 13)
    )  # of a mark; so many smaller ones do not hide each other
    for style in range(len(SERIES) * len(MARKERS)):
        chosen = points[classes % (len(SERIES) * len(MARKERS)) == style]
        marker = MARKERS[style % len(MARKERS)]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=area, marker=marker, color=_class_colour(style), alpha=0.75, lw=0)
    for index, image in thumbnails.items():
        box = OffsetImage(image, zoom=0.36 * 72 / max(image.shape[:2]), dpi_cor=True)
        frame = {"edgecolor": to_rgba(_class_colour(int(classes[index]))), "lw": 1.1, "boxstyle": "square,pad=0.08"}
        axes.add_artist(AnnotationBbox(box, points[index], pad=0, bboxprops=frame))
    return figure


def _class_colour(code: int) -> str:
    return SERIES[code % len(SERIES)]


@mpl.rc_context(_STYLE)
def proxy_usage(counts: npt.NDArray[np.int64]) -> Figure:
    """How often each proxy was selected; counts (C, N), one row a class, its proxies side by side."""
    num_classes, per_class = counts.shape
    relative = counts / max(float(counts.mean()), 1e-12)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    curve, table = figure.subplots(1, 2, width_ratios=(1, 1.6)) if per_class > 1 else (figure.add_subplot(), None)
    falling = np.sort(relative.ravel())[::-1]
    share = 100 * (np.arange(falling.size) + 1) / falling.size
    curve.fill_between(share, falling, step="pre", color=RIGHT, alpha=0.2, lw=0)
    curve.step(share, falling, where="pre", color=RIGHT)
    curve.axhline(1, color=MUTED, lw=1, ls=(0, (4, 3)))
    curve.set(xlim=(0, 100), ylim=(0, None), xlabel="proxies, per cent, most selected first")
    curve.set_ylabel("selections, mean = 1")
    curve.set_title(f"{100 * np.mean(counts == 0):.1f} per cent never selected")
    if table is not None:
        ordered = -np.sort(-relative[np.argsort(-relative.sum(axis=1), kind="stable")], axis=1)
        image = table.imshow(ordered.T, aspect="auto", cmap="cividis", interpolation="antialiased", vmin=0)
        table.set_title("Within the classes")
        table.set(
            xlabel=f"{counted(num_classes, 'class')}, most selected first", ylabel=f"its {counted(per_class, 'proxy')}"
        )
        table.set_yticks([])
        table.grid(visible=False)
        figure.colorbar(image, ax=table, label="selections, mean = 1").outline.set_visible(False)
    return figure
