"""What the pictures must show, whatever they look like: heights, intervals, frames, thumbnails that do not overlap."""

import io
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import Rectangle
from PIL import Image

from proxygml.evaluation.metrics import Estimate
from proxygml.reports import figures
from proxygml.reports.figures import Tile

ESTIMATES = {"Recall@1": Estimate(0.5, 0.4, 0.7), "NMI": Estimate(1.0, 1.0, 1.0)}


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def opened(figure) -> Image.Image:
    image = Image.open(io.BytesIO(figures.png(figure)))
    image.load()
    return image


def test_bars_are_as_high_as_the_values_and_whiskers_end_at_the_interval():
    axes = figures.recall_bars(ESTIMATES).axes[0]
    bars, whiskers = axes.containers[1], axes.containers[0]
    assert [bar.get_height() for bar in bars] == [50, 100]
    segments = whiskers[2][0].get_segments()
    assert [tuple(segment[:, 1]) for segment in segments] == [pytest.approx((40, 70)), (100, 100)]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["Recall@1", "NMI"]


def test_bars_stand_beside_those_before_training_as_far_as_there_are_any():
    figure = figures.recall_bars(ESTIMATES, before={"Recall@1": Estimate(0.1, 0.0, 0.2)})
    assert texts(figure) == ["10.0", "50.0", "100.0"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "before training",
        "after training",
    ]


def test_an_interval_beside_its_value_is_drawn():
    opened(figures.recall_bars({"MAP@R": Estimate(0.5, 0.6, 0.7)}))


def history(**columns) -> pd.DataFrame:
    return pd.DataFrame({"epoch": [1, 2, 3], **columns})


def test_curves_show_what_the_table_holds():
    figure = figures.training_curves(
        history(
            loss=[3.0, 2.0, 1.0],
            mean_cosine=[0.5, 0.3, 0.2],
            val_map_at_r=[0.1, 0.2, 0.3],
            val_recall_at_1=[0.4, 0.5, 0.6],
            backbone_lr=[0.0, 1e-4, 1e-5],
            seconds=[1.0, 1.0, 1.0],
        )
    )
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "Loss",
        "On validation classes, per cent",
        "Mean cosine between embeddings of a batch",
        "Learning rates",
    ]
    lines = {line.get_label(): line.get_ydata() for axes in figure.axes[:2] for line in axes.lines}
    assert lines["Recall@1"] == pytest.approx([40, 50, 60])
    assert lines["MAP@R"] == pytest.approx([10, 20, 30])
    opened(figure)


@pytest.mark.parametrize("columns", [{}, {"loss": [1.0, np.nan, 2.0]}, {"mean_cosine": [-0.1, 0.0, 1.0]}])
def test_curves_cope_with_few_columns_and_gaps(columns):
    figure = figures.training_curves(history(**columns))
    assert len(figure.axes) == len(columns)
    opened(figure)


def test_wrong_neighbours_differ_from_right_ones_by_more_than_colour():
    image = np.zeros((4, 8, 3), dtype=np.uint8)
    row = [Tile(image, "owl"), Tile(image, "owl", "0.90", right=True), Tile(image, "wren", "0.80", right=False)]
    figure = figures.retrieval_grid([row, row[:2]])
    frames = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and not p.get_fill()]
    assert [frame.get_linestyle() == "solid" for frame in frames].count(False) == 1
    shown = texts(figure)
    assert shown.count("\N{BALLOT X}") == 1
    assert shown.count("\N{CHECK MARK}") == 2
    assert {"query", "nearest 1", "2", "owl", "wren", "0.90", "0.80"} <= set(shown)
    opened(figure)


@pytest.mark.parametrize("label", ["$x_1$ & $y", "a very long label of a class indeed", "\u3042\u3044", "<b>", ""])
def test_any_label_can_be_drawn(label):
    opened(figures.retrieval_grid([[Tile(np.zeros((5, 5, 3), dtype=np.uint8), label)]]))


@pytest.mark.parametrize("label", ["W" * 40, "a very long label of a class indeed", "wren"])
def test_labels_stay_on_the_picture_and_apart(label):
    tile = Tile(np.zeros((5, 5, 3), dtype=np.uint8), label, "0.90", right=True)
    for figure in (figures.retrieval_grid([[tile] * 3]), figures.contact_sheet([tile] * 3, "title", columns=3)):
        opened(figure)
        drawn = [text for text in figure.axes[0].texts if text.get_text()[:4] == label[:4]]
        boxes = sorted((text.get_window_extent() for text in drawn), key=lambda box: box.x0)
        assert len(boxes) == 3
        assert boxes[0].x0 >= 0
        assert boxes[-1].x1 <= figure.bbox.x1
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_no_line_crosses_the_word_collapse():
    axes = figures.training_curves(history(mean_cosine=[0.99, 0.95, 0.9])).axes[0]
    (word,) = axes.texts
    assert word.get_text() == "collapse"
    assert word.get_window_extent().x0 > axes.get_window_extent().x1


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(0, 80), gap=st.floats(0.01, 0.5))
def test_thumbnails_do_not_overlap_and_leave_no_room(seed, count, gap):
    points = np.random.default_rng(seed).random((count, 2))
    kept = figures.uncrowded(points, gap, seed)
    distances = np.abs(points[:, None] - points[None, kept]).max(axis=2) if count else np.zeros((0, 0))
    assert np.all(distances[kept] + np.eye(len(kept)) >= gap)
    assert count == 0 or np.all(distances.min(axis=1) < gap)


def test_a_map_of_many_classes_and_odd_shapes_is_drawn():
    points = np.random.default_rng(0).random((200, 2))
    thumbnails = {3: np.zeros((20, 5, 3), dtype=np.uint8), 100: np.full((5, 20, 3), 200, dtype=np.uint8)}
    assert opened(figures.embedding_map(points, np.arange(200), thumbnails)).size == (9 * figures.DPI, 9 * figures.DPI)


@pytest.mark.parametrize("shape", [(1, 1), (10, 1), (10, 12), (3000, 2)])
def test_proxy_usage_says_how_many_are_never_selected(shape):
    counts = np.arange(np.prod(shape)).reshape(shape)
    figure = figures.proxy_usage(counts)
    assert figure.axes[0].get_title(loc="left") == f"{100 / counts.size:.1f} per cent never selected"
    opened(figure)


def test_proxies_that_were_never_counted_are_drawn():
    opened(figures.proxy_usage(np.zeros((4, 3), dtype=np.int64)))


def test_drawing_leaves_the_global_state_alone():
    program = (
        "import sys, matplotlib as mpl\n"
        "before = mpl.rcParams.copy()\n"
        "from proxygml.reports import figures\n"
        "from proxygml.evaluation.metrics import Estimate\n"
        "figures.png(figures.recall_bars({'NMI': Estimate(0.5, 0.4, 0.6)}))\n"
        "print('matplotlib.pyplot' in sys.modules, mpl.rcParams.copy() == before)"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        == "False True\n"
    )


def test_methods_stand_at_their_means_with_intervals_and_single_runs():
    spreads = [figures.Spread(50.0, 45.0, 55.0, [48.0, 52.0]), figures.Spread(60.0, np.nan, np.nan, [60.0])]
    axes = figures.method_points(["A", "B"], {"Recall@1": spreads}).axes[0]
    segments = axes.containers[0][2][0].get_segments()
    assert [tuple(segment[:, 0]) for segment in segments] == [(45, 55), (60, 60)]
    rings = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"]
    assert rings == [[48.0, 52.0], [60.0]]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["A", "B"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first method is at the top"


def test_curves_of_methods_are_means_with_a_bar_from_worst_to_best_beside_the_last_epoch():
    figure = figures.method_curves({"A": [[10.0, 30.0], [20.0, 50.0]], "B": [[5.0, 6.0, 7.0]]})
    lines = figure.axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[15, 40], [40], [5, 6, 7], [7]]
    assert list(lines[2].get_xdata()) == [1, 2, 3]
    bars = [collection.get_paths()[0].vertices for collection in figure.axes[0].collections]
    assert [(bar[:, 1].min(), bar[:, 1].max()) for bar in bars] == [(30, 50), (7, 7)]
    assert all(bar[:, 0].min() > 3 for bar in bars)
    assert list(figure.axes[0].get_xticks()) == [1, 2, 3]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["A", "B"]
    assert opened(figure).width > 1000


def test_sweeps_are_lines_with_bars_on_an_axis_that_fits_the_values():
    def spread(value):
        return figures.Spread(value, value - 1, value + 2, [value])

    lines = {"A": {1.0: spread(40), 4.0: spread(50), 30.0: spread(45)}, "B": {4.0: spread(60)}}
    figure = figures.sweep("proxies_per_class", {"Recall@1": lines, "MAP@R": lines})
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [list(line[0].get_xdata()) for line in axes.containers] == [[1, 4, 30], [4]]
    bars = axes.containers[0][2][0].get_segments()
    assert [tuple(bar[:, 1]) for bar in bars] == [(39, 42), (49, 52), (44, 47)]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4", "30"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A", "B"]
    assert opened(figure).width > 1000
    for values, scale in (((0.0, 0.1, 3.0), "symlog"), ((1.0, 10.0), "linear"), ((0.0, 0.3), "linear")):
        alone = figures.sweep("x", {"Recall@1": {"A": {value: spread(50) for value in values}}})
        assert alone.axes[0].get_xscale() == scale
        opened(alone)
