"""sha256 of bytes that somebody reads or writes at the same time, on a thread beside him. Used by clients, too."""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

_SMALL_BYTES = 128 << 10  # which are hashed sooner than handed to another thread
_THREADS = 4


class StreamHash:
    """sha256 of a stream. At most one chunk is waiting to be hashed while its owner does something else with it."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._hashing: Future[None] | None = None

    def update(self, chunk: bytes | memoryview) -> None:
        """Takes the next chunk, whose bytes must not change any more."""
        self._wait()
        if len(chunk) < _SMALL_BYTES:
            self._sha256.update(chunk)
        else:
            self._hashing = _threads().submit(self._sha256.update, chunk)

    def hexdigest(self) -> str:
        """Of all chunks so far."""
        self._wait()
        return self._sha256.hexdigest()

    def _wait(self) -> None:
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None


_pool: ThreadPoolExecutor | None = None


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="hashing")
    return _pool


def _forget_threads() -> None:
    global _pool
    _pool = None  # a child has none of its parent's


def begin_writing(fd: int, start: int, end: int) -> None:
    """Has the system write those bytes of a file to the disk while others come: a later sync waits for less.

    Where it cannot be asked for that, nothing happens.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # dirty pages that are said not to be needed are written, and kept until they are
            os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
