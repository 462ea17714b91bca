"""Garbage collection: what nothing reaches any more goes, first from the names, then from the disk.

    roots      adapters that a tag names, that a lease holds, or that have a view
    kept too   their parents, and their parents' parents; documents about what is kept; whatever was published,
               touched, or left by a tag within the grace
    garbage    the other adapters under all their names, their documents, and old blobs that none of the kept names;
               damaged files that came to quarantine before the grace, and of which nobody needs the bytes

A name must be durably gone before bytes may go: the index's transaction, tags.log and index.json come first, then the
blobs move to .trash/, where they stay until the next collection, unless the disk is full. A crash between leaves blobs
that nothing names, and the next collection takes them.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hotshoe.registry.digest import is_digest
from hotshoe.registry.manifest import PARENTS, NotAnAdapter, read_manifest
from hotshoe.registry.store.blobs import BlobStore
from hotshoe.registry.store.commits import Commits
from hotshoe.registry.store.index import Index
from hotshoe.registry.store.index_transaction import Transaction
from hotshoe.registry.store.layout import Layout, entries
from hotshoe.registry.store.locks import StoreLocks
from hotshoe.registry.store.quarantine import DamagedFile, Quarantine
from hotshoe.registry.store.reserve import Reserve, is_full
from hotshoe.registry.store.tag_log import Move, TagLog

DEFAULT_GRACE_SECONDS = 24 * 3600.0
# What others may ask for: an upload, and a server's lease, must outlive a collection that begins meanwhile.
MIN_GRACE_SECONDS = 3600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CollectedAdapter:
    """An adapter that nothing reached, under one of its names."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """What a collection removed, or would."""

    adapters: tuple[CollectedAdapter, ...]
    documents: int  # referrers
    blobs: int  # now in .trash/
    blob_bytes: int
    emptied_blobs: int  # of an earlier collection, now gone from .trash/
    emptied_bytes: int
    discarded_files: int  # damaged ones, gone from .quarantine/
    discarded_bytes: int


@dataclass(frozen=True, slots=True)
class _Marked:
    manifests: frozenset[str]
    blobs: Mapping[str, int]  # size in bytes
    damaged: Sequence[DamagedFile]


class Garbage:
    """The collector of one store."""

    def __init__(
        self,
        layout: Layout,
        *,
        locks: StoreLocks,
        index: Index,
        blobs: BlobStore,
        commits: Commits,
        log: TagLog,
        reserve: Reserve,
    ) -> None:
        self._layout = layout
        self._reserve = reserve
        self._locks = locks
        self._index = index
        self._blobs = blobs
        self._quarantine = Quarantine(layout)
        self._commits = commits
        self._log = log

    def find(self, *, grace_seconds: float, retain_parents: bool) -> GarbageReport:
        """What `collect` would remove now. Changes nothing, waits for nobody."""
        marked = self._mark(time.time(), grace_seconds=grace_seconds, retain_parents=retain_parents)
        adapters = self._adapters(marked.manifests)
        return self._report(adapters, marked.manifests, marked.blobs, self._trash(), marked.damaged)

    def collect(self, *, grace_seconds: float, retain_parents: bool) -> GarbageReport:
        """Removes what nothing reaches. Publishers wait only while what was found is looked at again and moved.

        Raises:
            StoreUnavailable, OSError, sqlite3.Error: the disk refused; collecting again goes on where this ended.
        """
        now = time.time()
        oldest = now - grace_seconds
        marked = self._mark(now, grace_seconds=grace_seconds, retain_parents=retain_parents)
        dead = marked.manifests
        adapters: list[CollectedAdapter] = []

        def change(transaction: Transaction) -> list[Move]:
            nonlocal dead, adapters
            if dead & self._index.rooted(time.time()):  # leased at the last moment: no lock keeps holders waiting
                dead -= self._live(oldest, now=time.time(), retain_parents=retain_parents)
            adapters = adapters or self._adapters(dead)  # which a first try may have forgotten already
            for digest in dead:
                transaction.remove_manifest(digest)
            transaction.forget_leases(now)
            transaction.forget_verified(marked.blobs)
            return [Move(adapter.name, None, adapter.digest, None) for adapter in adapters]

        with self._locks.collecting():
            dead &= self._index.manifests()  # another collector may have come first
            dead -= self._live(oldest, now=time.time(), retain_parents=retain_parents)
            emptied = self._empty_trash()  # first: a full disk may need its room for the rest
            # Though nothing may be dead: the export, too, must have forgotten what earlier collections removed.
            was_full = self._commit_on_a_full_disk(change)
            swept = self._sweep(marked.blobs, oldest=oldest)
            if was_full:
                emptied |= self._empty_trash()
            discarded = self._discard(marked.damaged)
            self._reserve.keep()
        return self._report(adapters, dead, swept, emptied, discarded)

    def _commit_on_a_full_disk(self, change: Callable[[Transaction], list[Move]]) -> bool:
        """Commits, if need be in the room that is kept aside; whether that was needed."""
        try:
            self._commits.commit_and_export(change)
        except (OSError, sqlite3.Error) as error:
            if not (is_full(error) and self._reserve.give()):
                raise
            logger.warning("the disk is full: collecting in the room that was kept aside")
            self._commits.commit_and_export(change)
            return True
        return False

    def _mark(self, now: float, *, grace_seconds: float, retain_parents: bool) -> _Marked:
        oldest = now - grace_seconds
        live = self._live(oldest, now=now, retain_parents=retain_parents)
        dead = frozenset(self._index.manifests() - live)
        if self._index.has_lost_manifests():
            logger.error("no blob is collected: a manifest is lost, and with it which blobs it names; see fsck")
            return _Marked(dead, {}, self._mark_damaged(oldest))
        used = live | {blob for digest in live for blob in self._index.blobs_of(digest)}
        unused = [(digest, size) for digest, size in self._blobs.scan() if digest not in used]
        old = {digest: size for digest, size in unused if self._blobs.older_than(digest, oldest)}
        return _Marked(dead, old, self._mark_damaged(oldest))

    def _mark_damaged(self, oldest: float) -> list[DamagedFile]:
        """What has lain in quarantine for long and may go. Hashes what has taken its place, whatever is remembered."""
        old = [file for file in self._quarantine.files() if file.since < oldest]
        return [file for file in old if self._may_discard(file, again=True)]

    def _may_discard(self, file: DamagedFile, *, again: bool = False) -> bool:
        """Whether nobody can want the bytes of a damaged file: its blob is sound, or it is nobody's."""
        if not file.digest or self._blobs.is_sound(file.digest, again=again):
            return True
        return not (self._index.is_used(file.digest) or self._index.has_lost_manifests())

    def _discard(self, damaged: Sequence[DamagedFile]) -> list[DamagedFile]:
        """Removes what still may go, once what has taken its place is there durably."""
        discarded = [file for file in damaged if self._may_discard(file)]
        if discarded:
            self._layout.sync_blobs()
        for file in discarded:
            self._quarantine.discard(file)
        return discarded

    def _live(self, oldest: float, *, now: float, retain_parents: bool) -> set[str]:
        """The manifests that are kept."""
        manifests, referrers = self._index.manifests(), self._index.referrers()
        young = {digest for digest in manifests if not self._is_old(digest, oldest)}
        young |= {row.subject for row in referrers if row.digest in young}
        live = self._index.rooted(now) | self._viewed() | young | self._log.digests_since(oldest)
        if retain_parents:
            live |= self._ancestors(live)
        live |= {row.digest for row in referrers if row.subject in live}
        return live & manifests

    def _is_old(self, digest: str, oldest: float) -> bool:
        return self._blobs.older_than(digest, oldest) or self._blobs.size(digest) is None

    def _viewed(self) -> set[str]:
        return {digest for entry in entries(self._layout.views) if is_digest(digest := f"sha256:{entry.name}")}

    def _ancestors(self, digests: Iterable[str]) -> set[str]:
        parents = self._parents()
        found: set[str] = set()
        waiting = list(digests)
        while waiting:
            for parent in parents.get(waiting.pop(), ()):
                if parent not in found:
                    found.add(parent)
                    waiting.append(parent)
        return found

    def _parents(self) -> dict[str, tuple[str, ...]]:
        parents = {}
        for document in self._index.manifests_that_say(PARENTS):
            try:
                content = read_manifest(document)
            except NotAnAdapter:  # a document that speaks of parents
                continue
            parents[content.digest] = tuple(parent.digest for parent in content.parents)
        return parents

    def _adapters(self, manifests: Iterable[str]) -> list[CollectedAdapter]:
        return [CollectedAdapter(name, digest) for digest in sorted(manifests) for name in self._index.names_of(digest)]

    def _sweep(self, blobs: Mapping[str, int], *, oldest: float) -> dict[str, int]:
        """Throws away those that still nobody names and nobody touched."""
        swept = {}
        for digest, size in blobs.items():
            if self._blobs.older_than(digest, oldest) and not self._index.is_used(digest):
                self._blobs.throw_away(digest)
                swept[digest] = size
        if swept:
            self._layout.sync_directory(self._layout.trash)
            self._layout.sync_blobs()
        return swept

    def _trash(self) -> dict[str, int]:
        return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries(self._layout.trash)}

    def _empty_trash(self) -> dict[str, int]:
        trash = self._trash()
        for name in trash:
            os.unlink(self._layout.trash / name)
        return trash

    def _report(
        self,
        adapters: Iterable[CollectedAdapter],
        manifests: Iterable[str],
        blobs: Mapping[str, int],
        emptied: Mapping[str, int],
        discarded: Sequence[DamagedFile],
    ) -> GarbageReport:
        adapters = tuple(adapters)
        documents = len(set(manifests) - {adapter.digest for adapter in adapters})
        return GarbageReport(
            adapters,
            documents,
            len(blobs),
            sum(blobs.values()),
            len(emptied),
            sum(emptied.values()),
            len(discarded),
            sum(file.size_bytes for file in discarded),
        )
