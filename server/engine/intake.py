"""Which requests the engine takes, from any thread, and which of them have not ended yet."""

import time
from collections.abc import Callable

from hotshoe.server.engine.inbox import Inbox, Message
from hotshoe.server.errors import InvalidRequest, QueueFull, ServerError

_NEWEST_SHARE = 0.1  # of the running mean of seconds from one end to the next
_LONGEST_PAUSE_SECONDS = 60.0  # between ends that the mean believes


class Intake:
    """What is under way, by request id. Guarded by the inbox's lock, so that ids and messages agree.

    Args:
        capacity: requests under way at most: running and waiting ones.
    """

    def __init__(self, inbox: Inbox, *, capacity: int) -> None:
        self._inbox = inbox
        self._capacity = capacity
        self._under_way: set[str] = set()
        self._refusal: Callable[[], ServerError] | None = None
        self._seconds_per_end = 1.0
        self._last_end = time.monotonic()

    def take(self, request_id: str, message: Message) -> None:
        """Puts a request's first message.

        Raises:
            InvalidRequest: that id is under way.
            QueueFull: so much is under way as may be; it says when there may be room.
            ServerError: why nothing is taken any more; see `refuse`.
        """
        with self._inbox.lock:
            if self._refusal is not None:
                raise self._refusal()
            if request_id in self._under_way:
                raise InvalidRequest("request_id", "is in use by a request that is not finished")
            if len(self._under_way) >= self._capacity:
                retry_after = min(max(self._seconds_per_end, 0.1), 30.0)
                raise QueueFull(f"{self._capacity} requests are under way", retry_after)
            self._under_way.add(request_id)
            self._inbox.put(message)

    def put(self, request_id: str, message: Message) -> None:
        """Puts a message about a request, unless that has ended."""
        with self._inbox.lock:
            if request_id in self._under_way:
                self._inbox.put(message)

    def refuse(self, refusal: Callable[[], ServerError]) -> None:
        """Takes nothing from now on, and raises what `refusal` makes; the latest counts."""
        with self._inbox.lock:
            self._refusal = refusal

    def forget(self, request_id: str) -> None:
        """A request has ended. Called by the engine's thread alone."""
        now = time.monotonic()
        pause = min(now - self._last_end, _LONGEST_PAUSE_SECONDS)
        self._seconds_per_end += _NEWEST_SHARE * (pause - self._seconds_per_end)
        self._last_end = now
        with self._inbox.lock:
            self._under_way.discard(request_id)

    @property
    def is_empty(self) -> bool:
        """Whether every request that was taken has ended."""
        with self._inbox.lock:
            return not self._under_way
