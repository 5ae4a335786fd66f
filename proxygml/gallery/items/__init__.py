"""The table of a gallery's items: its columns, their types, and the ids of its rows."""
