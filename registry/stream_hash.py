"""Hashing and writing beside whoever has the bytes, so that a transfer takes as long as the slowest of them, not as
long as all. Used by clients, too.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

_SMALL_BYTES = 128 << 10  # which are dealt with sooner than handed to another thread
_THREADS = 4


class Beside:
    """Does one thing after another on another thread, one behind its owner: whoever hands in the next waits for the
    last, and gets what that raised.
    """

    def __init__(self) -> None:
        self._doing: Future[object] | None = None

    def do(self, act: Callable[[bytes | memoryview], object], chunk: bytes | memoryview) -> None:
        """Has something done with a chunk, whose bytes must not change any more; at once if it is small."""
        self.wait()
        if len(chunk) < _SMALL_BYTES:
            act(chunk)
        else:
            self._doing = _threads().submit(act, chunk)

    def wait(self) -> None:
        """Waits for the last; raises what it raised."""
        doing, self._doing = self._doing, None
        if doing is not None:
            doing.result()


class StreamHash:
    """sha256 of a stream, computed beside whoever has its chunks."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._beside = Beside()

    def update(self, chunk: bytes | memoryview) -> None:
        """Takes the next chunk, whose bytes must not change any more."""
        self._beside.do(self._sha256.update, chunk)

    def hexdigest(self) -> str:
        """Of all chunks so far."""
        self._beside.wait()
        return self._sha256.hexdigest()


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
