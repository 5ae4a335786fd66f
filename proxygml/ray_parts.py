"""Work that is divided into numbered parts, each made by one of many actors of Ray.

A part is written by the actor that makes it, under a name that follows from its number, whole or not at all. So nothing
but numbers passes between processes, a part whose actor was killed is made again by another, and one that is made twice
is there once.

Why not Ray Data: with nothing to pass on it adds processes of its own (twice the processor time for 19 small parts, see
docs/scaling.md), and it can only retry for ever, also where a part kills every process that makes it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from proxygml import errors
from proxygml.console import progress_bar
from proxygml.errors import UserError
from proxygml.ray_session import largest, total

MOST_TRIES = 20
"""Of a part, or of another task, whose process is killed each time."""

LOOK_SECONDS = 10
"""How often machines are looked for that have joined the cluster."""


class Made(NamedTuple):
    """What the making of a part came to."""

    items: int
    """All items of the part, bad ones too."""
    bad: int = 0
    kept: int = 0
    """Items that an earlier run had made."""


MakePart = Callable[[int], Made]


@dataclass(frozen=True)
class PartTask:
    """A kind of work in parts.

    Attributes:
        parts: how many.
        items: in all parts together, for the progress.
        start: makes in each actor, once, the function that makes a part of a number; pickled by Ray.
        cpus: processors of each actor.
        memory: bytes of main memory that Ray sets aside for each actor: it starts no more of them than fit.
        gpu: whether each takes a GPU, where the cluster has some.
        description: of the progress bar.
    """

    parts: int
    items: int
    start: Callable[[], MakePart]
    cpus: int
    memory: int
    description: str
    gpu: bool = False


def run_parts(ray: Any, task: PartTask) -> Made:
    """Make all parts, with a progress bar, and return the sums over them.

    Args:
        ray: see ray_session.
        task: the work.

    Raises:
        UserError: as the work raises it; or every process that made a part was killed.
    """
    done = Made(0)
    with progress_bar() as bar:
        shown = bar.add_task(task.description, total=task.items, note="")
        for made in _Actors(ray, task).results():
            done = Made(*(sum(pair) for pair in zip(done, made, strict=True)))
            bar.update(shown, completed=done.items, note=f"{done.bad:,} unreadable" if done.bad else "")
    return done


class _Actor:
    """What an actor does."""

    def __init__(self, start: Callable[[], MakePart]) -> None:
        self._start = start

    @cached_property
    def _make(self) -> MakePart:
        return self._start()

    def is_ready(self) -> bool:
        """Whether it runs: this returns once it does."""
        return True

    def make(self, part: int) -> tuple[Made, str, str]:
        """What the making of a part came to, and the kind and the message of an error that is the user's to fix."""
        try:
            return self._make(part), "", ""
        except (UserError, OSError) as error:
            return Made(0), type(error).__name__, str(error)


class _Actors:
    """The actors of a piece of work: started as far as the cluster has room, and each given one part at a time."""

    def __init__(self, ray: Any, task: PartTask) -> None:
        self._ray = ray
        self._task = task
        self._gpus = min(1, int(largest(ray, "GPU"))) if task.gpu else 0
        self._cpus = min(task.cpus, int(largest(ray, "CPU")))
        memory = min(task.memory, int(largest(ray, "memory")))
        self._class = ray.remote(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            memory=memory,
            max_restarts=-1,
            max_task_retries=MOST_TRIES - 1,
        )(_Actor)
        self._actors: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._working: dict[Any, Any] = {}

    def results(self) -> Iterator[Made]:
        """What each part came to, in the order in which they end."""
        left = iter(range(self._task.parts))
        try:
            self._start(self._task.parts)
            for _ in range(self._task.parts):
                while not (ended := self._ended(left)):
                    self._start(self._task.parts)
                yield ended[0]
        finally:
            for actor in self._actors:
                self._ray.kill(actor)

    def _start(self, parts: int) -> None:
        """Start as many actors as there is room for, one for each part at most; the others wait for room."""
        kind, each = ("GPU", self._gpus) if self._gpus else ("CPU", self._cpus)
        while len(self._actors) < max(1, min(int(total(self._ray, kind)) // each, parts)):
            actor = self._class.remote(self._task.start)
            self._actors.append(actor)
            self._starting[actor.is_ready.remote()] = actor

    def _ended(self, left: Iterator[int]) -> list[Made]:
        """A part that has ended, or nothing within a while; the actor that made it is given the next one."""
        ready, _ = self._ray.wait([*self._working, *self._starting], timeout=LOOK_SECONDS)
        for task in ready:
            made = [self._result(task)] if task in self._working else []
            actor = self._working.pop(task, None) or self._starting.pop(task)
            if (part := next(left, None)) is not None:
                self._working[actor.make.remote(part)] = actor
            return made
        return []

    def _result(self, task: Any) -> Made:
        try:
            made, error, message = self._ray.get(task)
        except self._ray.exceptions.RayActorError as lost:
            raise UserError(
                f"{self._task.description}: all of {MOST_TRIES} processes that made the same part were killed, perhaps "
                "because memory ran out: use smaller batches or fewer workers; the same command continues"
            ) from lost
        if error:
            raise getattr(errors, error, UserError)(message)
        return Made(*made)
