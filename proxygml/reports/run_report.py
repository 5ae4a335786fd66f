"""The report of a run: how well its model retrieves, what it confuses and how it was trained.

It chooses what is shown; evaluation/ computes the figures, figures.py draws them, html.py writes the page.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.distributed import ProcessGroup, get_rank

from proxygml.console import track
from proxygml.data.catalog import Catalog
from proxygml.data.images.tensors import thumbnail
from proxygml.errors import UserError, counted
from proxygml.evaluation.gains import Gain
from proxygml.evaluation.metrics import Evaluation, QueryScores, nearest, score_queries
from proxygml.evaluation.ring import Ring
from proxygml.evaluation.rules import part_of
from proxygml.reports import figures
from proxygml.reports.html import Picture, Section, write_page
from proxygml.reports.map_section import MapItems, item_names, map_section

Indices = npt.NDArray[np.int64]
"""Numbers of test images."""

NEIGHBOURS = 7  # shown beside each query
QUERIES = 5  # rows of a retrieval grid
CLASSES = 8  # rows of a table of classes
TILE_PIXELS = 140


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
    gain: Gain | None = None,
    shorter: Mapping[int, Evaluation] | None = None,
    facts: Sequence[tuple[str, str]] = (),
    others: tuple[Tensor, Catalog] | None = None,
    seed: int = 0,
    process_group: ProcessGroup | None = None,
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
        gain: by how much the figures are better than those.
        shorter: the same by the first numbers of the embeddings, by how many.
        facts: settings that a reader should know, as pairs of name and value.
        others: embeddings of items of the other splits, and their rows, for the map.
        seed: of what is drawn at random and of the map.
        process_group: processes that hold a part of the embeddings each, in their order, and the whole catalog. They
            find together what is shown, and the first one writes it.

    Raises:
        UserError: there are not as many embeddings as rows.
    """
    split = _TestSplit(embeddings, catalog, evaluation, seed, process_group)
    items = MapItems(embeddings, catalog, split.scores, seed, others, process_group)
    if process_group is not None and get_rank(process_group) > 0:
        return
    sections = [
        _figures_section(evaluation, before, gain, _protocol(evaluation, catalog)),
        *_shorter_sections(evaluation, shorter or {}, np.shape(embeddings)[1]),
        _curves_section(history),
        *_retrieval_sections(split),
        _classes_section(split),
        map_section(items),
        _proxies_section(proxy_selections),
        _facts_section(facts),
    ]
    first_k = min(evaluation.recall)
    lead = f"Recall@{first_k} {100 * evaluation.recall[first_k].value:.1f}, MAP@R {100 * evaluation.map_at_r.value:.1f}"
    write_page(path, title, f"{lead} per cent", sections)


class _TestSplit:
    """The test images with what is known about each, what is shown of them, and their pictures when asked for."""

    def __init__(
        self,
        embeddings: Tensor | npt.NDArray[np.float32],
        catalog: Catalog,
        evaluation: Evaluation,
        seed: int,
        group: ProcessGroup | None = None,
    ) -> None:
        self.labels = np.array(catalog.labels)
        self.paths = catalog.paths if catalog.has_images else None
        self.names = item_names(catalog)
        self.item = "image" if catalog.has_images else "vector"
        self.boxes = catalog.boxes
        self.seed = seed
        part = _own_part(len(embeddings), len(catalog), group)
        rules, labels = part_of(catalog.rules, part), self.labels[part]
        self.scores: QueryScores = evaluation.scores or score_queries(
            embeddings, labels, progress=True, process_group=group, **rules
        )
        self.random, self.worst, self.best = self._queries()
        self.classes = self._classes()
        failed = [self.failed(label) for label in _first_and_last(self.classes).index]
        # All at once: where several processes hold the embeddings, these are passed around.
        self._looked_up = np.unique(np.concatenate([self.random, self.worst, self.best, *failed]))
        similarity, found = nearest(
            embeddings, self._looked_up, NEIGHBOURS, labels=labels, process_group=group, **rules
        )
        self._similarity, self._found = similarity.float().cpu().numpy(), found.cpu().numpy()

    def _queries(self) -> tuple[Indices, Indices, Indices]:
        """Queries of the grids: drawn at random, the worst and the best, each from another class."""
        scores = self.scores
        shuffled = np.random.default_rng(self.seed).permutation(len(scores.index))
        precision, rank = scores.average_precision[shuffled], scores.first_positive[shuffled]
        best_first, worst_first = np.lexsort((rank, -precision)), np.lexsort((-rank, precision))
        labels = self.labels[scores.index]
        random, worst, best = (
            scores.index[_first_of_each(labels[order], order, QUERIES)]
            for order in (shuffled, shuffled[worst_first], shuffled[best_first])
        )
        return random, worst, best

    def _classes(self) -> pd.DataFrame:
        """Queries, Recall@1 and MAP@R of each class, the hardest first."""
        scores = self.scores
        found = {
            "label": self.labels[scores.index],
            "recall": scores.first_positive < 1,
            "precision": scores.average_precision,
        }
        classes = (
            pd.DataFrame(found)
            .groupby("label")
            .agg(queries=("recall", "size"), recall=("recall", "mean"), precision=("precision", "mean"))
        )
        return classes.sort_values(["recall", "precision"])

    def failed(self, label: object) -> Indices:
        """The queries of a class whose nearest image is of another one."""
        scores = self.scores
        wrong: Indices = scores.index[(self.labels[scores.index] == label) & (scores.first_positive > 0)]
        return wrong

    def neighbours(self, queries: Indices) -> tuple[npt.NDArray[np.float32], Indices]:
        """Similarity and number of the images nearest to some of the queries that are shown, nearest first."""
        places = np.searchsorted(self._looked_up, queries)
        return self._similarity[places], self._found[places]

    def picture(self, index: int, side: int) -> figures.Image:
        """The image's crop with its longer side of that many pixels; a grey square where it cannot be opened."""
        assert self.paths is not None  # nothing draws pictures of vectors alone
        return thumbnail(self.paths[index], None if self.boxes is None else self.boxes[index].tolist(), side)


def _own_part(count: int, total: int, group: ProcessGroup | None) -> slice:
    """Which rows of the catalog this process's embeddings are of."""
    counts = Ring(group, torch.device("cpu")).gather(count)
    if sum(counts) != total:
        raise UserError(f"embeddings has {counted(sum(counts), 'row')}, but the catalog has {total:,}: embed them all")
    start = 0 if group is None else sum(counts[: get_rank(group)])
    return slice(start, start + count)


def _figures_section(evaluation: Evaluation, before: Evaluation | None, gain: Gain | None, protocol: str) -> Section:
    estimates = evaluation.figures()
    earlier = None if before is None else before.figures()
    drawn = figures.png(figures.recall_bars(estimates, earlier))
    head = ["", "per cent", "95% interval"] + (["before training"] if earlier else []) + (["gain"] if gain else [])
    rows = []
    for name, estimate in estimates.items():
        row = [name, f"{100 * estimate.value:.1f}", f"{100 * estimate.low:.1f} \N{EN DASH} {100 * estimate.high:.1f}"]
        if earlier:
            row.append(f"{100 * earlier[name].value:.1f}" if name in earlier else "")
        if gain:
            row.append(gain[name].in_points() if name in gain else "")
        rows.append(row)
    picture = Picture("recall", "Bars of Recall@K, MAP@R, R-precision and NMI with their intervals", drawn)
    return Section("How well it retrieves", protocol, (picture,), head, rows)


def _shorter_sections(evaluation: Evaluation, shorter: Mapping[int, Evaluation], size: int) -> list[Section]:
    """A table of the figures by the first numbers of the embeddings; none where no prefix was trained."""
    if not shorter:
        return []
    names = [name for name in evaluation.figures() if name != "NMI"]
    rows = []
    for numbers, found in [*sorted(shorter.items()), (size, evaluation)]:
        cells = (found.figures()[name] for name in names)
        rows.append([f"{numbers:,}", *(f"{100 * cell.value:.1f}" for cell in cells)])
    text = (
        "The figures, in per cent, where only the first numbers of each embedding are used, scaled to length 1 again."
    )
    return [Section("Shorter embeddings", text, (), ["numbers", *names], rows)]


def _protocol(evaluation: Evaluation, catalog: Catalog) -> str:
    item = "image" if catalog.has_images else "vector"
    count = evaluation.num_queries + evaluation.queries_without_positive
    if catalog.is_query is None and count == evaluation.num_gallery:
        sentence = f"Each of the {counted(count, f'test {item}')} searched all the others"
    else:
        sentence = f"Each of {counted(count, 'query')} searched a gallery of {counted(evaluation.num_gallery, item)}"
    sentence += f" ({counted(evaluation.num_classes, 'class')}) by cosine similarity, and none could find itself. "
    if evaluation.queries_without_positive:
        sentence += (
            f"{evaluation.queries_without_positive:,} had nothing else of their class to find and are left out. "
        )
    rules = "".join(f"{rule}. " for rule in evaluation.rule_sentences())
    return f"{sentence}{rules}The lines on the bars are 95% bootstrap intervals over the classes."


def _curves_section(history: pd.DataFrame | None) -> Section:
    title = "How it was trained"
    if history is None or history.empty:
        return Section(title)
    drawn = figures.png(figures.training_curves(history))
    text = "A mean cosine near 1 says that all embeddings of a batch point the same way, whatever the loss says."
    return Section(title, text, (Picture("curves", "Training curves by epoch", drawn),))


def _retrieval_sections(split: _TestSplit) -> list[Section]:
    """Grids of queries drawn at random, of the worst and of the best, each from another class."""
    if split.paths is None:
        return [
            _neighbours_section(split, split.worst, "Where it fails: the worst queries"),
            _neighbours_section(split, split.random, "What it finds: queries drawn at random"),
        ]
    text = (
        "The query at the left, the images nearest to it at its right, with the cosine of the angle between the two. "
        "A blue frame and a tick: of the query's class. An orange, dashed frame and a cross: of another class."
    )
    return [
        _grid_section(split, split.random, "retrieval_random", "What it finds: queries drawn at random", text),
        _grid_section(split, split.worst, "retrieval_worst", "Where it fails: the worst queries", ""),
        _grid_section(split, split.best, "retrieval_best", "Where it works: the best queries", ""),
    ]


def _neighbours_section(split: _TestSplit, queries: Indices, title: str) -> Section:
    """The retrieval grid of vectors without images: a table with the labels of what is found."""
    similarity, neighbours = split.neighbours(queries)
    rows = []
    for query, values, found in zip(queries, similarity, neighbours, strict=True):
        cells = [f"{split.labels[index]} ({value:.2f})" for value, index in zip(values, found, strict=True)]
        rows.append([split.names[query], split.labels[query], *cells])
    head = ["query", "its class", *(f"nearest {rank}" for rank in range(1, neighbours.shape[1] + 1))]
    return Section(title, "The class of each of the nearest, and the cosine of the angle to it.", (), head, rows)


def _grid_section(split: _TestSplit, queries: Indices, name: str, title: str, text: str) -> Section:
    similarity, neighbours = split.neighbours(queries)
    rows = []
    for query, values, found in track(list(zip(queries, similarity, neighbours, strict=True)), f"Drawing {title}"):
        row = [figures.Tile(split.picture(query, TILE_PIXELS), split.labels[query])]
        for value, index in zip(values[found >= 0], found[found >= 0], strict=True):
            label = split.labels[index]
            right = bool(label == split.labels[query])
            row.append(figures.Tile(split.picture(index, TILE_PIXELS), label, f"{value:.2f}", right))
        rows.append(row)
    return Section(title, text, (Picture(name, title, figures.png(figures.retrieval_grid(rows))),))


def _first_of_each(labels: npt.NDArray[np.str_], order: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """The first `count` of `order` that are of different labels; more of the same where there are too few classes."""
    first = np.sort(np.unique(labels, return_index=True)[1])
    rest = np.setdiff1d(np.arange(len(order)), first)
    chosen: npt.NDArray[np.int64] = order[np.concatenate([first, rest])[:count]]
    return chosen


def _classes_section(split: _TestSplit) -> Section:
    """The classes of lowest and highest Recall@1, and what the lowest are taken for."""
    classes = split.classes
    if len(classes) < 2:
        return Section("Classes")
    head = ["class", "queries", "Recall@1", "MAP@R", "when it fails, most often taken for"]
    shown = _first_and_last(classes)
    rows = []
    for label, row in track(list(shown.iterrows()), "Looking at classes"):
        per_cent = [f"{100 * row[name]:.0f}" for name in ("recall", "precision")]
        rows.append([str(label), f"{row['queries']:.0f}", *per_cent, _taken_for(split, str(label))])
    text = f"{counted(len(classes), 'class')} from the hardest to the easiest, figures in per cent"
    if cut := len(shown) < len(classes):
        rows.insert(CLASSES, ["\N{VERTICAL ELLIPSIS}", "", "", "", ""])
    text += f": the first and the last {CLASSES}." if cut else "."
    return Section("Hard and easy classes", text, (), head, rows)


def _first_and_last(classes: pd.DataFrame) -> pd.DataFrame:
    """The classes that are shown: all, or the first and the last few."""
    return pd.concat([classes.head(CLASSES), classes.tail(CLASSES)]) if len(classes) > 2 * CLASSES else classes


def _taken_for(split: _TestSplit, label: str) -> str:
    """The label that the nearest images of the class's failed queries have most often."""
    failed = split.failed(label)
    if not len(failed):
        return ""
    nearest_images = split.neighbours(failed)[1][:, 0]
    found = split.labels[nearest_images[nearest_images >= 0]]
    if not len(found):
        return ""
    other, times = Counter(found.tolist()).most_common(1)[0]
    return f"{other} ({times} of {len(failed)})"


def _proxies_section(counts: npt.NDArray[np.int64] | None) -> Section:
    title = "How often each proxy is selected"
    if counts is None or not counts.size:
        return Section(title)
    drawn = figures.png(figures.proxy_usage(counts))
    text = "Selections as a hard negative. Proxies that are never selected teach other classes nothing."
    return Section(title, text, (Picture("proxies", title, drawn),))


def _facts_section(facts: Sequence[tuple[str, str]]) -> Section:
    return Section("Settings", rows=facts)
