"""The columns of a catalog that the product reads; all others are the user's own, and stay as they are."""

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""How splits are called elsewhere, in lower case."""
TEXT_COLUMNS = ("path", "label", "split")
BOX_COLUMNS = ("x_1", "y_1", "x_2", "y_2")
ROLE_COLUMNS = ("is_query", "is_gallery")
MARK_COLUMNS = ("is_junk", "is_distractor")
GROUP_COLUMNS = ("sequence", "camera")
RULE_COLUMNS = (*ROLE_COLUMNS, *GROUP_COLUMNS, *MARK_COLUMNS)
"""What says which images may answer for which query."""


def split_of(name: str) -> str | None:
    """The split that is called so, in small or capital letters; None where none is."""
    return SPLIT_NAMES.get(name.strip().lower())


KEEP = "keep"
"""A column that says which rows train: those with False do not."""
EMBEDDING = "embedding"
"""The column of a Parquet file that holds an item's vector: a list of floats."""
EMBEDDING_ROW = "embedding_row"
"""In place of that column in a catalog that was read: the row of the file that holds the vector."""
MAP_COLUMNS = ("projection_x", "projection_y", "neighbors", "thumbnail")
"""What `embed --columns atlas` adds to a file of vectors; see gallery/atlas.py."""
