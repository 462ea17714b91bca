"""What happened under a lock, told to the observer after it."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hotshoe.server.adapters.resident import ResidencyObserver

_log = logging.getLogger(__name__)
Event = Callable[[ResidencyObserver], None]


class ObserverEvents:
    """Events in the order in which they happened. All but `tell` need the lock."""

    def __init__(self, observer: ResidencyObserver | None) -> None:
        self._observer = observer
        self._events: list[Event] = []

    def loaded(self, key: str, source: str, seconds_by_stage: dict[str, float]) -> None:
        self._events.append(lambda observer: observer.loaded(key, source, seconds_by_stage))

    def load_failed(self, key: str, error: Exception) -> None:
        self._events.append(lambda observer: observer.load_failed(key, error))

    def evicted(self, key: str, tier: str, reason: str) -> None:
        self._events.append(lambda observer: observer.evicted(key, str(tier), reason))

    def lookup(self, hit: bool) -> None:
        self._events.append(lambda observer: observer.lookup(hit))

    def take(self) -> list[Event]:
        """What has happened since the last call."""
        events, self._events = self._events, []
        return events

    @contextmanager
    def told_after(self, lock: threading.Lock) -> Iterator[None]:
        """Holds the lock; then tells the observer what happened in the block."""
        events: list[Event] = []
        try:
            with lock:
                try:
                    yield
                finally:
                    events = self.take()
        finally:
            self.tell(events)

    def tell(self, events: list[Event]) -> None:
        """Without the lock; what the observer makes of one event does not touch the others."""
        if self._observer is None:
            return
        for event in events:
            try:
                event(self._observer)
            except Exception:
                _log.exception("the residency's observer failed")
