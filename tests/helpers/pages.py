"""HTML pages as a browser would read them."""

import base64
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """Headings, cells, paragraphs and pictures of a page, and everything that it would fetch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}
        self.pictures: list[bytes] = []
        self.fetched: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "input"):
            self._open.append(tag)
        attributes = dict(attrs)
        if tag in ("link", "iframe"):
            self.fetched.append(tag)
        for name in ("src", "href"):
            value = attributes.get(name, "data:")
            if not value.startswith("data:"):
                self.fetched.append(value)
        if tag == "img":
            assert attributes["alt"]
            self.pictures.append(
                base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"), validate=True)
            )

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and data.strip():
            if self._open[-1] == "span":  # a part of the text around it
                self.found[self._open[-2]][-1] += data
            else:
                self.found.setdefault(self._open[-1], []).append(data)
