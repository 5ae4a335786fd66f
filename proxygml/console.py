"""What a person sees while a command works: one console, one style of progress bar."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")

console = Console(stderr=True)


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
    """Yield the items, with a progress bar on standard error."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(disable) as bar:
        task = bar.add_task(description, total=total, note="")
        for item in items:
            yield item
            bar.advance(task)
