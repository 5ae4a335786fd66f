"""The HTTP service of a gallery: the interface with its limits, and the page in a browser.

It needs the extra `serve`. What a search finds is decided in gallery/.
"""
