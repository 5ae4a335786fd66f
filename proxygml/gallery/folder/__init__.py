"""Galleries in folders: gallery.py answers; files.py and manifest.py keep the folder whole while it changes."""
