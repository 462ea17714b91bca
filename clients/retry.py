"""Which calls are tried again, and when. Knows nothing of what is called."""

import random
import time
from dataclasses import dataclass, field

import grpc

from hotshoe.clients.errors import CallError, Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable

_CANCELLED_HERE = ("Locally cancelled by application!", "Channel closed!")  # what gRPC says of it


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter.

    The n-th retry waits a random time up to min(max_backoff_seconds, initial_backoff_seconds * multiplier**(n-1)),
    after the delay that the server asked for, if it did.
    """

    max_attempts: int = 4  # 1: never retry
    initial_backoff_seconds: float = 0.1
    max_backoff_seconds: float = 5.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts: must be at least 1, not {self.max_attempts}")
        if self.initial_backoff_seconds < 0 or self.max_backoff_seconds < 0 or self.multiplier < 1:
            raise ValueError("initial_backoff_seconds, max_backoff_seconds: at least 0; multiplier: at least 1")

    def backoff_seconds(self, retry: int) -> float:
        """A random wait before the `retry`-th retry, counted from 1."""
        limit = min(self.max_backoff_seconds, self.initial_backoff_seconds * self.multiplier ** (retry - 1))
        return random.uniform(0.0, limit)


DEFAULT_RETRY = RetryPolicy()
NO_RETRY = RetryPolicy(max_attempts=1)


def may_retry(error: CallError) -> bool:
    """Whether a call that may be run twice is worth trying again after `error`."""
    return isinstance(error, Unavailable) or was_refused(error) or was_dropped(error)


def was_dropped(error: CallError) -> bool:
    """Whether a server that ended let go of a call that it had only just received: gRPC has it end as cancelled."""
    return isinstance(error, Cancelled) and error.message not in _CANCELLED_HERE


def was_refused(error: CallError) -> bool:
    """Whether the server says that it did nothing and invites a retry: then anything may be tried again."""
    return isinstance(error, Unavailable | ResourceExhausted) and error.retry_after is not None


@dataclass(slots=True)
class Attempts:
    """The attempts of one call: how many are left, and how much of its timeout.

    Args:
        policy: how often and how long.
        timeout: seconds for all attempts together; None has no limit.
        idempotent: whether the call may run twice. If not, it is tried again only when the server refused it.
    """

    policy: RetryPolicy
    timeout: float | None
    idempotent: bool = True
    retries: int = 0
    started: float = field(default_factory=time.monotonic)

    def remaining(self) -> float | None:
        """Seconds left. Raises DeadlineExceeded when there are none."""
        if self.timeout is None:
            return None
        left = self.timeout - (time.monotonic() - self.started)
        if left <= 0:
            status = grpc.StatusCode.DEADLINE_EXCEEDED
            raise DeadlineExceeded(f"no answer in {self.timeout:g} s", status=status)
        return left

    def wait_after(self, error: CallError) -> float:
        """Seconds to wait before the next attempt. Raises `error` when there must be none."""
        allowed = may_retry(error) if self.idempotent else was_refused(error)
        if not allowed or self.retries + 1 >= self.policy.max_attempts:
            raise error
        self.retries += 1
        wait = (error.retry_after or 0.0) + self.policy.backoff_seconds(self.retries)
        if self.timeout is not None and time.monotonic() + wait >= self.started + self.timeout:
            raise error  # it says more than "deadline exceeded" would
        return wait

    def anew(self) -> "Attempts":
        """As many as at first, within the time that is left: for one more of a method's calls."""
        return Attempts(self.policy, self.remaining(), self.idempotent)

    def progressed(self) -> None:
        """Something got through: the attempts count anew. For transfers that resume."""
        self.retries = 0
