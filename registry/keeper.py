"""What of a store is kept, and what goes: leases and views hold adapters, the collector takes what nothing holds."""

from collections.abc import Callable, Sequence
from pathlib import Path

from hotshoe.registry.digest import check_digest
from hotshoe.registry.errors import AdapterNotFound
from hotshoe.registry.reader import StoreReader
from hotshoe.registry.store.commits import Commits
from hotshoe.registry.store.fsck import FsckProgress, FsckReport, check_blobs
from hotshoe.registry.store.garbage import DEFAULT_GRACE_SECONDS, Garbage, GarbageReport
from hotshoe.registry.store.guest_leases import GuestLeases
from hotshoe.registry.store.index import Index
from hotshoe.registry.store.index_rows import Lease
from hotshoe.registry.store.layout import Layout, disk
from hotshoe.registry.store.leases import DEFAULT_LEASE_SECONDS, Leases
from hotshoe.registry.store.locks import StoreLocks
from hotshoe.registry.store.quarantine import Quarantine
from hotshoe.registry.store.reserve import Reserve
from hotshoe.registry.store.tag_log import TagLog
from hotshoe.registry.store.views import Views


class StoreKeeper(StoreReader):
    """The part of `Registry` that holds and removes."""

    def __init__(
        self, layout: Layout, *, locks: StoreLocks, index: Index, commits: Commits, log: TagLog, reserve_bytes: int
    ) -> None:
        super().__init__(layout, locks=locks, index=index)
        self._leases = GuestLeases(layout, index) if layout.read_only else Leases(layout)
        self._views = Views(layout, locks)
        reserve = Reserve(layout.root, 0 if layout.read_only else reserve_bytes)
        reserve.keep()
        self._garbage = Garbage(
            layout, locks=locks, index=index, blobs=self._blobs, commits=commits, log=log, reserve=reserve
        )

    def lease(self, digests: Sequence[str], *, holder: str, ttl_seconds: float = DEFAULT_LEASE_SECONDS) -> None:
        """Keeps adapters from being collected while `holder` uses them; leasing them again extends that. Of a store
        that is only read it is noted, but the collector who may write to it does not hear of it.

        Raises:
            AdapterNotFound: one is not here; nothing is leased.
            InvalidReference: a digest is malformed, the holder has no name, or the time is not above 0.
        """
        with disk("leasing"):
            self._leases.take(digests, holder=holder, ttl_seconds=ttl_seconds)

    def renew_leases(self, holder: str, *, ttl_seconds: float = DEFAULT_LEASE_SECONDS) -> int:
        """Extends all leases of a holder; returns how many it has."""
        with disk("renewing leases"):
            return self._leases.renew(holder, ttl_seconds=ttl_seconds)

    def release_leases(self, holder: str, digests: Sequence[str] | None = None) -> int:
        """Ends a holder's leases, of some adapters or all; returns how many there were."""
        with disk("releasing leases"):
            return self._leases.release(holder, digests)

    def lease_durably(self, digest: str, *, holder: str, ttl_seconds: float = DEFAULT_LEASE_SECONDS) -> Lease:
        """As `lease`, for a holder who is not on this machine: neither a restart nor a power failure ends it.

        Raises:
            AdapterNotFound, InvalidReference: as `lease`.
            QuotaExceeded: there are as many leases as there may be.
        """
        with disk("leasing"):
            return self._leases.take_durably(digest, holder=holder, ttl_seconds=ttl_seconds)

    def leases(self, holder: str = "") -> Sequence[Lease]:
        """The leases that hold now, of a holder or of all, the first to expire first."""
        with disk("listing leases"):
            return self._leases.holding(holder)

    def view(self, digest: str) -> Path:
        """A directory with the files of an adapter, as hard links to its blobs, under the names they were published by.

        It stays, and keeps the adapter from being collected, until `unview`.

        Raises:
            AdapterNotFound, BlobCorrupt, InvalidReference: as `adapter_files`.
            StoreUnavailable: the disk refused.
        """
        with disk("making a view"):
            try:
                return self._make_view(digest)
            except FileNotFoundError:
                # A blob was found damaged and set aside since it was verified: that is told now, or healed.
                return self._make_view(digest)

    def _make_view(self, digest: str) -> Path:
        files = self.adapter_files(digest)
        with self._locks.publishing():
            if self._index.latest_of(digest) is None:  # it was collected meanwhile
                raise AdapterNotFound(f"no adapter {digest}")
            return self._views.make(digest, files)

    def unview(self, digest: str) -> bool:
        """Removes an adapter's view; whether there was one."""
        with disk("removing a view"):
            return self._views.remove(check_digest(digest))

    def collect_garbage(
        self, *, grace_seconds: float = DEFAULT_GRACE_SECONDS, dry_run: bool = False, retain_parents: bool = True
    ) -> GarbageReport:
        """Removes adapters that no tag, lease or view reaches, what was said about them, and blobs of none.

        What was published, uploaded, or left by a tag within the grace stays. What goes lies in .trash/ until the
        next collection. Damaged files in .quarantine/ go for ever after the grace, unless they are the only copy.

        Args:
            dry_run: tell what would go, and change nothing.
            retain_parents: keep what kept adapters were made from.

        Raises:
            StoreUnavailable: the disk refused; collecting again goes on where this ended.
        """
        with disk("collecting garbage"):
            run = self._garbage.find if dry_run else self._garbage.collect
            return run(grace_seconds=grace_seconds, retain_parents=retain_parents)

    def fsck(self, *, heal: bool = False, progress: Callable[[FsckProgress], None] = lambda step: None) -> FsckReport:
        """Reads and hashes every blob. What is corrupt goes to quarantine; a new upload heals it, or its next reader
        does where `heal_from` has said from where, or with `heal` this check.

        Raises:
            StoreUnavailable: the disk refused.
        """
        with disk("checking the store"):
            healer = self._healing.heal if heal else None
            return check_blobs(self._blobs, self._index, Quarantine(self._layout), heal=healer, progress=progress)
