"""Answers that take work: one at a time, once for all who wait, and never more than a part."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest

from artel.ledger.web import turns
from artel.ledger.web.turns import Turns


@pytest.fixture
async def made() -> AsyncIterator[Turns]:
    found = Turns()
    yield found
    await found.close()


class Work:
    """Something that is made when it may, and counts how often it was."""

    def __init__(self) -> None:
        self.times = 0
        self.begun, self.may = threading.Event(), threading.Event()

    def __call__(self) -> int:
        self.times += 1
        self.begun.set()
        assert self.may.wait(30)
        return self.times

    async def begins(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 30)


async def test_all_who_wait_for_the_same_get_one_answer_that_is_newer_than_their_question(
    made: Turns,
) -> None:
    work = Work()
    first = asyncio.create_task(made.get("page", work))
    await work.begins()
    later = [asyncio.create_task(made.get("page", work)) for _ in range(50)]
    await asyncio.sleep(0)
    work.may.set()
    assert await first == 1
    assert await asyncio.gather(*later) == [2] * 50
    assert work.times == 2


async def test_one_is_made_at_a_time(made: Turns) -> None:
    work, other = Work(), Work()
    first = asyncio.create_task(made.get("page", work))
    await work.begins()
    second = asyncio.create_task(made.get("status", other))
    assert not await asyncio.to_thread(other.begun.wait, 0.2)
    work.may.set()
    other.may.set()
    assert (await first, await second) == (1, 1)


async def test_what_nobody_waits_for_any_more_is_not_made(made: Turns) -> None:
    work, other = Work(), Work()
    first = asyncio.create_task(made.get("page", work))
    await work.begins()
    gone = [asyncio.create_task(made.get("status", other)) for _ in range(3)]
    await asyncio.sleep(0)
    for each in gone[:2]:
        each.cancel()
    await asyncio.sleep(0)
    assert not gone[2].done(), "who stays still gets it"
    gone[2].cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    assert not made._next
    work.may.set()
    other.may.set()
    assert await first == 1
    assert await made.get("status", other) == 1


async def test_what_goes_wrong_is_told_to_all_who_asked(made: Turns) -> None:
    def broken() -> None:
        raise ValueError("no page")

    asked = await asyncio.gather(
        *(made.get("page", broken) for _ in range(3)), return_exceptions=True
    )
    assert [str(each) for each in asked] == ["no page"] * 3


async def test_after_its_work_the_thread_rests_for_longer_than_that_took(made: Turns) -> None:
    def work() -> float:
        began = time.thread_time()
        while time.thread_time() < began + 0.1:
            pass
        return time.monotonic()

    ended = [await made.get("page", work) for _ in range(3)]
    least = 2 * 0.1 * (1 + turns.REST)
    assert ended[-1] - ended[0] >= least


async def test_a_thread_that_has_rested_begins_at_once(made: Turns) -> None:
    def work() -> None:
        began = time.thread_time()
        while time.thread_time() < began + 0.2:
            pass

    await made.get("page", work)
    waited = []
    real = made._closing.wait
    made._closing.wait = lambda seconds: waited.append(seconds) or real(seconds)  # type: ignore
    await asyncio.sleep(0.2 * turns.REST)
    await made.get("page", lambda: None)
    assert waited == [0.0]


async def test_nobody_waits_for_the_rest_of_a_program_that_ends() -> None:
    made = Turns()
    made._rested = time.monotonic() + 3600.0
    asked = asyncio.create_task(made.get("page", lambda: None))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(30):
        await made.close()
    await asyncio.gather(asked, return_exceptions=True)
