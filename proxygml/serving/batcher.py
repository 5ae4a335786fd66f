"""Work of many requests done together: what comes while the last batch is under way makes up the next one."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


class Batcher(Generic[Work, Result]):
    """Gathers single pieces of work into batches and hands each to a function, in one thread, one after the other.

    Nobody waits for a batch to fill: one starts as soon as the last has ended. The thread takes the work by itself,
    without a turn of the event loop before and after each batch.

    Args:
        function: takes up to `most` pieces and returns as many results; one that is an exception is raised where its
            piece came from. An exception of its own is raised for all of them.
        most: pieces in a batch.
    """

    def __init__(self, function: Callable[[Sequence[Work]], Sequence[Result | Exception]], most: int) -> None:
        self._function = function
        self._most = most
        self._waiting: queue.SimpleQueue[tuple[Work, asyncio.Future[Result]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Begin, in the running event loop."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True, name="proxygml-batches")
        self._thread.start()

    async def stop(self) -> None:
        """End; what has been given to `do` before is finished first."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            await asyncio.to_thread(thread.join)

    async def do(self, work: Work) -> Result:
        """The result of one piece; work that nobody waits for any more, and that has not begun, is left out.

        Raises:
            RuntimeError: it is before `start` or after `stop`, when nothing would do the work.
        """
        if self._thread is None:
            raise RuntimeError("this batcher does not run, so that its work would never be done: start it first")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.put((work, future))
        return await future

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while (given := self._next())[-1] is not None:
            self._do(given, loop)
        self._do(given[:-1], loop)

    def _next(self) -> "list[tuple[Work, asyncio.Future[Result]] | None]":
        """What waits, at least one piece and at most a batch; None at its end where the work is to stop after it."""
        given = [self._waiting.get()]
        while given[-1] is not None and len(given) < self._most:
            try:
                given.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return given

    def _do(self, given: "list[tuple[Work, asyncio.Future[Result]] | None]", loop: asyncio.AbstractEventLoop) -> None:
        batch = [entry for entry in given if entry is not None and not entry[1].done()]
        if not batch:
            return
        results: Sequence[Result | Exception]
        try:
            results = self._function([work for work, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        futures = [future for _, future in batch]
        loop.call_soon_threadsafe(_answer, futures, results)


def _answer(futures: Sequence["asyncio.Future[Result]"], results: Sequence[Result | Exception]) -> None:
    """Give each result to whoever waits for it; in the event loop."""
    for future, result in zip(futures, results, strict=True):
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
