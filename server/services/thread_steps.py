"""What a thread tells while it works, as the event loop hears of it."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, Self, TypeVar

S = TypeVar("S")
R = TypeVar("R")


class ThreadSteps(Generic[S, R]):
    """Work on a thread of an executor: iterate over what it tells, then await its `result`. Event loop only.

    Whoever stops listening leaves the work going; a work that is to end then must be told so.
    """

    def __init__(self, executor: Executor, work: Callable[[Callable[[S], None]], R]) -> None:
        """Begins the work. It calls what it is given with each step, on its thread."""
        self._loop = asyncio.get_running_loop()
        self._steps: asyncio.Queue[S | None] = asyncio.Queue()
        self.result: asyncio.Future[R] = self._loop.run_in_executor(executor, work, self._tell)
        self.result.add_done_callback(self._end)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> S:
        step = await self._steps.get()
        if step is None:
            raise StopAsyncIteration
        return step

    def _tell(self, step: S) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._steps.put_nowait, step)

    def _end(self, done: "asyncio.Future[R]") -> None:
        if not done.cancelled():
            done.exception()  # somebody looked, though nobody may listen any more
        self._steps.put_nowait(None)
