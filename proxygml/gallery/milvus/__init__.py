"""Galleries in Milvus: gallery.py answers; the other files write, read and translate for it."""
