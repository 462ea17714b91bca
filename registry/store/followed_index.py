"""The index of a store that is only read: in memory, made of index.json, tags.log and the blobs, and brought up to
tags.log before it is asked anything.

SQLite's file is left alone: its log may need a replay, which is a write, and on another machine's disk, or in an image,
its shared memory means nothing. What tags.log has was acknowledged; what a crash tore from it was not, and who opens
the store to write completes or removes it.
"""

import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hotshoe.registry.errors import StoreUnavailable
from hotshoe.registry.store.blobs import BlobStore
from hotshoe.registry.store.index import Index, IndexDamaged, connect
from hotshoe.registry.store.index_json import IndexListing
from hotshoe.registry.store.index_rows import Fingerprint, ReferrerRow
from hotshoe.registry.store.index_transaction import Transaction
from hotshoe.registry.store.layout import Layout
from hotshoe.registry.store.lease_log import LeaseLog
from hotshoe.registry.store.recovery import acknowledged, fill, stored_manifest, stored_referrer
from hotshoe.registry.store.tag_log import Move, TagLog

logger = logging.getLogger(__name__)


class FollowedIndex(Index):
    """An index that somebody else's commits come to.

    Raises:
        StoreUnavailable: there are blobs, and nothing that says what they are called.
        OSError, sqlite3.Error: the disk refused.
    """

    def __init__(self, layout: Layout, log: TagLog) -> None:
        self._layout = layout
        self._log = log
        self._blobs = BlobStore(layout, self)
        self._mutex = self._read_mutex = threading.RLock()  # one connection reads and writes
        self._seen: Fingerprint | None = None  # the log up to `_position`
        self._trouble = ""
        self._load()

    def _read(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        with self._read_mutex:
            self._follow()
            return super()._read(sql, parameters)

    def rooted(self, now: float) -> set[str]:
        leases = LeaseLog(self._layout).leases(after=now)
        return super().rooted(now) | {lease.digest for lease in leases.values()}

    def _follow(self) -> None:
        """Takes in what the log has more; what is known stays while the disk gives nothing."""
        trouble = ""
        try:
            seen = self._log.stamp()
            if seen is None or seen == self._seen:
                return
            if self._seen and (seen.inode != self._seen.inode or seen.size_bytes < self._position):
                self._load()  # another store, or an older copy of it, was put here
            else:
                self._catch_up(seen)
        except (OSError, StoreUnavailable) as error:
            trouble = str(error)
        if trouble not in ("", self._trouble):
            logger.warning("%s cannot be followed: %s", self._layout.root, trouble)
        self._trouble = trouble

    def _load(self) -> None:
        """Makes all of it anew."""
        seen = self._log.stamp()
        _, position = self._log.events_from(0)  # before index.json is read: it may say more than the log up to here
        listing = self._listing()
        connection = connect(Path(":memory:"))
        connection.execute("BEGIN")
        fill(Transaction(connection), listing, self._blobs)
        connection.execute("COMMIT")
        self._writer = self._reader = connection
        self._seen, self._position = seen, position

    def _listing(self) -> IndexListing:
        try:
            return acknowledged(self._layout, blobs=self._blobs, log=self._log)
        except StoreUnavailable:
            listing = _listed_by_database(self._layout.database)
            if listing is None:
                raise
            return listing

    def _catch_up(self, seen: Fingerprint) -> None:
        events, position = self._log.events_from(self._position)
        with self.transaction() as transaction:
            for event in _still_so(events):
                self._apply(transaction, event)
        self._seen, self._position = seen, position

    def _apply(self, transaction: Transaction, event: Move | ReferrerRow) -> None:
        match event:
            case ReferrerRow():
                if (found := stored_referrer(event, self._blobs)) is not None:
                    transaction.add_manifest(found)
                    transaction.add_referrer(event)
            case Move(name, None, str(old), None):
                for digest in (*transaction.referrers_of(old), old):
                    transaction.remove_manifest(digest)
            case Move(name, tag, _, str(new)):
                transaction.add_manifest(stored_manifest(new, self._blobs.size(new) or 0, self._blobs))
                transaction.add_adapter(name, new)
                if tag is not None:
                    transaction.set_tag(name, tag, new)
            case Move(name, str(tag), _, None):
                transaction.remove_tag(name, tag)


def _still_so(events: Sequence[Move | ReferrerRow]) -> Iterator[Move | ReferrerRow]:
    """Without what is about an adapter that was collected afterwards: its blobs are gone."""
    collected = {
        event.old: place
        for place, event in enumerate(events)
        if isinstance(event, Move) and event.tag is None and event.new is None
    }
    for place, event in enumerate(events):
        subject = event.subject if isinstance(event, ReferrerRow) else event.new
        if place >= collected.get(subject, -1):
            yield event


def _listed_by_database(database: Path) -> IndexListing | None:
    """What a copy of SQLite's file lists, its log replayed there; None if there is none, or it is damaged."""
    if not database.exists():
        return None
    with TemporaryDirectory(prefix="hotshoe-index-") as directory:
        for path in (database, database.with_name(f"{database.name}-wal")):
            if path.exists():
                shutil.copyfile(path, Path(directory, path.name))
        try:
            index = Index(Path(directory, database.name))
        except IndexDamaged:
            return None
        try:
            snapshot = None if index.is_new else index.snapshot()
        finally:
            index.close()
    return None if snapshot is None else IndexListing(snapshot.entries, snapshot.referrers, None)
