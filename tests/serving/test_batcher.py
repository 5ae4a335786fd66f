"""Work of many requests done together."""

import asyncio
import threading
from collections.abc import Sequence
from itertools import chain

import pytest

from proxygml.serving.batcher import Batcher


def test_what_comes_during_a_batch_is_the_next_one_and_each_gets_its_own_result() -> None:
    batches: list[list[int]] = []
    begun, go_on = threading.Event(), threading.Event()

    def square(pieces: Sequence[int]) -> list[int | Exception]:
        batches.append(list(pieces))
        begun.set()
        assert go_on.wait(30)
        if 99 in pieces:
            raise ZeroDivisionError("all of them")
        return [ValueError("three") if piece == 3 else piece**2 for piece in pieces]

    async def work() -> list[int | BaseException]:
        batcher: Batcher[int, int] = Batcher(square, 4)
        await batcher.start()
        first = asyncio.create_task(batcher.do(1))
        await asyncio.to_thread(begun.wait, 30)
        given_up = asyncio.create_task(batcher.do(50))
        others = [asyncio.create_task(batcher.do(piece)) for piece in (2, 3, 4, 5, 6)]
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.sleep(0)
        go_on.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        failed = await asyncio.gather(batcher.do(99), return_exceptions=True)
        last = asyncio.create_task(batcher.do(7))
        await asyncio.sleep(0)
        await batcher.stop()  # what was given before is done first
        return [*found, *failed, await last]

    found = asyncio.run(work())
    assert [found[place] for place in (0, 1, 3, 4, 5, 7)] == [1, 4, 16, 25, 36, 49]
    assert isinstance(found[2], ValueError) and isinstance(found[6], ZeroDivisionError)
    assert batches[0] == [1] and sorted(chain.from_iterable(batches[1:])) == [2, 3, 4, 5, 6, 7, 99]
    assert max(map(len, batches)) <= 4


def test_a_batcher_that_was_never_started_stops() -> None:
    asyncio.run(Batcher(list, 4).stop())


def test_work_that_nothing_would_do_is_refused() -> None:
    """Before the start, after the end, and not after a new start."""

    async def work() -> list[int | BaseException]:
        batcher: Batcher[int, int] = Batcher(lambda pieces: [piece + 1 for piece in pieces], 4)
        found = [*await given(batcher)]
        await batcher.start()
        await batcher.stop()
        await batcher.stop()
        found += await given(batcher)
        await batcher.start()
        found += await given(batcher)
        await batcher.stop()
        return found

    async def given(batcher: Batcher[int, int]) -> list[int | BaseException]:
        return await asyncio.gather(asyncio.wait_for(batcher.do(1), 20), return_exceptions=True)

    early, late, again = asyncio.run(work())
    assert again == 2
    for error in (early, late):
        assert isinstance(error, RuntimeError) and "does not run" in str(error)


def test_work_given_in_one_turn_of_the_event_loop_is_not_lost(recwarn: pytest.WarningsRecorder) -> None:
    async def work() -> list[int]:
        batcher: Batcher[int, int] = Batcher(lambda pieces: [piece + 1 for piece in pieces], 7)
        await batcher.start()
        found = await asyncio.gather(*(batcher.do(piece) for piece in range(500)))
        await batcher.stop()
        return list(found)

    assert asyncio.run(work()) == list(range(1, 501)) and not recwarn.list
