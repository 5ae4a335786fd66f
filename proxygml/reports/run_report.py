"""Self-contained pages: how well a model retrieves, what it confuses and how it was trained; and how methods compare.

It chooses what is shown and writes the page; evaluation.py and summary.py compute the figures, figures.py draws them.
"""

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from proxygml.comparison.plan import short_key
from proxygml.comparison.tables import Summary, Sweep, metric_name
from proxygml.console import console, track
from proxygml.data.catalog import Catalog
from proxygml.data.images import thumbnail
from proxygml.errors import UserError
from proxygml.evaluation.metrics import Evaluation, QueryScores, nearest, score_queries
from proxygml.files import atomic_write
from proxygml.reports import figures

NEIGHBOURS = 7  # shown beside each query
QUERIES = 5  # rows of a retrieval grid
MAP_IMAGES = 1200  # most images on the map
CLASSES = 8  # rows of a table of classes
TILE_PIXELS, THUMBNAIL_PIXELS = 140, 64
THUMBNAIL_GAP = 0.049  # of the map's width, between the centres of two thumbnails


@dataclass(frozen=True)
class _Figure:
    """A picture of the page: the name of its file, what it shows in words, and its content."""

    name: str
    alt: str
    png: bytes
    wide: bool = True  # scrolls sideways on a phone instead of shrinking beyond recognition


def write_report(
    path: Path,
    *,
    title: str,
    evaluation: Evaluation,
    history: pd.DataFrame | None,
    embeddings: Tensor | npt.NDArray[np.float32],
    catalog: Catalog,
    proxy_selections: npt.NDArray[np.int64] | None = None,
    before: Evaluation | None = None,
    facts: Sequence[tuple[str, str]] = (),
    seed: int = 0,
) -> None:
    """Write the page to `path`, and its pictures to figures/ beside it.

    Args:
        path: where the page goes, such as runs/cub200/report.html.
        title: what it is about, such as the name of the run.
        evaluation: of these embeddings; where it comes from a file, the scores of single queries are computed again.
        history: metrics.csv, a row an epoch, or None where nothing was trained.
        embeddings: (n, D), of the rows of `catalog`, in their order.
        catalog: the test split.
        proxy_selections: (C, N) counts of how often each proxy was selected.
        before: the same evaluation before training.
        facts: settings that a reader should know, as pairs of name and value.
        seed: of what is drawn at random and of the map.

    Raises:
        UserError: there are not as many embeddings as rows.
    """
    if len(embeddings) != len(catalog):
        raise UserError(
            f"there are {len(embeddings)} embeddings, but {len(catalog)} rows in the catalog: embed them all"
        )
    split = _TestSplit(embeddings, catalog, evaluation, seed)
    sections = [
        _figures_section(evaluation, before, _protocol(evaluation, split.is_query is None)),
        _curves_section(history),
        *_retrieval_sections(split),
        _classes_section(split),
        _map_section(split),
        _proxies_section(proxy_selections),
        _facts_section(facts),
    ]
    first_k = min(evaluation.recall)
    lead = f"Recall@{first_k} {100 * evaluation.recall[first_k].value:.1f}, MAP@R {100 * evaluation.map_at_r.value:.1f}"
    _write_page(path, title, f"{lead} per cent", sections)


def write_comparison(folder: Path, title: str, summary: Summary) -> None:
    """Write what the cells of a comparison show: comparison.html, table.md, table.csv and figures/, all in `folder`."""
    tables = summary.tables()
    markdown = "\n".join([f"# {title}\n", *(table.markdown() for table in tables)])
    for name, text in (("table.md", markdown), ("table.csv", summary.table().to_csv(index=False))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    pictures = _comparison_pictures(summary)
    sections = [_Section("Side by side", "", pictures)]
    sections += [_Section(table.title, table.note, (), _table(table.head, table.rows)) for table in tables]
    count = sum(summary.mean(method, "map_at_r").count for method in summary.methods)
    lead = f"{len(summary.methods)} methods, {count} trained networks"
    _write_page(folder / "comparison.html", title, lead, sections)


def _comparison_pictures(summary: Summary) -> tuple["_Figure", ...]:
    shown = [method for method in summary.methods if summary.mean(method, "map_at_r").count]
    if not shown:
        return ()
    panels = {
        metric_name(metric): [_spread(summary, method, metric) for method in shown]
        for metric in (summary.metrics[0], "map_at_r", "nmi")
    }
    alt = f"The mean of every method and its interval: {', '.join(panels)}"
    points = _Figure("methods", alt, figures.png(figures.method_points(shown, panels)))
    curves = {method: list(summary.curves(method)) for method in shown}
    curves = {method: runs for method, runs in curves.items() if runs}
    pictures = [points, *(_sweep_picture(summary, sweep) for sweep in summary.sweeps())]
    if curves:
        drawn = figures.png(figures.method_curves(curves))
        pictures.append(_Figure("convergence", "Recall@1 on validation classes by epoch, for every method", drawn))
    return tuple(pictures)


def _sweep_picture(summary: Summary, sweep: Sweep) -> "_Figure":
    panels = {
        metric_name(metric): {
            name: {
                value: _spread(summary, method, metric)
                for value, method in line.items()
                if summary.mean(method, metric).count
            }
            for name, line in sweep.lines.items()
        }
        for metric in (summary.metrics[0], "map_at_r")
    }
    alt = f"{' and '.join(panels)} by {sweep.key}"
    name = f"sweep_{sweep.key.replace('.', '_')}"
    return _Figure(name, alt, figures.png(figures.sweep(short_key(sweep.key), panels)))


def _spread(summary: Summary, method: str, metric: str) -> figures.Spread:
    mean = summary.mean(method, metric)
    return figures.Spread(mean.value, mean.low, mean.high, (100 * summary.values(method, metric)).tolist())


@dataclass(frozen=True)
class _Section:
    """A part of the page: nothing of it is written where it holds neither pictures nor text."""

    title: str
    text: str = ""  # plain
    pictures: tuple[_Figure, ...] = ()
    after: str = ""  # HTML


class _TestSplit:
    """The test images with what is known about each, and their pictures when asked for."""

    def __init__(
        self, embeddings: Tensor | npt.NDArray[np.float32], catalog: Catalog, evaluation: Evaluation, seed: int
    ) -> None:
        self.embeddings = torch.as_tensor(embeddings)
        self.labels = np.array(catalog.labels)
        self.paths = catalog.paths
        self.boxes = catalog.boxes
        self.is_query = self._role(catalog, "is_query")
        self.is_gallery = self._role(catalog, "is_gallery")
        self.seed = seed
        self.scores: QueryScores = evaluation.scores or score_queries(
            self.embeddings, self.labels, is_query=self.is_query, is_gallery=self.is_gallery, progress=True
        )

    @staticmethod
    def _role(catalog: Catalog, column: str) -> npt.NDArray[np.bool_] | None:
        return catalog.table[column].to_numpy(dtype=bool) if column in catalog.table else None

    def picture(self, index: int, side: int) -> figures.Image:
        """The image's crop with its longer side of that many pixels; a grey square where it cannot be opened."""
        return thumbnail(self.paths[index], None if self.boxes is None else self.boxes[index].tolist(), side)

    def neighbours(
        self, queries: npt.NDArray[np.int64], k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        similarity, index = nearest(self.embeddings, queries, k, is_gallery=self.is_gallery)
        return similarity.float().cpu().numpy(), index.cpu().numpy()


def _figures_section(evaluation: Evaluation, before: Evaluation | None, protocol: str) -> _Section:
    estimates = evaluation.figures()
    earlier = None if before is None else before.figures()
    drawn = figures.png(figures.recall_bars(estimates, earlier))
    head = ["", "per cent", "95% interval"] + (["before training"] if earlier else [])
    rows = []
    for name, estimate in estimates.items():
        row = [name, f"{100 * estimate.value:.1f}", f"{100 * estimate.low:.1f} \N{EN DASH} {100 * estimate.high:.1f}"]
        if earlier:
            row.append(f"{100 * earlier[name].value:.1f}" if name in earlier else "")
        rows.append(row)
    picture = _Figure("recall", "Bars of Recall@K, MAP@R, R-precision and NMI with their intervals", drawn)
    return _Section("How well it retrieves", protocol, (picture,), _table(head, rows))


def _protocol(evaluation: Evaluation, all_search_all: bool) -> str:
    if all_search_all:
        sentence = f"Each of the {evaluation.num_gallery:,} test images searched all the others"
    else:
        count = evaluation.num_queries + evaluation.queries_without_positive
        sentence = f"Each of the {count:,} queries searched a gallery of {evaluation.num_gallery:,} images"
    sentence += f" ({evaluation.num_classes:,} classes) by cosine similarity, and none could find itself. "
    if evaluation.queries_without_positive:
        sentence += (
            f"{evaluation.queries_without_positive:,} had no other image of their class to find and are left out. "
        )
    return sentence + "The lines on the bars are 95% bootstrap intervals over the classes."


def _curves_section(history: pd.DataFrame | None) -> _Section:
    title = "How it was trained"
    if history is None or history.empty:
        return _Section(title)
    drawn = figures.png(figures.training_curves(history))
    text = "A mean cosine near 1 says that all embeddings of a batch point the same way, whatever the loss says."
    return _Section(title, text, (_Figure("curves", "Training curves by epoch", drawn),))


def _retrieval_sections(split: _TestSplit) -> list[_Section]:
    """Grids of queries drawn at random, of the worst and of the best, each from another class."""
    scores = split.scores
    shuffled = np.random.default_rng(split.seed).permutation(len(scores.index))
    precision, rank = scores.average_precision[shuffled], scores.first_positive[shuffled]
    best_first, worst_first = np.lexsort((rank, -precision)), np.lexsort((-rank, precision))
    text = (
        "The query at the left, the images nearest to it at its right, with the cosine of the angle between the two. "
        "A blue frame and a tick: of the query's class. An orange, dashed frame and a cross: of another class."
    )
    return [
        _grid_section(split, shuffled, "retrieval_random", "What it finds: queries drawn at random", text),
        _grid_section(split, shuffled[worst_first], "retrieval_worst", "Where it fails: the worst queries", ""),
        _grid_section(split, shuffled[best_first], "retrieval_best", "Where it works: the best queries", ""),
    ]


def _grid_section(split: _TestSplit, order: npt.NDArray[np.int64], name: str, title: str, text: str) -> _Section:
    queries = split.scores.index[_first_of_each(split.labels[split.scores.index[order]], order, QUERIES)]
    similarity, neighbours = split.neighbours(queries, NEIGHBOURS)
    rows = []
    for query, values, found in track(list(zip(queries, similarity, neighbours, strict=True)), "Drawing queries"):
        row = [figures.Tile(split.picture(query, TILE_PIXELS), split.labels[query])]
        for value, index in zip(values, found, strict=True):
            label = split.labels[index]
            right = bool(label == split.labels[query])
            row.append(figures.Tile(split.picture(index, TILE_PIXELS), label, f"{value:.2f}", right))
        rows.append(row)
    return _Section(title, text, (_Figure(name, title, figures.png(figures.retrieval_grid(rows))),))


def _first_of_each(labels: npt.NDArray[np.str_], order: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """The first `count` of `order` that are of different labels; more of the same where there are too few classes."""
    first = np.sort(np.unique(labels, return_index=True)[1])
    rest = np.setdiff1d(np.arange(len(order)), first)
    chosen: npt.NDArray[np.int64] = order[np.concatenate([first, rest])[:count]]
    return chosen


def _classes_section(split: _TestSplit) -> _Section:
    """The classes of lowest and highest Recall@1, and what the lowest are taken for."""
    scores = split.scores
    table = pd.DataFrame(
        {
            "label": split.labels[scores.index],
            "recall": scores.first_positive < 1,
            "precision": scores.average_precision,
        }
    )
    classes = table.groupby("label").agg(
        queries=("recall", "size"), recall=("recall", "mean"), precision=("precision", "mean")
    )
    classes = classes.sort_values(["recall", "precision"])
    if len(classes) < 2:
        return _Section("Classes")
    head = ["class", "queries", "Recall@1", "MAP@R", "when it fails, most often taken for"]
    cut = len(classes) > 2 * CLASSES
    shown = pd.concat([classes.head(CLASSES), classes.tail(CLASSES)]) if cut else classes
    rows = []
    for label, row in track(list(shown.iterrows()), "Looking at classes"):
        per_cent = [f"{100 * row[name]:.0f}" for name in ("recall", "precision")]
        rows.append([str(label), f"{row['queries']:.0f}", *per_cent, _taken_for(split, str(label))])
    if cut:
        rows.insert(CLASSES, ["\N{VERTICAL ELLIPSIS}", "", "", "", ""])
    text = f"The {len(classes):,} classes from the hardest to the easiest, figures in per cent"
    text += f": the first and the last {CLASSES}." if cut else "."
    return _Section("Hard and easy classes", text, (), _table(head, rows))


def _taken_for(split: _TestSplit, label: str) -> str:
    """The label that the nearest images of the class's failed queries have most often."""
    scores = split.scores
    failed = scores.index[(split.labels[scores.index] == label) & (scores.first_positive > 0)]
    if not len(failed):
        return ""
    found = split.labels[split.neighbours(failed, 1)[1][:, 0]]
    other, times = Counter(found.tolist()).most_common(1)[0]
    return f"{other} ({times} of {len(failed)})"


def _map_section(split: _TestSplit) -> _Section:
    chosen = _whole_classes(split.labels, split.seed)
    with console.status(f"Drawing the map of {len(chosen):,} images"):
        vectors = torch.nn.functional.normalize(split.embeddings[chosen].float(), dim=1).cpu().numpy()
        points = figures.project(vectors, split.seed)
    shown = figures.uncrowded(points, THUMBNAIL_GAP, split.seed)
    thumbnails = {int(i): split.picture(chosen[i], THUMBNAIL_PIXELS) for i in track(shown, "Drawing the map")}
    classes = np.unique(split.labels[chosen], return_inverse=True)[1]
    drawn = figures.png(figures.embedding_map(points, classes, thumbnails))
    of_all = "" if len(chosen) == len(split.labels) else f" of {len(split.labels):,}, drawn by whole classes"
    text = (
        f"{len(chosen):,} test images{of_all}, laid out in the plane by t-SNE: what is near each other here is near "
        "each other in the embedding, but distances between groups mean little. Colour and marker tell classes apart."
    )
    return _Section("A map of the test images", text, (_Figure("map", "Map of the embeddings", drawn, wide=False),))


def _whole_classes(labels: npt.NDArray[np.str_], seed: int) -> npt.NDArray[np.int64]:
    """Images of random classes, each class whole as far as MAP_IMAGES allow, in rising order."""
    if len(labels) <= MAP_IMAGES:
        return np.arange(len(labels))
    codes = np.unique(labels, return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    place = generator.permutation(codes.max() + 1)[codes]
    mixed = generator.permutation(len(labels))  # a class that is cut off loses random images
    order: npt.NDArray[np.int64] = mixed[np.argsort(place[mixed], kind="stable")]
    return np.sort(order[:MAP_IMAGES])


def _proxies_section(counts: npt.NDArray[np.int64] | None) -> _Section:
    title = "How often each proxy is selected"
    if counts is None or not counts.size:
        return _Section(title)
    drawn = figures.png(figures.proxy_usage(counts))
    text = "Selections as a hard negative. Proxies that are never selected teach other classes nothing."
    return _Section(title, text, (_Figure("proxies", title, drawn),))


def _facts_section(facts: Sequence[tuple[str, str]]) -> _Section:
    return _Section("Settings", "", (), _table([], [list(fact) for fact in facts]) if facts else "")


def _write_page(path: Path, title: str, lead: str, sections: Sequence[_Section]) -> None:
    """The page, and its pictures in figures/ beside it."""
    for picture in (picture for section in sections for picture in section.pictures):
        with atomic_write(path.parent / "figures" / f"{picture.name}.png") as temporary:
            temporary.write_bytes(picture.png)
    with atomic_write(path) as temporary:
        temporary.write_text(_page(title, lead, sections), encoding="utf-8")


def _page(title: str, lead: str, sections: Sequence[_Section]) -> str:
    body = "\n".join(_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>\n{body}\n"
        "<footer>Written by proxygml.</footer>\n</main>\n</body>\n</html>\n"
    )


def _section(section: _Section) -> str:
    if not section.pictures and not section.after:
        return ""
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    pictures = "\n".join(_img(picture) for picture in section.pictures)
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{text}\n{pictures}\n{section.after}\n</section>"


def _img(picture: _Figure) -> str:
    content = base64.b64encode(picture.png).decode("ascii")
    wide = ' class="wide"' if picture.wide else ""
    return f'<figure{wide}><img alt="{escape(picture.alt)}" src="data:image/png;base64,{content}"></figure>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = [f"<thead><tr>{cells}</tr></thead>"] if head else []
    lines.append("<tbody>")
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    lines.append("</tbody>")
    return '<div class="scroll"><table>' + "".join(lines) + "</table></div>"


_CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f2f4f6; color: #1f2933;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 2rem 1rem 3rem; }
header { padding: 0 .25rem 1rem; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
header p { margin: .3rem 0 0; font-size: 1.15rem; color: #52606d; }
section { background: #fff; border: 1px solid #e3e7eb; border-radius: 10px;
  padding: 1.4rem 1.5rem; margin: 0 0 1.2rem; }
h2 { margin: 0 0 .4rem; font-size: 1.2rem; }
section > p { margin: 0 0 .8rem; max-width: 46rem; color: #52606d; }
figure { margin: .6rem 0 0; }
img { display: block; width: 100%; height: auto; }
.wide, .scroll { overflow-x: auto; }
table { border-collapse: collapse; margin-top: .8rem; font-size: .95rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.4rem .3rem 0; text-align: left; border-bottom: 1px solid #e3e7eb; }
th { font-weight: 600; color: #52606d; white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
td { overflow-wrap: break-word; }
th:last-child, td:last-child { padding-right: 0; }
footer { color: #7b8794; font-size: .85rem; padding: 0 .25rem; }
@media (max-width: 640px) { section { padding: 1rem; } .wide img { width: 700px; max-width: none; } }
@media print {
  body { background: #fff; font-size: 11pt; } main { max-width: none; padding: 0; }
  section { border: 0; padding: 0; margin-bottom: 1.5rem; }
  figure, table { break-inside: avoid; } h2 { break-after: avoid; }
}
"""
