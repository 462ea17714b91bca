"""What a thread tells is heard in order, and all of it before its result, or before what it raises."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from hotshoe.server.services.thread_steps import ThreadSteps

WAIT = 100.0  # seconds, for what takes a fraction of one


def test_steps_come_in_order_and_before_the_result() -> None:
    def work(tell: Callable[[int], None]) -> str:
        for step in range(100):
            tell(step)
        return "done"

    async def listen() -> tuple[list[int], str]:
        with ThreadPoolExecutor(1) as executor:
            steps: ThreadSteps[int, str] = ThreadSteps(executor, work)
            return [step async for step in steps], await steps.result

    assert asyncio.run(listen()) == (list(range(100)), "done")


def test_what_the_work_raises_comes_behind_its_steps() -> None:
    def work(tell: Callable[[int], None]) -> None:
        tell(1)
        raise ValueError("spoiled")

    async def listen() -> list[int]:
        with ThreadPoolExecutor(1) as executor:
            steps: ThreadSteps[int, None] = ThreadSteps(executor, work)
            heard = [step async for step in steps]
            with pytest.raises(ValueError, match="spoiled"):
                await steps.result
            return heard

    assert asyncio.run(listen()) == [1]


def test_work_goes_on_when_nobody_listens_any_more() -> None:
    may_end, ended = threading.Event(), threading.Event()

    def work(tell: Callable[[int], None]) -> None:
        tell(1)
        assert may_end.wait(WAIT)
        tell(2)
        ended.set()

    async def listen(executor: ThreadPoolExecutor) -> None:
        async for _ in ThreadSteps[int, None](executor, work):
            return

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(listen(executor))
        may_end.set()  # its loop is closed by now
        assert ended.wait(WAIT)
