"""Files of vectors with labels, as a user has them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from proxygml.data.catalog import Catalog
from proxygml.data.preparing.prepare import prepare

CLASSES, SIZE = 24, 12


def labelled_vectors(
    count: int = 480, classes: int = CLASSES, seed: int = 0
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Vectors around a centre for each class, in half of the dimensions; the others are noise, and strong."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    vectors = random.normal(size=(count, SIZE))
    vectors[:, : SIZE // 2] = np.random.default_rng(7).normal(size=(classes, SIZE // 2))[labels]
    vectors[:, : SIZE // 2] += 0.3 * random.normal(size=(count, SIZE // 2))
    return vectors.astype(np.float32), [f"c{label:02d}" for label in labels]


def write_file(path: Path, vectors: npt.NDArray[np.floating], labels: list[str], /, **columns: list[object]) -> Path:
    """A Parquet file with the columns product, sku and embedding."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    names = [f"s{row}" for row in range(len(vectors))]
    pq.write_table(pa.table({"product": labels, "id": names, "embedding": lists, **columns}), path)
    return path


def vector_catalog(folder: Path) -> Path:
    """A prepared catalog of vectors, half of whose classes are for testing."""
    write_file(folder / "features.parquet", *labelled_vectors())
    catalog: Catalog = prepare(
        "vectors",
        folder / "features.parquet",
        folder / "products.parquet",
        options={"label": "product", "test_classes": "half"},
    )
    assert len(catalog)
    return folder / "products.parquet"
