"""What other threads have to say to the engine's, and how it sleeps until they do."""

import threading
from collections import deque
from collections.abc import Callable

from hotshoe.server.engine.request import AnswerOutput

Message = Callable[[], list[AnswerOutput]]  # run by the engine's thread; gives the outputs that follow from it


class Inbox:
    """Messages in order of arrival. Any thread puts, the engine's takes and waits.

    Attributes:
        lock: held while something must change together with what is put.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._arrived = threading.Condition(self.lock)
        self._messages: deque[Message] = deque()
        self._woken = False

    def put(self, message: Message) -> None:
        """Adds a message and wakes the engine."""
        with self._arrived:
            self._messages.append(message)
            self._arrived.notify()

    def wake(self) -> None:
        """Ends the engine's next `wait`, or the one it is in, without a message."""
        with self._arrived:
            self._woken = True
            self._arrived.notify()

    def take(self) -> list[Message]:
        """Every message that has arrived."""
        with self.lock:
            messages = list(self._messages)
            self._messages.clear()
        return messages

    def wait(self, timeout_seconds: float) -> bool:
        """Sleeps until there is a message, or `wake` is called, or the time is over; whether it is not over."""
        with self._arrived:
            woken = self._arrived.wait_for(lambda: bool(self._messages) or self._woken, timeout_seconds)
            self._woken = False
        return woken
