"""The leases of a store that is only read: what leases.log says, and those that this process keeps in memory.

No collector hears of the latter: whoever serves adapters from a store that others write should have them tagged there,
or leased by those who may.
"""

import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from hotshoe.registry.digest import check_digest
from hotshoe.registry.errors import AdapterNotFound
from hotshoe.registry.store.index import Index
from hotshoe.registry.store.index_rows import Lease
from hotshoe.registry.store.layout import Layout
from hotshoe.registry.store.lease_log import LeaseLog
from hotshoe.registry.store.leases import check_holder, check_ttl


class GuestLeases:
    """As `Leases`, which says what each method does."""

    def __init__(self, layout: Layout, index: Index) -> None:
        self._layout = layout
        self._index = index
        self._log = LeaseLog(layout)
        self._mutex = threading.Lock()
        self._taken: dict[tuple[str, str], Lease] = {}

    def close(self) -> None:
        with self._mutex:
            self._taken.clear()

    def take(self, digests: Sequence[str], *, holder: str, ttl_seconds: float) -> None:
        expires = time.time() + check_ttl(ttl_seconds)
        leases = [Lease(check_holder(holder), check_digest(digest), expires) for digest in digests]
        for lease in leases:
            if not self._index.names_of(lease.digest):
                raise AdapterNotFound(f"no adapter {lease.digest}")
        with self._mutex:
            self._taken.update(((lease.holder, lease.digest), lease) for lease in leases)

    def take_durably(self, digest: str, *, holder: str, ttl_seconds: float) -> NoReturn:
        self._layout.check_writable()
        raise AssertionError("only a store that is read-only has such leases")

    def holding(self, holder: str) -> list[Lease]:
        now = time.time()
        with self._mutex:
            leases = self._log.leases(after=now) | self._taken
        held = [lease for lease in leases.values() if lease.expires > now and holder in ("", lease.holder)]
        return sorted(held, key=lambda lease: (lease.expires, lease.holder, lease.digest))

    def renew(self, holder: str, *, ttl_seconds: float) -> int:
        expires = time.time() + check_ttl(ttl_seconds)
        with self._mutex:
            mine = [lease for lease in self._taken.values() if lease.holder == check_holder(holder)]
            self._taken.update(((lease.holder, lease.digest), lease._replace(expires=expires)) for lease in mine)
        return len(mine)

    def release(self, holder: str, digests: Sequence[str] | None) -> int:
        """Raises StoreReadOnly: the lease is in leases.log, and so for others to end."""
        with self._mutex:
            ended = [key for key in self._taken if key[0] == holder and (digests is None or key[1] in digests)]
            for key in ended:
                del self._taken[key]
        if any(
            key[0] == holder and (digests is None or key[1] in digests) for key in self._log.leases(after=time.time())
        ):
            self._layout.check_writable()
        return len(ended)
