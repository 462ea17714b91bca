"""Opening a store after whatever happened to it: what was acknowledged is there, what was torn is gone.

The database wins over index.json; a database that is lost or damaged is rebuilt from index.json and what tags.log has
since, or, should index.json be torn too, from tags.log alone; manifests and everything that follows from them come
from the blobs, leases from leases.log.

Not only a damaged database is rebuilt, but also one that cannot be believed: it is older than tags.log, so somebody has
put an old one back; or it was copied here, maybe while it was written to, and SQLite notices not all of that.
"""

import logging
import sqlite3
import time
from collections.abc import Collection, Iterable

from hotshoe.registry.digest import digest_of
from hotshoe.registry.errors import BlobCorrupt, BlobNotFound, StoreUnavailable
from hotshoe.registry.manifest import NotAnAdapter, read_manifest
from hotshoe.registry.referrer import NotAReferrer, Referrer, read_referrer
from hotshoe.registry.store.blobs import BlobStore
from hotshoe.registry.store.export import index_document
from hotshoe.registry.store.index import Index, IndexDamaged
from hotshoe.registry.store.index_json import IndexListing, read_index, read_log_id
from hotshoe.registry.store.index_rows import IndexEntry, ReferrerRow, StoredManifest
from hotshoe.registry.store.index_transaction import Transaction
from hotshoe.registry.store.layout import Layout
from hotshoe.registry.store.lease_log import LeaseLog
from hotshoe.registry.store.locks import StoreLocks
from hotshoe.registry.store.quarantine import Quarantine
from hotshoe.registry.store.reserve import Reserve, is_full
from hotshoe.registry.store.tag_log import Move, TagLog

MAX_MANIFEST_BYTES = 4 << 20

logger = logging.getLogger(__name__)


def recover(layout: Layout, *, locks: StoreLocks, log: TagLog) -> Index:
    """Opens the index and makes it, the logs and index.json agree; on a full disk in the room that is kept aside.

    Raises:
        StoreUnavailable: there are blobs, and nothing that says what they are called.
        OSError, sqlite3.Error: the disk refused.
    """
    try:
        return _recover(layout, locks=locks, log=log)
    except (OSError, sqlite3.Error) as error:
        if not (is_full(error, layout.root) and Reserve(layout.root, 0).give()):
            raise
        logger.warning("the disk is full: opening the store in the room that was kept aside; collect garbage")
        return _recover(layout, locks=locks, log=log)


def _recover(layout: Layout, *, locks: StoreLocks, log: TagLog) -> Index:
    lease_log = LeaseLog(layout)
    with locks.collecting(), locks.committing():
        layout.clear_stage()
        index = _open_index(layout, log)
        try:
            if index.is_new:
                _rebuild(index, layout=layout, log=log, lease_log=lease_log)
            log.append(index.moves(0))
            with index.transaction() as transaction:  # which nobody leases meanwhile
                now = time.time()
                lease_log.agree(transaction.leases(after=now), after=now)
            layout.confirm_index(index_document(index, log)[1])
            if index.place != layout.place():
                index.note_place(layout.place())
        except BaseException:
            index.close()
            raise
    return index


def _open_index(layout: Layout, log: TagLog) -> Index:
    try:
        index = Index(layout.database)
    except IndexDamaged as damage:
        logger.error("the index is damaged (%s) and is rebuilt", damage)
    else:
        try:
            doubt = _doubt(index, layout=layout, log=log)
        except BaseException:
            index.close()
            raise
        if not doubt:
            return index
        index.close()
        logger.warning("the index %s, and is rebuilt", doubt)
    for suffix in ("", "-wal", "-shm"):
        damaged = layout.database.with_name(layout.database.name + suffix)
        if damaged.exists():
            Quarantine(layout).take(damaged)
    return Index(layout.database)


def _doubt(index: Index, *, layout: Layout, log: TagLog) -> str:
    """Why the index is not to be believed, where it can be rebuilt from what is; "" if it is."""
    if index.is_new:
        return ""
    last, logged = index.last_move(), log.last_id()
    if last is not None and last < logged:
        return "is older than tags.log"
    if index.place in (0, layout.place()):
        return ""
    exported = layout.read_index()
    is_complete = exported is not None and read_log_id(exported) >= 0 and logged > 0 and layout.lease_log.exists()
    return "was copied here" if is_complete else ""  # else not all came with it, and there is nothing better


def _rebuild(index: Index, *, layout: Layout, log: TagLog, lease_log: LeaseLog) -> None:
    blobs = BlobStore(layout, index)
    listing = acknowledged(layout, blobs=blobs, log=log)
    with index.transaction() as transaction:
        fill(transaction, listing, blobs)
        if (last := log.last_line())[0]:
            transaction.add_move(*last)  # so that it is known how far the index has come
        transaction.add_leases(lease_log.leases(after=time.time()).values())
    if listing.entries:
        logger.warning("the index was rebuilt: %d adapters", len({entry.digest for entry in listing.entries}))


def fill(transaction: Transaction, listing: IndexListing, blobs: BlobStore) -> None:
    """Gives an empty index its tables, and what is listed, with what the blobs say of it."""
    transaction.create_tables()
    for digest, size in {entry.digest: entry.size_bytes for entry in listing.entries}.items():
        transaction.add_manifest(stored_manifest(digest, size, blobs))
    for entry in listing.entries:
        transaction.add_adapter(entry.name, entry.digest)
        if entry.tag is not None:
            transaction.set_tag(entry.name, entry.tag, entry.digest)
    for row in listing.referrers:
        if (found := stored_referrer(row, blobs)) is not None:
            transaction.add_manifest(found)
            transaction.add_referrer(row)


def acknowledged(layout: Layout, *, blobs: BlobStore, log: TagLog) -> IndexListing:
    """What index.json and tags.log say was acknowledged.

    Raises:
        StoreUnavailable: there are blobs, and neither says what they are called.
        OSError: the disk refused.
    """
    exported = layout.read_index()
    listing = read_index(exported) if exported is not None else None
    if listing is not None:
        if listing.log_id is None:
            return listing
        return _replayed(listing, log.events(after=listing.log_id), blobs)
    if exported is not None:
        logger.error("index.json is torn or not ours; reading tags.log instead")
    listing = _replayed(IndexListing([], [], None), log.events(after=0), blobs)
    if not listing.entries and next(blobs.scan(), None) is not None:
        raise StoreUnavailable("there are blobs, but neither .db nor index.json nor tags.log says what they are")
    # The log of an older store tells no referrers: then their order is lost.
    listed = {row.digest for row in listing.referrers}
    found = _found_referrers(blobs, {entry.digest for entry in listing.entries})
    return listing._replace(referrers=[*(row for row in found if row.digest not in listed), *listing.referrers])


def _replayed(listing: IndexListing, events: Iterable[Move | ReferrerRow], blobs: BlobStore) -> IndexListing:
    """What is listed after more has happened."""
    published: dict[tuple[str, str], set[str]] = {}  # in order of publication
    tagged: dict[tuple[str, str], str] = {}
    sizes = {entry.digest: entry.size_bytes for entry in listing.entries}
    referrers = {row.digest: row for row in listing.referrers}
    for entry in listing.entries:
        published.setdefault((entry.name, entry.digest), set()).update([entry.tag] if entry.tag else [])
        if entry.tag:
            tagged[entry.name, entry.tag] = entry.digest
    for event in events:
        if isinstance(event, ReferrerRow):
            referrers.pop(event.digest, None)
            referrers[event.digest] = event
        elif event.tag is not None:
            if (old := tagged.pop((event.name, event.tag), None)) is not None:
                published.get((event.name, old), set()).discard(event.tag)
            if event.new is not None:
                tagged[event.name, event.tag] = event.new
                published.setdefault((event.name, event.new), set()).add(event.tag)
        elif event.new is not None:
            published.setdefault((event.name, event.new), set())
        elif event.old is not None:
            published.pop((event.name, event.old), None)
            if all(digest != event.old for _, digest in published):
                referrers = {key: row for key, row in referrers.items() if row.subject != event.old}
    entries: list[IndexEntry] = []
    for (name, digest), tags in published.items():
        size = sizes.get(digest) or blobs.size(digest) or 0
        shown: list[str | None] = [*sorted(tags)] or [None]
        entries.extend(IndexEntry(name, tag, digest, size) for tag in shown)
    return IndexListing(entries, list(referrers.values()), listing.log_id)


def stored_manifest(digest: str, size_bytes: int, blobs: BlobStore) -> StoredManifest:
    """An adapter's manifest as the index keeps it, without its document if that is lost."""
    try:
        document = _manifest_bytes(digest, blobs)
        content = read_manifest(document)
    except (BlobNotFound, BlobCorrupt, NotAnAdapter) as error:
        # Its names stay, so that who asks for it is told that it was lost and not that it never was.
        logger.error("a manifest is lost: %s", error)
        return StoredManifest(digest, size_bytes, "", None, ())
    return StoredManifest(digest, len(document), content.kind, document, content.blobs)


def _manifest_bytes(digest: str, blobs: BlobStore) -> bytes:
    with blobs.open(digest) as file:
        document = file.read(MAX_MANIFEST_BYTES + 1)
    if digest_of(document) != digest:
        raise BlobCorrupt(f"manifest {digest} has other bytes")
    return document


def _found_referrers(blobs: BlobStore, subjects: Collection[str]) -> list[ReferrerRow]:
    """Where nothing lists the referrers any more: those among all blobs. Their order is lost."""
    rows = []
    for digest, size in sorted(blobs.scan()):
        if size <= MAX_MANIFEST_BYTES and (referrer := _read_referrer(digest, blobs)) is not None:
            if referrer.subject in subjects:
                rows.append(ReferrerRow(digest, referrer.subject, referrer.artifact_type, size))
    return rows


def stored_referrer(row: ReferrerRow, blobs: BlobStore) -> StoredManifest | None:
    """A document's manifest as the index keeps it; None if it is lost."""
    referrer = _read_referrer(row.digest, blobs)
    if referrer is None or referrer.subject != row.subject:
        logger.error("a referrer of %s is lost: %s", row.subject, row.digest)
        return None
    return StoredManifest(
        row.digest, row.size_bytes, row.artifact_type, _manifest_bytes(row.digest, blobs), referrer.blobs
    )


def _read_referrer(digest: str, blobs: BlobStore) -> Referrer | None:
    try:
        return read_referrer(_manifest_bytes(digest, blobs))
    except (BlobNotFound, BlobCorrupt, NotAReferrer):
        return None
