"""What remotes did not give a moment ago, so that they are not asked for it again at once."""

import threading
import time
from typing import Generic, TypeVar

FORGET_SECONDS = 5.0
MAX_FAILURES = 1024

F = TypeVar("F")


class RecentFailures(Generic[F]):
    """By what was asked for; the oldest make room for new ones. Any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._failures: dict[str, tuple[F, float]] = {}  # and until when, in time.monotonic() seconds

    def find(self, key: str) -> F | None:
        """What `note` was told within FORGET_SECONDS."""
        with self._mutex:
            failure, until = self._failures.get(key, (None, 0.0))
            if failure is not None and time.monotonic() >= until:
                del self._failures[key]
                return None
        return failure

    def note(self, key: str, failure: F) -> None:
        """It was asked for now, and not had."""
        with self._mutex:
            self._failures.pop(key, None)
            while len(self._failures) >= MAX_FAILURES:
                del self._failures[next(iter(self._failures))]
            self._failures[key] = (failure, time.monotonic() + FORGET_SECONDS)
