"""Self-contained HTML pages: sections of text, pictures and tables. A page loads no other file.

run_report.py and comparison/report.py choose what a page shows. templates/ holds its layout and style.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from proxygml.files import atomic_write
from proxygml.reports.embedding_map import InteractiveMap


@dataclass(frozen=True)
class Picture:
    """A picture of the page: the name of its file, what it shows in words, and its content."""

    name: str
    alt: str
    png: bytes
    wide: bool = True  # scrolls sideways on a phone instead of shrinking beyond recognition


@dataclass(frozen=True)
class Section:
    """A part of the page: a text, pictures, a table. One with neither pictures nor rows is left out."""

    title: str
    text: str = ""
    pictures: tuple[Picture, ...] = ()
    head: Sequence[str] = ()  # of the table's columns
    rows: Sequence[Sequence[str]] = ()
    map: InteractiveMap | None = None  # takes the place of the pictures on a screen; a page has one at most


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write a page, and its pictures to figures/ beside it.

    Args:
        path: where the page goes.
        title: its heading.
        lead: the line below the heading.
        sections: its parts, in their order.
    """
    shown = [section for section in sections if section.pictures or section.rows]
    for picture in (picture for section in shown for picture in section.pictures):
        with atomic_write(path.parent / "figures" / f"{picture.name}.png") as temporary:
            temporary.write_bytes(picture.png)
    shown_map = next((section.map for section in shown if section.map), None)
    # Bokeh compiles its WebGL commands when it runs; none of the map's scripts takes text for code.
    policy = content_policy() if shown_map is None else content_policy(shown_map.scripts, compiles=True)
    given = {"title": title, "lead": lead, "sections": shown, "map": shown_map, "policy": policy}
    page = _environment().get_template("page.html").render(given)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def content_policy(scripts: Sequence[str] = (), *, compiles: bool = False) -> str:
    """A page's content security policy: it fetches nothing and runs no script but its own, named by their hashes.

    Args:
        scripts: the text of each, whole.
        compiles: whether they make code when they run, which is then possible to all of them, and to none else.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii") for script in scripts]
    sources = [f"'sha256-{each}'" for each in hashes] + ["'unsafe-eval'"] * compiles
    return f"{policy}; script-src {' '.join(sources)}" if sources else policy


def _environment() -> Environment:
    """The templates. Whatever is filled into them is escaped."""
    environment = Environment(
        loader=PackageLoader("proxygml.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"base64": _base64, "unbroken": _unbroken}
    return environment


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _unbroken(text: str) -> Markup:
    """The text, escaped, with each interval and each p value on one line: 1.2 (0.3 - 2.1), p 0.02 may be three."""
    pattern = r"\([^()]{1,20}\)|\bp (?:&lt; )?[\d.]+"
    return Markup(re.sub(pattern, r'<span class="one-line">\g<0></span>', str(escape(text))))
