"""Leases on what is in memory, so that the registry does not collect it.

A loader takes one before it reads; a thread of our own renews them, and ends those of adapters that have left. The
engine's thread touches neither the disk nor a lock that is held over it.
"""

import logging
import threading
import uuid
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from hotshoe.registry.errors import AdapterNotFound, StoreUnavailable

TTL_SECONDS = 3600.0  # what a server that was killed holds on to
HOLDER_PREFIX = "server-"  # of the holders that servers are

_log = logging.getLogger(__name__)


class LeaseStore(Protocol):
    """Where leases are kept: the registry."""

    def lease(self, digests: Sequence[str], *, holder: str, ttl_seconds: float) -> None: ...
    def release_leases(self, holder: str, digests: Sequence[str] | None = None) -> object: ...


class AdapterLeases:
    """The leases of one server process.

    Args:
        held: the adapters in memory or on their way there; asked by the thread that ends leases.
        renew_seconds: how often all are renewed.
        settle_seconds: how long it waits for more to leave, once one has.
    """

    def __init__(
        self,
        store: LeaseStore,
        held: Callable[[], Collection[str]],
        *,
        renew_seconds: float = 600.0,
        settle_seconds: float = 1.0,
    ) -> None:
        self._store = store
        self._held = held
        self._renew_seconds = renew_seconds
        self._settle_seconds = settle_seconds
        self._holder = f"{HOLDER_PREFIX}{uuid.uuid4()}"
        self._leased: set[str] = set()
        self._mutex = threading.Lock()  # held while leases are taken and ended, so that neither undoes the other
        self._left = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapter-leases", daemon=True)
        self._thread.start()

    def take(self, digest: str) -> None:
        """Leases an adapter that is about to be read.

        A disk that takes no writes does not stop reading: the next renewal tries again.

        Raises:
            AdapterNotFound: it is not in the registry, or not any more.
        """
        with self._mutex:
            if digest not in self._leased:
                self._lease([digest])
                self._leased.add(digest)

    def note_departure(self) -> None:
        """An adapter has left; its lease ends soon. Never waits."""
        self._left.set()

    def close(self) -> None:
        """Ends all leases."""
        self._closing.set()
        self._left.set()
        self._thread.join()
        with self._mutex:
            self._leased.clear()
            self._release(None)

    def _run(self) -> None:
        while True:
            has_left = self._left.wait(self._renew_seconds)
            if self._closing.wait(self._settle_seconds if has_left else 0):
                return
            self._left.clear()
            with self._mutex:
                self._end_unused()
                if not has_left:
                    self._renew()

    def _end_unused(self) -> None:
        if gone := self._leased.difference(self._held()):
            self._leased -= gone
            self._release(sorted(gone))

    def _renew(self) -> None:
        for digest in self._leased:
            try:
                self._lease([digest])
            except AdapterNotFound:  # the store was lost and rebuilt without it; the memory is not harmed
                _log.warning("adapter %s is in memory, and not in the registry any more", digest)

    def _lease(self, digests: Sequence[str]) -> None:
        try:
            self._store.lease(digests, holder=self._holder, ttl_seconds=TTL_SECONDS)
        except StoreUnavailable as error:
            _log.warning("adapters could not be leased: %s", error)

    def _release(self, digests: Sequence[str] | None) -> None:
        try:
            self._store.release_leases(self._holder, digests)
        except StoreUnavailable as error:
            _log.warning("leases could not be ended, and expire by themselves: %s", error)
