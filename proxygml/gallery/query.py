"""Searching a gallery with images or vectors: the answers as a table and as a picture."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from proxygml.arguments import check_arguments
from proxygml.arrays import Block, Rows
from proxygml.data.columns import BOX_COLUMNS
from proxygml.data.images.image_list import ImageList
from proxygml.data.images.tensors import thumbnail
from proxygml.errors import GalleryError, UserError
from proxygml.files import PathLike, atomic_write, temporary_folder
from proxygml.gallery.base import Gallery, SearchResult
from proxygml.gallery.classify import Prediction, is_labelled, predict
from proxygml.gallery.filters.grammar import Where
from proxygml.gallery.source import Model, Source
from proxygml.gallery.vector_input import ITEM_ID
from proxygml.models.embed_images import OnBad, embed_images
from proxygml.models.embedder import Embedder
from proxygml.models.engines import Engine
from proxygml.models.prefix import cut_to
from proxygml.spreadsheet import without_formulas
from proxygml.urls import as_place, as_places, check_places

ROWS_SHOWN = 8
"""Queries in a picture at most, and columns of neighbours."""
COLUMNS_SHOWN = 4
"""Of the user's own columns, for items without a label and a path."""
TILE_PIXELS = 140
ANSWER_ENDINGS = (".csv", ".parquet")


@dataclass(frozen=True)
class Answers:
    """What was found for some query images."""

    queries: ImageList
    result: SearchResult
    predictions: Sequence[Prediction] | None
    """None where the items have no labels."""


@check_arguments
def search(
    gallery: PathLike | Gallery,
    images: PathLike | Sequence[PathLike] = (),
    k: int = 10,
    where: Where | None = None,
    *,
    vectors: PathLike | None = None,
    run: PathLike | None = None,
    leave_out_itself: bool = False,
    rerank: bool = False,
    threshold: float | None = None,
    on_bad: OnBad = "fail",
    workers: int = 2,
    engine: Engine = "torch",
) -> Answers:
    """Find the items of a gallery that are most similar to your images, or vectors.

    To search with vectors in memory, or many times, load the gallery once and call `Gallery.search`.

    Args:
        gallery: its folder, the address of one in Milvus, or a loaded one.
        images: the queries: an image file or a folder of them, or several.
        vectors: the queries in place of images: a file that `embed` wrote; or, where the gallery's model takes vectors,
            one of vectors to embed (.parquet with a column `embedding`, or .npy).
        k: how many items to find for each query.
        where: find only these items: {"label": ["sparrow"]}, or conditions such as ["price>=10"]; see Gallery.search.
        run: the run folder of the gallery's model, if it has moved.
        leave_out_itself: a query does not find the item with its own path (and box).
        rerank: order the nearest 100 by their k-reciprocal neighbours.
        threshold: the cosine of the nearest item below which a query is "none of these"; the gallery's own if None.
        on_bad: what queries that cannot be read lead to: fail, or drop them.
        workers: processes that decode images; 0 decodes in this one.
        engine: what computes the embeddings; see `embed`. It need not be the one that the gallery was built with.

    Returns:
        The queries, what was found for each, and its predicted class where the gallery's items have labels.

    Raises:
        UserError: the gallery, its run or a query is missing or cannot be read, or `where` names an unknown column.
    """
    check_places(vectors=vectors)
    files, folder = as_places(images, "images"), None if run is None else as_place(run, "run")
    if threshold is not None and not -1 <= threshold <= 1:
        raise UserError(f"threshold is {threshold}, but must be a cosine, -1 to 1")
    loaded = gallery if isinstance(gallery, Gallery) else Gallery.load(os.fspath(gallery))
    model = Model.of_gallery(loaded, folder, engine)
    if files and model.takes_vectors:
        raise UserError(f"{model.run} takes vectors, not images: give the queries as --vectors FILE")
    if vectors is not None or model.takes_vectors:
        block = Source.of(images=files, vectors=vectors).vector_input(model).whole()
        return search_block(
            loaded, block, k, where, leave_out_itself=leave_out_itself, rerank=rerank, threshold=threshold
        )
    return search_images(
        loaded,
        model.embedder(),
        ImageList.from_files(files),
        k,
        where,
        leave_out_itself=leave_out_itself,
        rerank=rerank,
        threshold=threshold,
        on_bad=on_bad,
        workers=workers,
    )


def search_images(
    gallery: Gallery,
    embedder: Embedder,
    queries: ImageList,
    k: int = 10,
    where: Where | None = None,
    *,
    leave_out_itself: bool = False,
    rerank: bool = False,
    threshold: float | None = None,
    on_bad: OnBad = "fail",
    workers: int = 0,
) -> Answers:
    """Embed images, search the gallery for each, and predict their classes.

    Args:
        gallery: the gallery.
        embedder: its model.
        queries: the images.
        k, where, rerank: see Gallery.search.
        leave_out_itself: a query does not find the item with its own path (and box).
        threshold: for predictions; the gallery's own if left out.
        on_bad: what happens after unreadable queries are named: fail, or drop them.
        workers: processes that decode images.

    Raises:
        ImageError: a query that cannot be decoded.
        GalleryError: see Gallery.search.
    """
    with temporary_folder(Path(gettempdir()) / "proxygml-search") as work:
        work.chmod(0o700)  # the system's folder for temporary files is everybody's
        model = gallery.manifest.model
        embedded = embed_images(embedder, model, queries, work, on_bad=on_bad, workers=workers)
        block = embedded.whole()
    return search_block(gallery, block, k, where, leave_out_itself=leave_out_itself, rerank=rerank, threshold=threshold)


def search_block(
    gallery: Gallery,
    block: Block,
    k: int = 10,
    where: Where | None = None,
    *,
    leave_out_itself: bool = False,
    rerank: bool = False,
    threshold: float | None = None,
) -> Answers:
    """Search the gallery for each of the vectors (q, D) of a block, and predict their classes; see `search_images`."""
    vectors, table = cut_to(block[0], gallery.manifest.dimension), block[1]
    queries = ImageList(table)
    exclude = _own_ids(gallery, queries) if leave_out_itself else None
    result = gallery.search(vectors, k, where, exclude=exclude, rerank=rerank)
    if threshold is None and gallery.manifest.threshold is not None:
        threshold = gallery.manifest.threshold.score
    return Answers(queries, result, predict(result, threshold) if is_labelled(result) else None)


def _own_ids(gallery: Gallery, queries: ImageList) -> Rows:
    """The id of each query's own item, -1 where it has none."""
    if ITEM_ID in gallery.columns and ITEM_ID in queries.table:
        return gallery.ids_of(queries.table, [ITEM_ID])
    if "path" not in gallery.columns or "path" not in queries.table:
        raise GalleryError("the gallery's items have no path: a query cannot be recognised among them")
    boxes = (column for column in BOX_COLUMNS if column in queries.table and column in gallery.columns)
    return gallery.ids_of(queries.table, ["path", *boxes])


def answers_table(answers: Answers) -> pd.DataFrame:
    """A row for each item found: `query`, `rank`, `score`, `id`, the item's columns, and the query's `prediction`."""
    parts = []
    for place, path in enumerate(answers.queries.names):
        rows = answers.result.rows(place)
        rows.insert(0, "query", path)
        if answers.predictions is not None:
            rows["prediction"] = answers.predictions[place].label
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def write_answers(answers: Answers, path: Path) -> None:
    """Write answers_table as CSV or Parquet, by suffix (ANSWER_ENDINGS)."""
    table = answers_table(answers)
    with atomic_write(path) as temporary:
        if path.suffix.lower() == ".csv":
            without_formulas(table).to_csv(temporary, index=False)
        else:
            import pyarrow.parquet as pq  # noqa: PLC0415

            from proxygml.data.arrow import to_arrow  # noqa: PLC0415

            pq.write_table(to_arrow(table), temporary)


def printed(answers: Answers, query: int) -> Table:
    """The answer to one query, for the console."""
    columns = [str(name) for name in answers.result.table]
    known = [name for name in ("label", "path", ITEM_ID) if name in columns]
    shown = ["rank", "score", *(known or columns[:COLUMNS_SHOWN]), *([] if "path" in columns else ["id"])]
    title = escape(_near(answers.queries.names[query]))
    table = Table(title=title, title_justify="left", caption=_verdict(answers, query), caption_justify="left")
    for name in shown:
        table.add_column(name, justify="right" if name in ("rank", "score") else "left", overflow="fold")
    for item in answers.result.records(query):
        cells = {name: _text(item[name]) for name in shown} | {"score": f"{item['score']:.3f}"}
        if "path" in cells:
            cells["path"] = _near(cells["path"])
        table.add_row(*(escape(cells[name]) for name in shown))
    return table


def _text(cell: object) -> str:
    """A cell of the item table as a reader sees it: empty where it is missing, the parts of a list with commas.

    Bytes are text, with escapes for what is not UTF-8, as in the answers of the server.
    """
    if isinstance(cell, (list, tuple, np.ndarray)):
        return ", ".join(map(_text, cell))
    if isinstance(cell, bytes):
        return cell.decode(errors="backslashreplace")
    return "" if pd.isna(cell) else str(cell)


def _near(path: str) -> str:
    """The path relative to the working directory, if it lies below it, because that is easier to read."""
    return path.removeprefix(f"{Path.cwd()}{os.sep}")


def _verdict(answers: Answers, query: int) -> str:
    if answers.predictions is None:
        return ""
    prediction = answers.predictions[query]
    if prediction.rejected:
        return f"none of these: the nearest has a cosine of {prediction.score:.3f} only"
    if prediction.label is None:
        return "no class: none of the items found has a label"
    return escape(f"{prediction.label} ({prediction.share:.0%} of the vote)")


def draw_answers(answers: Answers, path: Path) -> None:
    """A picture (PNG) of the first 8 queries and the 8 items nearest to each."""
    from proxygml.reports import figures  # noqa: PLC0415  (Matplotlib is slow to load; only --show needs it)

    grid = []
    boxes = answers.queries.boxes
    for place, query in enumerate(answers.queries.names[:ROWS_SHOWN]):
        box = None if boxes is None else boxes[place].tolist()
        voted = None if answers.predictions is None else answers.predictions[place]
        note = "" if voted is None else "none of these" if voted.rejected else voted.label or ""
        row = [figures.Tile(thumbnail(query, box, TILE_PIXELS), Path(query).name, note)]
        found = answers.result.records(place)[:ROWS_SHOWN]
        grid.append([*row, *(figures.Tile(_picture(item), _caption(item), f"{item['score']:.2f}") for item in found)])
    drawn = figures.png(figures.retrieval_grid(grid))
    with atomic_write(path) as temporary:
        temporary.write_bytes(drawn)


def _picture(item: Mapping[str, Any]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    boxed = BOX_COLUMNS[0] in item and bool(pd.notna(item[BOX_COLUMNS[0]]))
    box = [int(item[column]) for column in BOX_COLUMNS] if boxed else None
    return thumbnail(str(item.get("path", "")), box, TILE_PIXELS)


def _caption(item: Mapping[str, Any]) -> str:
    return _text(item.get("label")) or Path(_text(item.get("path"))).name or str(item["id"])
