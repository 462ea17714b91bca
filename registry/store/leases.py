"""Leases: who uses an adapter says so, and it is not collected until the lease ends or expires.

A lease of a process on this machine is worth no sync of its own: what a power failure would lose of it ends its holder
too. One of a holder elsewhere is synced before it is acknowledged. Each is in the index and in leases.log, and either
is made again from the other.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hotshoe.registry.digest import check_digest
from hotshoe.registry.errors import AdapterNotFound, InvalidReference, QuotaExceeded, StoreUnavailable
from hotshoe.registry.store.index import connect, file_identity, is_io_error
from hotshoe.registry.store.index_rows import Lease
from hotshoe.registry.store.layout import Layout
from hotshoe.registry.store.lease_log import LeaseChange, LeaseLog

DEFAULT_LEASE_SECONDS = 24 * 3600.0
MAX_HOLDER_LENGTH = 200
MAX_LEASES = 1 << 16  # after which holders elsewhere are given no more

_ALL = "SELECT holder, digest, expires FROM leases"


class Leases:
    """The leases of one store, by holder. A collector looks at them in its own transaction, so that a lease is either
    seen by it or refused because the adapter is gone.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._log = LeaseLog(layout)
        self._mutex = threading.Lock()
        self._identity = file_identity(layout.database)
        self._connection = connect(layout.database)

    def close(self) -> None:
        with self._mutex:
            self._connection.close()

    def take(self, digests: Sequence[str], *, holder: str, ttl_seconds: float) -> None:
        """Leases adapters, or leases them for longer.

        Raises:
            AdapterNotFound: one is not in the store; nothing is leased.
            InvalidReference: a digest is malformed, the holder has no name, or the time is not above 0.
        """
        expires = time.time() + check_ttl(ttl_seconds)
        leases = [Lease(check_holder(holder), check_digest(digest), expires) for digest in digests]
        with self._transaction() as changes:
            self._add(leases)
            changes += [LeaseChange(*lease) for lease in leases]

    def take_durably(self, digest: str, *, holder: str, ttl_seconds: float) -> Lease:
        """Leases an adapter for a holder elsewhere: it is so after a power failure, too.

        Raises:
            AdapterNotFound, InvalidReference: as `take`.
            QuotaExceeded: there are as many leases as there may be.
        """
        lease = Lease(check_holder(holder), check_digest(digest), time.time() + check_ttl(ttl_seconds))
        with self._transaction(durable=True) as changes:
            self._connection.execute("DELETE FROM leases WHERE expires <= ?", (time.time(),))
            self._add([lease])
            if self._connection.execute("SELECT count(*) FROM leases").fetchone()[0] > MAX_LEASES:
                raise QuotaExceeded(f"there are {MAX_LEASES} leases already")
            changes.append(LeaseChange(*lease))
        return lease

    def holding(self, holder: str) -> list[Lease]:
        """The leases that hold now, of a holder or ("") of all, the first to expire first."""
        with self._mutex:
            self._follow()
            sql = f"{_ALL} WHERE expires > ?1 AND ?2 IN ('', holder) ORDER BY expires, holder, digest"
            return [Lease(*row) for row in self._connection.execute(sql, (time.time(), holder))]

    def renew(self, holder: str, *, ttl_seconds: float) -> int:
        """Extends all leases of a holder; returns how many it has."""
        expires = time.time() + check_ttl(ttl_seconds)
        with self._transaction() as changes:
            self._connection.execute("UPDATE leases SET expires = ? WHERE holder = ?", (expires, check_holder(holder)))
            changes += [LeaseChange(*row) for row in self._connection.execute(f"{_ALL} WHERE holder = ?", (holder,))]
        return len(changes)

    def release(self, holder: str, digests: Sequence[str] | None) -> int:
        """Ends leases of a holder, those of some adapters or all; returns how many there were."""
        with self._transaction() as changes:
            if digests is None:
                ended = self._connection.execute("DELETE FROM leases WHERE holder = ?", (holder,)).rowcount
                changes += [LeaseChange(holder, None, None)] * bool(ended)
                return ended
            rows = [(holder, digest) for digest in digests]
            changes += [LeaseChange(*row, None) for row in rows]
            return self._connection.executemany("DELETE FROM leases WHERE holder = ? AND digest = ?", rows).rowcount

    def _add(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            if not self._connection.execute("SELECT 1 FROM adapters WHERE digest = ?", (lease.digest,)).fetchone():
                raise AdapterNotFound(f"no adapter {lease.digest}")
        self._connection.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", leases)

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[list[LeaseChange]]:
        """All or nothing, of what is done in the index and of the changes that are put on the list."""
        changes: list[LeaseChange] = []
        with self._mutex:
            self._follow()
            if durable:
                self._layout.check_sound()
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield changes
                if changes and not self._log.append(changes, durable=durable):
                    self._log.replace(Lease(*row) for row in self._connection.execute(_ALL))
                self._connection.execute("COMMIT")
            except BaseException as error:
                if isinstance(error, sqlite3.Error) and is_io_error(error):
                    self._layout.fail(f"the index could not be written ({error})")
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _follow(self) -> None:
        """Goes over to the index that another process has rebuilt: what runs here must be kept there, too."""
        identity = file_identity(self._layout.database)
        if identity == self._identity:
            return
        if identity is None:
            raise StoreUnavailable("the index was removed while this server ran; restart it")
        connection = connect(self._layout.database)
        self._connection.close()
        self._connection, self._identity = connection, identity


def check_ttl(seconds: float) -> float:
    """Returns `seconds`. Raises InvalidReference unless they are finite and more than 0."""
    if not 0 < seconds < float("inf"):
        raise InvalidReference(f"ttl_seconds {seconds}: expected more than 0", field="ttl_seconds")
    return seconds


def check_holder(holder: str) -> str:
    """Returns `holder`. Raises InvalidReference."""
    if not (holder and holder.isprintable() and len(holder) <= MAX_HOLDER_LENGTH):
        expected = f"expected 1 to {MAX_HOLDER_LENGTH} printable characters"
        raise InvalidReference(f"holder {holder[:80]!r}: {expected}", field="holder")
    return holder
