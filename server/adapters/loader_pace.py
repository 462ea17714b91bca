"""Keeps loading to a share of one core while requests decode, so that the engine has the others to itself."""

import threading
import time
from collections.abc import Callable

SLICE_SECONDS = 0.0005  # of work at a time: how long a loader may be in the way
MAX_SLEEP_SECONDS = 0.01  # at a time, so that what is owed is forgotten soon when the engine falls idle


class LoaderPace:
    """Loader threads call `pause` between pieces of work, and sleep there as long as they have to.

    All threads share the share. It is for one load; each that waits behind it adds as much, for requests that stand
    still lose more than those that go on a little slower. While the engine has nothing to decode, nobody sleeps.
    """

    def __init__(
        self, share: float, *, backlog: Callable[[], int] = lambda: 0, decoding: Callable[[], bool] | None = None
    ) -> None:
        """Takes what may be had, and what decides it.

        Args:
            share: of one core's time, above 0; with 1 or more nobody sleeps.
            backlog: loads that wait to begin.
            decoding: whether requests decode; else `set_decoding` says so.
        """
        self.share = share
        self._ask_decoding = decoding
        self._backlog = backlog
        self._decoding = False
        self._lock = threading.Lock()
        self._free_at = 0.0  # time.monotonic() seconds: when the work done so far has been paid for
        self._own = threading.local()

    def set_decoding(self, decoding: bool) -> None:
        """Whether requests decode now. The engine's thread says so in each step."""
        self._decoding = decoding

    @property
    def decoding(self) -> bool:
        """Whether requests decode."""
        return self._decoding if self._ask_decoding is None else self._ask_decoding()

    def begin(self) -> None:
        """This thread begins a load: what it did before does not count."""
        self._own.used = time.thread_time()

    def pause(self) -> None:
        """Sleeps until this thread may go on."""
        used = time.thread_time()
        worked = used - self._own.used
        if worked < SLICE_SECONDS:
            return
        self._own.used = used
        share = self.share * (1 + self._backlog())
        if share >= 1.0 or not self.decoding:
            return
        with self._lock:
            now = time.monotonic()
            until = self._free_at = max(now, self._free_at) + worked * (1.0 / share - 1.0)
        while self.decoding and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, MAX_SLEEP_SECONDS))
        if not self.decoding:
            with self._lock:
                self._free_at = min(self._free_at, time.monotonic())
