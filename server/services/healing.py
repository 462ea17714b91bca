"""Blobs that are damaged or lost here, fetched again by digest from the server's remotes, once for all who wait."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from hotshoe.registry.errors import AdapterNotFound, RemoteError, RemoteUnavailable
from hotshoe.registry.manifest import FileDescriptor
from hotshoe.server.logs import log_event
from hotshoe.server.services.transfers import Transfers

_FORGET_SECONDS = 5.0  # after which a blob that no remote gave is asked for again
_MAX_FAILURES = 1024


class RemoteBlobs:
    """What `Registry.heal_from` takes: every reader heals what it finds, on its own thread, and waits for it. Any
    thread.

    Args:
        count: told of each blob that was found damaged or lost, and whether it is whole again.
    """

    def __init__(self, transfers: Transfers, count: Callable[[bool], None]) -> None:
        self._transfers = transfers
        self._count = count
        self._mutex = threading.Lock()
        self._failures: dict[str, tuple[RemoteUnavailable | None, float]] = {}  # what to raise, and until when

    def fetch(self, blob: FileDescriptor, names: Sequence[str]) -> bool:
        """Asks one remote after another for a blob, under each of the names that its adapters have here.

        Raises:
            RemoteUnavailable: no remote gave it, and one could not be asked.
        """
        with self._mutex:
            failure, until = self._failures.get(blob.digest, (None, 0.0))
        if time.monotonic() >= until:
            fetched, failure = self._fetch_now(blob, names)
            if fetched:
                return True
            self._remember(blob.digest, failure)
        if failure is not None:
            raise failure.with_traceback(None)
        return False

    def note(self, digest: str, *, healed: bool) -> None:
        self._count(healed)
        log_event(logging.WARNING if healed else logging.ERROR, "damaged_blob", digest=digest, healed=healed)

    def _fetch_now(self, blob: FileDescriptor, names: Sequence[str]) -> tuple[bool, RemoteUnavailable | None]:
        failure: RemoteUnavailable | None = None
        for url in self._transfers.remotes:
            for name in names:
                try:
                    self._transfers.fetch_blob(url, blob, name)
                except AdapterNotFound:
                    continue
                except RemoteError as error:
                    log_event(logging.WARNING, "blob_not_fetched", digest=blob.digest, reason=str(error))
                    failure = failure or (error if isinstance(error, RemoteUnavailable) else None)
                    continue
                log_event(logging.INFO, "blob_fetched", digest=blob.digest, name=name, remote=str(url))
                return True, None
        return False, failure

    def _remember(self, digest: str, failure: RemoteUnavailable | None) -> None:
        with self._mutex:
            while len(self._failures) >= _MAX_FAILURES:
                del self._failures[next(iter(self._failures))]
            self._failures[digest] = (failure, time.monotonic() + _FORGET_SECONDS)
