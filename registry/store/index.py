"""The SQLite index of a store: names, tags, and what reaches which blob. Knows nothing of files or of manifests' text.

It is the working truth (write-ahead log, full sync); index.json is its export. Reads come from any thread; writes
come under `StoreLocks.committing`.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from hotshoe.registry.errors import StoreUnavailable
from hotshoe.registry.store.index_rows import AdapterRow, Fingerprint, IndexEntry, ReferrerRow, Snapshot
from hotshoe.registry.store.index_transaction import SCHEMA_VERSION, UPGRADES, Transaction

_BUSY_TIMEOUT_SECONDS = 30.0

_ADAPTERS = """
    SELECT a.sequence, a.name, a.digest,
           (SELECT group_concat(t.tag, ' ') FROM tags t WHERE t.name = a.name AND t.digest = a.digest)
    FROM adapters a
"""
# In order of publication, then of tags.
_ENTRIES = """
    SELECT a.name, t.tag, a.digest, m.size
    FROM adapters a JOIN manifests m ON m.digest = a.digest LEFT JOIN tags t ON t.name = a.name AND t.digest = a.digest
    ORDER BY a.sequence, t.tag
"""
_LISTED_REFERRERS = (
    "SELECT r.digest, r.subject, r.type, m.size FROM referrers r JOIN manifests m ON m.digest = r.digest"
)


class IndexDamaged(Exception):
    """The database file is not one, or SQLite finds it malformed: rebuild it."""


class Index:
    """An open index. `is_new` is true until it has been filled once.

    Raises:
        IndexDamaged: the file is no sound database.
        StoreUnavailable: another version of hotshoe wrote it.
        sqlite3.Error, OSError: the disk refused.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex: AbstractContextManager[Any] = threading.Lock()  # of the writing connection
        self._read_mutex: AbstractContextManager[Any] = threading.Lock()
        if not path.exists():
            for suffix in ("-wal", "-shm"):  # the log of a database that is gone must not be replayed
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        self._writer = connect(path)
        try:
            self._prepare()
            self._reader = connect(path)
        except sqlite3.DatabaseError as error:
            self._writer.close()
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise IndexDamaged(str(error)) from error
            raise
        except BaseException:
            self._writer.close()
            raise
        self._identity = file_identity(path)

    def _prepare(self) -> None:
        [mode] = self._writer.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":  # SQLite says no more than this when the disk refuses
            raise sqlite3.OperationalError("the index could not be given a write-ahead log")
        self._writer.execute("PRAGMA synchronous = FULL")
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, *UPGRADES, SCHEMA_VERSION):
            raise StoreUnavailable(f"the index has version {version}; this hotshoe reads version {SCHEMA_VERSION}")
        self.is_new = version == 0
        problem = self._writer.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise IndexDamaged(problem)
        if version in UPGRADES:
            added = [table for since, tables in UPGRADES.items() if since >= version for table in tables]
            with self.transaction() as transaction:
                transaction.create_tables(added)

    def close(self) -> None:
        with self._mutex, self._read_mutex:
            self._reader.close()
            self._writer.close()

    @property
    def place(self) -> int:
        """Where it was when it was last opened, as `Layout.place` has it; 0 if that is not known."""
        return int(self._read("PRAGMA application_id")[0][0])

    def note_place(self, place: int) -> None:
        """Remembers where it is."""
        with self._mutex:
            self._writer.execute(f"PRAGMA application_id = {place}")

    def check_identity(self) -> None:
        """Raises StoreUnavailable if somebody replaced the database file beneath this process."""
        if file_identity(self._path) != self._identity:
            raise StoreUnavailable("the index was removed or replaced while this server ran; restart it")

    # Reading.

    def by_tag(self, name: str, tag: str) -> AdapterRow | None:
        """What a tag points at; None if there is no such tag."""
        condition = "WHERE a.name = ?1 AND a.digest = (SELECT digest FROM tags WHERE name = ?1 AND tag = ?2)"
        return next(iter(self._adapters(condition, (name, tag))), None)

    def by_digest(self, name: str, digest: str) -> AdapterRow | None:
        """An adapter under one name; None if the name has none of that digest."""
        return next(iter(self._adapters("WHERE a.name = ? AND a.digest = ?", (name, digest))), None)

    def latest_of(self, digest: str) -> AdapterRow | None:
        """A digest under the name that it was published by last, of those with a tag if there is one."""
        order = "EXISTS (SELECT 1 FROM tags t WHERE t.name = a.name AND t.digest = a.digest) DESC, a.sequence DESC"
        return next(iter(self._adapters(f"WHERE a.digest = ? ORDER BY {order} LIMIT 1", (digest,))), None)

    def names_of(self, digest: str) -> list[str]:
        """Every name that a digest was published under."""
        return [row[0] for row in self._read("SELECT name FROM adapters WHERE digest = ? ORDER BY name", (digest,))]

    def page(self, *, before: int | None, limit: int, name_contains: str, kind: str) -> list[AdapterRow]:
        """At most `limit` adapters, newest first, published before sequence `before`; none whose manifest is lost."""
        condition = "WHERE (?1 IS NULL OR a.sequence < ?1) AND (?2 = '' OR instr(a.name, ?2)) AND EXISTS "
        condition += "(SELECT 1 FROM manifests m WHERE m.digest = a.digest AND document NOTNULL AND ?3 IN ('', kind))"
        return self._adapters(f"{condition} ORDER BY a.sequence DESC LIMIT ?4", (before, name_contains, kind, limit))

    def _adapters(self, condition: str, parameters: Sequence[object]) -> list[AdapterRow]:
        rows = self._read(_ADAPTERS + condition, parameters)
        return [AdapterRow(seq, name, digest, tuple(sorted((tags or "").split()))) for seq, name, digest, tags in rows]

    def manifest_document(self, digest: str) -> bytes | None:
        """The manifest's bytes; None if the index does not have them."""
        rows = self._read("SELECT document FROM manifests WHERE digest = ?", (digest,))
        return rows[0][0] if rows else None

    def has_manifest(self, digest: str) -> bool:
        return bool(self._read("SELECT 1 FROM manifests WHERE digest = ?", (digest,)))

    def is_used(self, blob: str) -> bool:
        """Whether a blob is a manifest, or one that a manifest names."""
        return self.has_manifest(blob) or bool(self._read("SELECT 1 FROM uses WHERE blob = ? LIMIT 1", (blob,)))

    def used_blobs(self) -> set[str]:
        """The digests of all manifests, and of what they name."""
        rows = self._read("SELECT digest FROM manifests UNION SELECT blob FROM uses")
        return {row[0] for row in rows}

    def manifests(self) -> set[str]:
        """The digests of all manifests, the adapters' and the referrers'."""
        return {row[0] for row in self._read("SELECT digest FROM manifests")}

    def has_lost_manifests(self) -> bool:
        """Whether the bytes of one are lost, so that nobody knows which blobs it names."""
        return bool(self._read("SELECT 1 FROM manifests WHERE document IS NULL LIMIT 1"))

    def rooted(self, now: float) -> set[str]:
        """The manifests that a tag names, or a lease that holds at `now`, in seconds since the epoch."""
        sql = "SELECT digest FROM tags UNION SELECT digest FROM leases WHERE expires > ?"
        return {row[0] for row in self._read(sql, (now,))}

    def manifests_that_say(self, text: str) -> list[bytes]:
        """The manifests' documents in which `text` occurs."""
        sql = "SELECT document FROM manifests WHERE instr(document, ?)"  # of a lost one: null, which is not true
        return [row[0] for row in self._read(sql, (text.encode(),))]

    def named_like(self, beginning: str) -> list[tuple[str, str]]:
        """Name and digest of every adapter whose name begins so."""
        return self._read("SELECT name, digest FROM adapters WHERE substr(name, 1, ?) = ?", (len(beginning), beginning))

    def blobs_of(self, manifest: str) -> list[str]:
        """The blobs that a manifest names."""
        return [row[0] for row in self._read("SELECT blob FROM uses WHERE manifest = ?", (manifest,))]

    def documents_that_use(self, blob: str) -> list[bytes]:
        """The manifests that name a blob, those that are not lost."""
        sql = "SELECT m.document FROM uses u JOIN manifests m ON m.digest = u.manifest WHERE u.blob = ?"
        return [row[0] for row in self._read(f"{sql} AND m.document NOTNULL", (blob,))]

    def names_that_use(self, blob: str) -> list[str]:
        """The names of the adapters whose manifests, or documents, name a blob; sorted."""
        users = "SELECT manifest FROM uses WHERE blob = ?1 UNION "
        users += "SELECT r.subject FROM uses u JOIN referrers r ON r.digest = u.manifest WHERE u.blob = ?1"
        sql = f"SELECT DISTINCT name FROM adapters WHERE digest IN ({users}) ORDER BY name"
        return [row[0] for row in self._read(sql, (blob,))]

    def snapshot(self) -> Snapshot:
        """What index.json lists, all of one moment, by a connection of its own: others read and write meanwhile."""
        connection = connect(self._path)
        try:
            connection.execute("BEGIN")
            entries = connection.execute(_ENTRIES).fetchall()
            referrers = connection.execute(f"{_LISTED_REFERRERS} ORDER BY r.sequence").fetchall()
            [last] = connection.execute("SELECT max(id) FROM moves").fetchone()
        finally:
            connection.close()
        return Snapshot([IndexEntry(*row) for row in entries], [ReferrerRow(*row) for row in referrers], last)

    def referrers(self, *, subject: str = "", artifact_type: str = "") -> list[ReferrerRow]:
        """The documents about an adapter, or about any; of one type, or of all; the oldest first."""
        rows = self._read(
            f"{_LISTED_REFERRERS} WHERE ?1 IN ('', r.subject) AND ?2 IN ('', r.type) ORDER BY r.sequence",
            (subject, artifact_type),
        )
        return [ReferrerRow(*row) for row in rows]

    def naming(self, digest: str) -> list[AdapterRow]:
        """Adapters in whose manifests a digest stands, each under the name that it had first."""
        condition = "WHERE a.digest IN (SELECT digest FROM manifests WHERE instr(document, ?1) AND digest != ?2) "
        return self._adapters(f"{condition} GROUP BY a.digest ORDER BY a.sequence", (digest.encode(), digest))

    def names(self) -> list[str]:
        """Of adapters, sorted."""
        return [row[0] for row in self._read("SELECT DISTINCT name FROM adapters ORDER BY name")]

    def has_name(self, name: str) -> bool:
        return bool(self._read("SELECT 1 FROM adapters WHERE name = ? LIMIT 1", (name,)))

    def tags_of(self, name: str) -> dict[str, str]:
        return dict(self._read("SELECT tag, digest FROM tags WHERE name = ? ORDER BY tag", (name,)))

    def is_manifest_of(self, name: str, digest: str) -> bool:
        """Whether a manifest is an adapter's of that name, or a document's about one."""
        condition = "digest = ?2 OR digest = (SELECT subject FROM referrers WHERE digest = ?2)"
        return bool(self._read(f"SELECT 1 FROM adapters WHERE name = ?1 AND ({condition})", (name, digest)))

    def counts(self) -> tuple[int, int]:
        """How many adapters and how many tags there are."""
        (row,) = self._read("SELECT (SELECT count(*) FROM adapters), (SELECT count(*) FROM tags)")
        return row[0], row[1]

    def moves(self, after: int) -> list[tuple[int, str]]:
        """Log lines with an id above `after`, in order."""
        return self._read("SELECT id, line FROM moves WHERE id > ? ORDER BY id", (after,))

    def last_move(self) -> int | None:
        """The id of the latest entry that it made in the log; None if it has made none since it was rebuilt."""
        return self._read("SELECT max(id) FROM moves")[0][0]  # type: ignore[no-any-return]

    def fingerprint(self, digest: str) -> Fingerprint | None:
        """What a blob's file was like when its bytes were last verified; None if that is not known."""
        rows = self._read("SELECT inode, size, mtime_ns FROM verified WHERE digest = ?", (digest,))
        return Fingerprint(*rows[0]) if rows else None

    def _read(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        with self._read_mutex:
            return self._reader.execute(sql, parameters).fetchall()

    # Writing.

    def remember_verified(self, fingerprints: Iterable[tuple[str, Fingerprint]]) -> None:
        """Keeps verifications across restarts, in a transaction of its own."""
        with self.transaction() as transaction:
            transaction.remember_verified(fingerprints)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """All or nothing, and durable once the block is left."""
        with self._mutex:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield Transaction(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise


def is_io_error(error: sqlite3.Error) -> bool:
    """Whether SQLite was refused a read, a write or a sync, and not just room or its turn."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR


def connect(path: Path) -> sqlite3.Connection:
    """A connection that several threads may use in turns, and that begins no transaction by itself."""
    return sqlite3.connect(path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)


def file_identity(path: Path) -> tuple[int, int] | None:
    """Which file lies there; None if none does."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
