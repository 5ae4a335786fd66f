"""The report's section with the map of embeddings: which items it shows, and what it says of each."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor
from torch.distributed import ProcessGroup

from proxygml.console import console, track
from proxygml.data.catalog import Catalog
from proxygml.data.images.tensors import thumbnail
from proxygml.errors import counted
from proxygml.evaluation.metrics import QueryScores
from proxygml.evaluation.sharded import vectors_of
from proxygml.reports import embedding_map, figures
from proxygml.reports.html import Picture, Section
from proxygml.reports.projection import LANDMARKS, project

MAP_POINTS = 100_000  # most points on the map
THUMBNAIL_PIXELS = 64
THUMBNAIL_GAP = 0.049  # of the map's width, between the centres of two thumbnails of the still picture


class MapItems:
    """The items of a map with what is known of each: those of the test split, then those of other splits.

    Args:
        embeddings: (n, D), of the rows of `catalog`.
        catalog: the test split.
        scores: of its queries.
        seed: of what is drawn at random.
        others: embeddings (m, D) of items of other splits, and their rows.
        process_group: processes that hold a part of both embeddings each; the first one gets those that are shown.
    """

    def __init__(
        self,
        embeddings: Tensor | npt.NDArray[np.float32],
        catalog: Catalog,
        scores: QueryScores,
        seed: int,
        others: tuple[Tensor, Catalog] | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        of_test = len(catalog)
        if others is not None:
            catalog = catalog.with_table(pd.concat([catalog.table, others[1].table], ignore_index=True))
        self.labels = np.array(catalog.labels)
        self.chosen = _whole_classes(self.labels, seed)
        parts = [vectors_of(embeddings, self.chosen[self.chosen < of_test], process_group=process_group)]
        if others is not None:
            beside = self.chosen[self.chosen >= of_test] - of_test
            parts.append(vectors_of(others[0], beside, process_group=process_group))
        self.vectors = np.concatenate(parts).astype(np.float32)
        self.paths = catalog.paths if catalog.has_images else None
        self.texts = list(catalog.table["path"].astype(str)) if catalog.has_images else item_names(catalog)
        self.marks = _marks(catalog)
        noun = "image" if catalog.has_images else "vector"
        self.item = noun if others is not None else f"test {noun}"
        self.boxes = catalog.boxes
        self.scores = scores
        self.seed = seed

    def picture(self, index: int) -> figures.Image:
        """The item's image, small; a grey square where it cannot be opened."""
        assert self.paths is not None  # nothing draws pictures of vectors alone
        box = None if self.boxes is None else self.boxes[index].tolist()
        return thumbnail(self.paths[index], box, THUMBNAIL_PIXELS)


def item_names(catalog: Catalog) -> list[str]:
    """What a table calls each item: by `id` where it has one, else by its row."""
    ids = catalog.table["id"] if "id" in catalog.table else [None] * len(catalog)
    return [f"row {row}" if pd.isna(name) or name == "" else str(name) for row, name in enumerate(ids)]


def _marks(catalog: Catalog) -> dict[str, list[str]]:
    """What the table says of each item beside its class, by what a reader calls it."""
    marks = {"split": list(catalog.table["split"].astype(str))}
    if catalog.is_query is not None and catalog.is_gallery is not None:
        roles = {(True, True): "query and gallery", (True, False): "query", (False, True): "gallery"}
        pairs = zip(catalog.is_query.tolist(), catalog.is_gallery.tolist(), strict=True)
        marks["role"] = [roles.get(pair, "neither") for pair in pairs]
    return marks


def map_section(items: MapItems) -> Section:
    """The map, as a picture and for a browser to zoom and search."""
    chosen = items.chosen
    with console.status(f"Drawing the map of {counted(len(chosen), items.item)}"):
        points = project(items.vectors, items.seed)
    shown: list[int] = [] if items.paths is None else list(figures.uncrowded(points, THUMBNAIL_GAP, items.seed))
    tiles = {int(i): items.picture(chosen[i]) for i in track(shown, "Drawing the map")}
    by_class = embedding_map.by_class(items.labels[chosen])
    drawn = figures.png(figures.embedding_map(points, by_class.codes, tiles))
    small: dict[int, bytes] = {}
    if items.paths is not None:
        small = embedding_map.thumbnails(len(chosen), lambda index: items.picture(chosen[index]), items.seed)
    groupings = [by_class, *_other_groupings(items, chosen)]
    living = embedding_map.interactive_map(points, groupings, [items.texts[index] for index in chosen], small)
    picture = Picture("map", "Map of the embeddings", drawn, wide=False)
    return Section(f"A map of the {items.item}s", _map_text(items, len(chosen), len(small)), (picture,), map=living)


def _other_groupings(items: MapItems, chosen: npt.NDArray[np.int64]) -> list[embedding_map.Grouping]:
    """What the points can be coloured by, beside their class; what is the same of all is left out."""
    outcome = embedding_map.by_outcome(len(items.labels), items.scores.index, items.scores.first_positive)
    groupings = [replace(outcome, codes=outcome.codes[chosen])]
    for title, values in items.marks.items():
        group = embedding_map.by_value(title, [values[index] for index in chosen])
        groupings += [group] if len(group.names) > 1 else []
    return groupings


def _map_text(items: MapItems, points: int, pictures: int) -> str:
    of_all = "" if points == len(items.labels) else f" of {len(items.labels):,}, drawn by whole classes"
    text = (
        f"{counted(points, items.item)}{of_all}, laid out in the plane by t-SNE: what is near each "
        "other here is near each other in the embedding, but distances between groups mean little. "
    )
    if points > LANDMARKS:
        text += f"t-SNE laid out {LANDMARKS:,} of them; each other one lies between those nearest to it. "
    if items.paths is not None and pictures < points:
        text += f"To bound the page, {pictures:,} of them drawn at random have a picture; the others show their path. "
    return text


def _whole_classes(labels: npt.NDArray[np.str_], seed: int) -> npt.NDArray[np.int64]:
    """Images of random classes, each class whole as far as MAP_POINTS allow, in rising order."""
    if len(labels) <= MAP_POINTS:
        return np.arange(len(labels))
    codes = np.unique(labels, return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    place = generator.permutation(codes.max() + 1)[codes]
    mixed = generator.permutation(len(labels))  # a class that is cut off loses random images
    order: npt.NDArray[np.int64] = mixed[np.argsort(place[mixed], kind="stable")]
    return np.sort(order[:MAP_POINTS])
