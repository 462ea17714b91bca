"""Leases: who uses an adapter says so, and it is not collected until the lease ends or expires.

A lease is worth no sync of its own: what a power failure would lose of it ends its holder too.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hotshoe.registry.digest import check_digest
from hotshoe.registry.errors import AdapterNotFound, InvalidReference
from hotshoe.registry.index import connect, is_io_error
from hotshoe.registry.layout import Layout

DEFAULT_LEASE_SECONDS = 24 * 3600.0
MAX_HOLDER_LENGTH = 200


class Leases:
    """The leases of one store, by holder. A collector looks at them in its own transaction, so that a lease is either
    seen by it or refused because the adapter is gone.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._mutex = threading.Lock()
        self._connection = connect(layout.database)
        self._connection.execute("PRAGMA synchronous = NORMAL")

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
        rows = [(_check_holder(holder), check_digest(digest), expires) for digest in digests]
        with self._transaction():
            for _, digest, _ in rows:
                if not self._connection.execute("SELECT 1 FROM adapters WHERE digest = ?", (digest,)).fetchone():
                    raise AdapterNotFound(f"no adapter {digest}")
            self._connection.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", rows)

    def renew(self, holder: str, *, ttl_seconds: float) -> int:
        """Extends all leases of a holder; returns how many it has."""
        expires = time.time() + _check_ttl(ttl_seconds)
        with self._transaction():
            sql = "UPDATE leases SET expires = ? WHERE holder = ?"
            return self._connection.execute(sql, (expires, _check_holder(holder))).rowcount

    def release(self, holder: str, digests: Sequence[str] | None) -> None:
        """Ends leases of a holder: those of some adapters, or all."""
        with self._transaction():
            if digests is None:
                self._connection.execute("DELETE FROM leases WHERE holder = ?", (holder,))
            else:
                rows = [(holder, digest) for digest in digests]
                self._connection.executemany("DELETE FROM leases WHERE holder = ? AND digest = ?", rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._mutex:
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
        raise InvalidReference(f"ttl_seconds {seconds}: expected more than 0")
    return seconds


def _check_holder(holder: str) -> str:
    if not (holder and holder.isprintable() and len(holder) <= MAX_HOLDER_LENGTH):
        raise InvalidReference(f"holder {holder[:80]!r}: expected 1 to {MAX_HOLDER_LENGTH} printable characters")
    return holder
