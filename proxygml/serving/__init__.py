"""The HTTP service of a gallery: the interface with its limits, and the page in a browser.

It needs the extra `serve`. limits.py lists every limit; connections.py, body_limit.py and service.py hold them. What a
search finds is decided in gallery/.
"""
