"""The columns of a catalog that the product reads; all others are the user's own, and stay as they are."""

SPLITS = ("train", "val", "test")
TEXT_COLUMNS = ("path", "label", "split")
BOX_COLUMNS = ("x_1", "y_1", "x_2", "y_2")
ROLE_COLUMNS = ("is_query", "is_gallery")
