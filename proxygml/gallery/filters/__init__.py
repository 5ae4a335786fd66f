"""Filters of items: the grammar, values by the column's type, and the rows that match."""
