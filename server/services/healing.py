"""Blobs that are damaged or lost here, fetched again by digest from the server's remotes, once for all who wait."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hotshoe.registry.errors import AdapterNotFound, RemoteError, RemoteUnavailable
from hotshoe.registry.manifest import FileDescriptor
from hotshoe.server.logs import log_event
from hotshoe.server.services.recent_failures import RecentFailures
from hotshoe.server.services.transfers import Transfers


class _NotGiven(NamedTuple):
    """No remote gave a blob; `problem`: one could not be asked."""

    problem: RemoteUnavailable | None


class RemoteBlobs:
    """What `Registry.heal_from` takes: every reader heals what it finds, on its own thread, and waits for it. Any
    thread.

    Args:
        count: told of each blob that was found damaged or lost, and whether it is whole again.
    """

    def __init__(self, transfers: Transfers, count: Callable[[bool], None]) -> None:
        self._transfers = transfers
        self._count = count
        self._failures: RecentFailures[_NotGiven] = RecentFailures()

    def fetch(self, blob: FileDescriptor, names: Sequence[str]) -> bool:
        """Asks one remote after another for a blob, under each of the names that its adapters have here.

        Raises:
            RemoteUnavailable: no remote gave it, and one could not be asked.
        """
        failure = self._failures.find(blob.digest)
        if failure is None:
            failure = self._fetch_now(blob, names)
            if failure is None:
                return True
            self._failures.note(blob.digest, failure)
        if failure.problem is not None:
            raise failure.problem.with_traceback(None)
        return False

    def note(self, digest: str, *, healed: bool) -> None:
        self._count(healed)
        log_event(logging.WARNING if healed else logging.ERROR, "damaged_blob", digest=digest, healed=healed)

    def _fetch_now(self, blob: FileDescriptor, names: Sequence[str]) -> _NotGiven | None:
        """None once it is here."""
        problem: RemoteUnavailable | None = None
        for url in self._transfers.remotes:
            for name in names:
                try:
                    self._transfers.fetch_blob(url, blob, name)
                except AdapterNotFound:
                    continue
                except RemoteError as error:
                    log_event(logging.WARNING, "blob_not_fetched", digest=blob.digest, reason=str(error))
                    problem = problem or (error if isinstance(error, RemoteUnavailable) else None)
                    continue
                log_event(logging.INFO, "blob_fetched", digest=blob.digest, name=name, remote=str(url))
                return None
        return _NotGiven(problem)
