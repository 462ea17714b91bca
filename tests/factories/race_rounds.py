"""Processes that begin together, and tell what they did: barriers that forked children share, and tallies."""

import json
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

_FORK = multiprocessing.get_context("fork")
_PATIENCE_SECONDS = 300.0  # until a process that is not there counts as dead


class Tally:
    """Counts, lists, and the words of what must not happen; of one process."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.lists: dict[str, list[Any]] = {}
        self.wrong: list[str] = []

    def add(self, what: str, count: int = 1) -> None:
        self.counts[what] += count

    def note(self, what: str, value: Any) -> None:
        self.lists.setdefault(what, []).append(value)

    def blame(self, what: str) -> None:
        self.wrong.append(what)

    def as_json(self) -> str:
        return json.dumps({"counts": self.counts, "lists": self.lists, "wrong": self.wrong})

    def merge(self, told: dict[str, Any]) -> None:
        """Adds another process's."""
        self.counts.update(told["counts"])
        self.wrong += told["wrong"]
        for what, values in told["lists"].items():
            self.lists.setdefault(what, []).extend(values)


class Starter:
    """Lets all processes go at once, and tells each when it is time to end."""

    def __init__(self, processes: int, seconds: float) -> None:
        self._end = _FORK.Value("d", 0.0)
        self._barrier = _FORK.Barrier(processes, self._set_end)
        self._seconds = seconds

    def wait(self) -> None:
        self._barrier.wait(_PATIENCE_SECONDS)

    def goes_on(self) -> bool:
        return time.monotonic() < self._end.value

    def turns(self) -> Iterator[None]:
        """One at least, however late this process comes to it."""
        yield
        while self.goes_on():
            yield

    def _set_end(self) -> None:
        self._end.value = time.monotonic() + self._seconds


class Rounds:
    """Rounds of a group of processes; all begin one together, or none does."""

    def __init__(self, processes: int, starter: Starter) -> None:
        self._another = _FORK.Value("b", True)
        self._starter = starter
        self._begin = _FORK.Barrier(processes, self._decide)
        self._meet = _FORK.Barrier(processes)

    def begin(self) -> bool:
        """Waits for all; whether there is another round, which only one of them decides."""
        return self._wait(self._begin) and bool(self._another.value)

    def meet(self) -> None:
        """Waits for all, in the middle of a round. Raises AssertionError: one of them has given up."""
        assert self._wait(self._meet), "another process gave up"

    def give_up(self) -> None:
        """Ends the rounds of all: this process is out of step."""
        for barrier in (self._begin, self._meet):
            barrier.abort()

    def _wait(self, barrier: Any) -> bool:
        wait: Callable[[float], int] = barrier.wait
        try:
            wait(_PATIENCE_SECONDS)
        except threading.BrokenBarrierError:
            return False
        return True

    def _decide(self) -> None:
        self._another.value = self._starter.goes_on()
