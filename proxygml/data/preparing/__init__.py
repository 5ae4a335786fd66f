"""From downloads, folders, tables or vectors to a catalog: unpack, open, compare, make smaller or pack, report.

prepare.py does it for images, prepare_vectors.py for vectors.
"""
