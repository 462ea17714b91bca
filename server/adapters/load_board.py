"""What those who ask for adapters and the threads that load them have in common, under one lock."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from hotshoe.server.adapters.load_queue import LoadQueue
from hotshoe.server.adapters.observer_events import ObserverEvents
from hotshoe.server.adapters.residency_state import ResidencyState
from hotshoe.server.adapters.resident import ResidencyObserver
from hotshoe.server.config import ResidencyConfig


class LoadBoard:
    """Where adapters are, which loads wait, and who is told of it.

    Attributes:
        lock: guards all of it; no file is read and no tensor copied while it is held.
        work: of that lock; loaders wait for something to do.
        progress: of that lock; who waits for a load waits for loaders.
    """

    def __init__(
        self,
        config: ResidencyConfig,
        *,
        clear: Callable[[int], None],
        observer: ResidencyObserver | None,
        left: Callable[[], None],
    ) -> None:
        """`clear` and `left` are `ResidencyState`'s."""
        self.lock = threading.Lock()
        self.work = threading.Condition(self.lock)
        self.progress = threading.Condition(self.lock)
        self.events = ObserverEvents(observer)
        self.state = ResidencyState(config, clear=clear, evicted=self.events.evicted, left=left)
        self.queue = LoadQueue(self.state)
        self.closed = False

    def locked(self) -> AbstractContextManager[None]:
        """Holds the lock; then tells the observer what happened."""
        return self.events.told_after(self.lock)

    def close(self) -> None:
        """Wakes everyone who waits: nothing is loaded any more."""
        with self.lock:
            self.closed = True
            self.work.notify_all()
            self.progress.notify_all()
