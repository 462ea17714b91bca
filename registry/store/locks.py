"""Who may change the store when: advisory locks between threads and between processes, on a local disk.

A publisher takes .gate, then shares .gc, then drops .gate; a collector takes .gate, then .gc alone. So a waiting
collector holds back new publishers and cannot starve, and what a publisher links stays until it has been committed.
.lock is held over an index transaction and its export; it comes last. Nobody holds any of them while bytes travel.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class StoreLocks:
    """The lock files of one store. A lock ends with the process that held it.

    Args:
        check: raises where nobody may change the store; asked before each lock is taken.
    """

    def __init__(self, root: Path, check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self._gate = root / ".gate"
        self._gc = root / ".gc"
        self._lock = root / ".lock"

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """While it is held, nothing is collected. Many may hold it."""
        self._check()
        with _flock(self._gc, fcntl.LOCK_SH, turnstile=self._gate):
            yield

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While it is held, nobody publishes: for garbage collection and for recovery at start."""
        self._check()
        with _flock(self._gc, fcntl.LOCK_EX, turnstile=self._gate):
            yield

    @contextmanager
    def committing(self) -> Iterator[None]:
        """While it is held, nobody else changes the index or its export. Taken inside one of the others."""
        self._check()
        with _flock(self._lock, fcntl.LOCK_EX):
            yield


@contextmanager
def _flock(path: Path, operation: int, *, turnstile: Path | None = None) -> Iterator[None]:
    # A new open file description each time, so that threads of one process exclude each other too.
    fd = _open(path)
    try:
        if turnstile is None:
            fcntl.flock(fd, operation)
        else:
            with _flock(turnstile, fcntl.LOCK_EX):
                fcntl.flock(fd, operation)
        yield
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
