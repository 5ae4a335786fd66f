"""Work of many requests done together: what comes while the last batch is under way makes up the next one."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


class Batcher(Generic[Work, Result]):
    """Gathers single pieces of work into batches and hands each to a function, in one thread, one after the other.

    Nobody waits for a batch to fill: one starts as soon as the last has ended.

    Args:
        function: takes up to `most` pieces and returns as many results; one that is an exception is raised where its
            piece came from. An exception of its own is raised for all of them.
        most: pieces in a batch.
    """

    def __init__(self, function: Callable[[Sequence[Work]], Sequence[Result | Exception]], most: int) -> None:
        self._function = function
        self._most = most
        self._waiting: asyncio.Queue[tuple[Work, asyncio.Future[Result]] | None] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End; what has been given to `do` before is finished first."""
        if self._task is not None:
            self._waiting.put_nowait(None)
            await self._task
        await asyncio.to_thread(self._thread.shutdown)

    async def do(self, work: Work) -> Result:
        """The result of one piece; work that nobody waits for any more, and that has not begun, is left out."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((work, future))
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        stopping = False
        while not stopping:
            given = [await self._waiting.get()]
            while len(given) < self._most and not self._waiting.empty():
                given.append(self._waiting.get_nowait())
            stopping = None in given
            batch = [entry for entry in given if entry is not None and not entry[1].done()]
            if not batch:
                continue
            results: Sequence[Result | Exception]
            try:
                results = await loop.run_in_executor(self._thread, self._function, [work for work, _ in batch])
            except Exception as error:
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
