"""Self-contained HTML pages: sections of text, tables and pictures, and nothing that has to be fetched.

What a page shows is chosen elsewhere: in run_report.py and in the reports of other folders.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from proxygml.files import atomic_write


@dataclass(frozen=True)
class Picture:
    """A picture of the page: the name of its file, what it shows in words, and its content."""

    name: str
    alt: str
    png: bytes
    wide: bool = True  # scrolls sideways on a phone instead of shrinking beyond recognition


@dataclass(frozen=True)
class Section:
    """A part of the page: nothing of it is written where it holds neither pictures nor text."""

    title: str
    text: str = ""  # plain
    pictures: tuple[Picture, ...] = ()
    after: str = ""  # HTML


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """The page, and its pictures in figures/ beside it."""
    for picture in (picture for section in sections for picture in section.pictures):
        with atomic_write(path.parent / "figures" / f"{picture.name}.png") as temporary:
            temporary.write_bytes(picture.png)
    with atomic_write(path) as temporary:
        temporary.write_text(_page(title, lead, sections), encoding="utf-8")


def _page(title: str, lead: str, sections: Sequence[Section]) -> str:
    body = "\n".join(_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>\n{body}\n"
        "<footer>Written by proxygml.</footer>\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    if not section.pictures and not section.after:
        return ""
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    pictures = "\n".join(_img(picture) for picture in section.pictures)
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{text}\n{pictures}\n{section.after}\n</section>"


def _img(picture: Picture) -> str:
    content = base64.b64encode(picture.png).decode("ascii")
    wide = ' class="wide"' if picture.wide else ""
    return f'<figure{wide}><img alt="{escape(picture.alt)}" src="data:image/png;base64,{content}"></figure>'


def table_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = [f"<thead><tr>{cells}</tr></thead>"] if head else []
    lines.append("<tbody>")
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    lines.append("</tbody>")
    return '<div class="scroll"><table>' + "".join(lines) + "</table></div>"


_CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f2f4f6; color: #1f2933;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 2rem 1rem 3rem; }
header { padding: 0 .25rem 1rem; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
header p { margin: .3rem 0 0; font-size: 1.15rem; color: #52606d; }
section { background: #fff; border: 1px solid #e3e7eb; border-radius: 10px;
  padding: 1.4rem 1.5rem; margin: 0 0 1.2rem; }
h2 { margin: 0 0 .4rem; font-size: 1.2rem; }
section > p { margin: 0 0 .8rem; max-width: 46rem; color: #52606d; }
figure { margin: .6rem 0 0; }
img { display: block; width: 100%; height: auto; }
.wide, .scroll { overflow-x: auto; }
table { border-collapse: collapse; margin-top: .8rem; font-size: .95rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.4rem .3rem 0; text-align: left; border-bottom: 1px solid #e3e7eb; }
th { font-weight: 600; color: #52606d; white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
td { overflow-wrap: break-word; }
th:last-child, td:last-child { padding-right: 0; }
footer { color: #7b8794; font-size: .85rem; padding: 0 .25rem; }
@media (max-width: 640px) { section { padding: 1rem; } .wide img { width: 700px; max-width: none; } }
@media print {
  body { background: #fff; font-size: 11pt; } main { max-width: none; padding: 0; }
  section { border: 0; padding: 0; margin-bottom: 1.5rem; }
  figure, table { break-inside: avoid; } h2 { break-after: avoid; }
}
"""
