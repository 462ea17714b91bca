"""Leases: who uses an adapter says so, and it is not collected until the lease ends or expires.

A lease of a process on this machine is worth no sync of its own: what a power failure would lose of it ends its holder
too. One of a holder elsewhere is synced before it is acknowledged. All are kept in the index alone: should that be
lost, they are.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from hotshoe.registry.digest import check_digest
from hotshoe.registry.errors import AdapterNotFound, InvalidReference, QuotaExceeded
from hotshoe.registry.index import connect, is_io_error
from hotshoe.registry.layout import Layout

DEFAULT_LEASE_SECONDS = 24 * 3600.0
MAX_HOLDER_LENGTH = 200
MAX_LEASES = 1 << 16  # after which holders elsewhere are given no more


class Lease(NamedTuple):
    """Who uses an adapter, and until when, in seconds since the epoch."""

    holder: str
    digest: str
    expires: float


class Leases:
    """The leases of one store, by holder. A collector looks at them in its own transaction, so that a lease is either
    seen by it or refused because the adapter is gone.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._mutex = threading.Lock()
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
        expires = time.time() + _check_ttl(ttl_seconds)
        rows = [(check_holder(holder), check_digest(digest), expires) for digest in digests]
        with self._transaction():
            for _, digest, _ in rows:
                if not self._connection.execute("SELECT 1 FROM adapters WHERE digest = ?", (digest,)).fetchone():
                    raise AdapterNotFound(f"no adapter {digest}")
            self._connection.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", rows)

    def take_durably(self, digest: str, *, holder: str, ttl_seconds: float) -> Lease:
        """Leases an adapter for a holder elsewhere: it is so after a power failure, too.

        Raises:
            AdapterNotFound, InvalidReference: as `take`.
            QuotaExceeded: there are as many leases as there may be.
        """
        lease = Lease(check_holder(holder), check_digest(digest), time.time() + _check_ttl(ttl_seconds))
        with self._transaction(synchronous="FULL"):
            if not self._connection.execute("SELECT 1 FROM adapters WHERE digest = ?", (digest,)).fetchone():
                raise AdapterNotFound(f"no adapter {digest}")
            self._connection.execute("DELETE FROM leases WHERE expires <= ?", (time.time(),))
            self._connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", lease)
            if self._connection.execute("SELECT count(*) FROM leases").fetchone()[0] > MAX_LEASES:
                raise QuotaExceeded(f"there are {MAX_LEASES} leases already")
        return lease

    def holding(self, holder: str) -> list[Lease]:
        """The leases that hold now, of a holder or ("") of all, the first to expire first."""
        sql = "SELECT holder, digest, expires FROM leases WHERE expires > ?1 AND ?2 IN ('', holder) "
        with self._mutex:
            rows = self._connection.execute(f"{sql} ORDER BY expires, holder, digest", (time.time(), holder)).fetchall()
        return [Lease(*row) for row in rows]

    def renew(self, holder: str, *, ttl_seconds: float) -> int:
        """Extends all leases of a holder; returns how many it has."""
        expires = time.time() + _check_ttl(ttl_seconds)
        with self._transaction():
            sql = "UPDATE leases SET expires = ? WHERE holder = ?"
            return self._connection.execute(sql, (expires, check_holder(holder))).rowcount

    def release(self, holder: str, digests: Sequence[str] | None) -> int:
        """Ends leases of a holder, those of some adapters or all; returns how many there were."""
        with self._transaction():
            if digests is None:
                return self._connection.execute("DELETE FROM leases WHERE holder = ?", (holder,)).rowcount
            rows = [(holder, digest) for digest in digests]
            return self._connection.executemany("DELETE FROM leases WHERE holder = ? AND digest = ?", rows).rowcount

    @contextmanager
    def _transaction(self, *, synchronous: str = "NORMAL") -> Iterator[None]:
        with self._mutex:
            self._connection.execute(f"PRAGMA synchronous = {synchronous}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException as error:
                if isinstance(error, sqlite3.Error) and is_io_error(error):
                    self._layout.fail(f"the index could not be written ({error})")
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _check_ttl(seconds: float) -> float:
    if not 0 < seconds < float("inf"):
        raise InvalidReference(f"ttl_seconds {seconds}: expected more than 0", field="ttl_seconds")
    return seconds


def check_holder(holder: str) -> str:
    """Returns `holder`. Raises InvalidReference."""
    if not (holder and holder.isprintable() and len(holder) <= MAX_HOLDER_LENGTH):
        expected = f"expected 1 to {MAX_HOLDER_LENGTH} printable characters"
        raise InvalidReference(f"holder {holder[:80]!r}: {expected}", field="holder")
    return holder
