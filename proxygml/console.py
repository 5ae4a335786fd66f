"""The console that every command writes to, and its progress bars."""

import unicodedata
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment

Item = TypeVar("Item")


def printable(text: str) -> str:
    """The text with every character that a terminal would obey, reorder or hide written out, such as `\\x1b`.

    Names of files and labels come from other people, and an escape sequence in one could rewrite what the terminal
    shows. Line ends and tabs stay. Characters of file names that are not UTF-8 are written out too.
    """
    if text.isprintable():
        return text
    return "".join(map(_written_out, text))


def _written_out(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in "\n\t\u200d"
    return character.encode("unicode_escape").decode() if hidden else character


class SafeConsole(Console):
    """A Rich console whose text passes through `printable`, whichever table, message or progress bar it is part of.

    Text such as `:dog:`, which a file name may hold, is no emoji.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of what is printed; Rich's own control codes stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


console = SafeConsole(stderr=True)


def note(text: str, style: str | None = None) -> None:
    """Print a text as it is on standard error: no line is broken, no number coloured, no bracket read as markup."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print what the user should look at, in yellow; see note."""
    note(f"warning: {text}", "yellow")


def progress_bar(disable: bool = False) -> Progress:
    """A progress bar on standard error; tasks may carry a `note` field, shown at the right."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=disable,
    )


def track(items: Iterable[Item], description: str, total: int | None = None, disable: bool = False) -> Iterator[Item]:
    """Yield the items, with a progress bar on standard error, if there are any."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(disable or total == 0) as bar:
        task = bar.add_task(description, total=total, note="")
        for item in items:
            yield item
            bar.advance(task)
