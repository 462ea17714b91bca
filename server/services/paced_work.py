"""Work on threads of its own that nothing which runs waits for: it is paced while requests decode."""

import asyncio
import threading
from concurrent.futures import Executor
from typing import Protocol, TypeVar

from hotshoe.registry.validation import Pause
from hotshoe.server.adapters.loader_pace import LoaderPace
from hotshoe.server.adapters.one_core import let_others_first, run_when_idle
from hotshoe.server.errors import Draining

_UNASKED = 0.2  # of a load's share, for what nobody waits for: its slices are longer than a load's

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Work(Protocol[T_co]):
    """A piece of work; once `given_up` is set, nobody waits for it."""

    def __call__(self, *, given_up: threading.Event) -> T_co: ...


class PacedWork:
    """How pieces of work begin, and end early.

    Args:
        loaders: know whether requests decode; beside those, work takes a share as large as a load's at most.
    """

    def __init__(self, loaders: LoaderPace) -> None:
        self._loaders = loaders
        self.closed = threading.Event()

    async def on(self, executor: Executor, work: Work[T]) -> T:
        """What `work` gives on a thread of that executor. Who is cancelled ends the work, too."""
        given_up = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, lambda: work(given_up=given_up))
        finally:
            given_up.set()

    def begin(self, given_up: threading.Event | None, *, is_long: bool = False) -> Pause:
        """Begins a piece of work; gives what it calls between its parts. Without `given_up` nobody waits for it.

        What is long has decompositions of whole weights in it: each is one operation that no pause divides, and so it
        runs where a core is idle, whoever waits.
        """
        let_others_first() if given_up and not is_long else run_when_idle()

        def is_over() -> bool:
            return self.closed.is_set() or (given_up is not None and given_up.is_set())

        share = self._loaders.share * (1.0 if given_up else _UNASKED)
        pace = LoaderPace(share, decoding=lambda: self._loaders.decoding and not is_over())
        pace.begin()

        def pause() -> None:
            pace.pause()
            if is_over():
                raise Draining("nobody waits for this any more")

        return pause
