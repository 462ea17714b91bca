"""How long a remote may take, and how often it is asked again."""

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """What is waited for.

    Attributes:
        silence_seconds: between two reads or writes.
        exchange_seconds: for an exchange, and what the bytes of a blob add to it at the slowest rate.
        attempts: in all, where something may be tried again.
        backoff_seconds: before the second attempt; twice as long before each further one, up to sixteen times.
    """

    connect_seconds: float = 5.0
    silence_seconds: float = 20.0
    exchange_seconds: float = 60.0
    slowest_bytes_per_second: int = 64 << 10
    attempts: int = 4
    backoff_seconds: float = 0.2

    def seconds_for(self, size_bytes: int) -> float:
        """How long the exchange of so many bytes may take."""
        return self.exchange_seconds + size_bytes / self.slowest_bytes_per_second

    def rest(self, attempt: int) -> None:
        """Waits before what follows attempt number `attempt`, counted from 0."""
        time.sleep(self.backoff_seconds * 2 ** min(attempt, 4))


DEFAULT_PATIENCE = Patience()
