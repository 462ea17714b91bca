"""The index's tables, and everything that is written to them: one transaction at a time, all of it or nothing."""

import sqlite3
from collections.abc import Iterable, Sequence

from hotshoe.registry.store.index_rows import Fingerprint, Lease, ReferrerRow, StoredManifest

SCHEMA_VERSION = 3

_REFERRERS = (
    "CREATE TABLE referrers (sequence INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, subject TEXT NOT NULL, "
    "type TEXT NOT NULL)",
    "CREATE INDEX referrers_by_subject ON referrers (subject)",
)
_LEASES = (
    "CREATE TABLE leases (holder TEXT NOT NULL, digest TEXT NOT NULL, expires REAL NOT NULL, "
    "PRIMARY KEY (holder, digest)) WITHOUT ROWID",
    # A name may have thousands of tags, and a listing asks for those of one digest.
    "CREATE INDEX tags_by_target ON tags (name, digest)",
    "CREATE INDEX uses_by_manifest ON uses (manifest)",
)
_TABLES = (
    # A manifest whose bytes were lost keeps its row, with no document, so that its names still say so.
    "CREATE TABLE manifests (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, kind TEXT NOT NULL, document BLOB)",
    "CREATE TABLE uses (blob TEXT NOT NULL, manifest TEXT NOT NULL, PRIMARY KEY (blob, manifest)) WITHOUT ROWID",
    # `sequence` is the order of publication.
    "CREATE TABLE adapters (sequence INTEGER PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, "
    "UNIQUE (name, digest))",
    "CREATE INDEX adapters_by_digest ON adapters (digest)",
    "CREATE TABLE tags (name TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (name, tag)) "
    "WITHOUT ROWID",
    "CREATE TABLE verified (digest TEXT PRIMARY KEY, inode INTEGER NOT NULL, size INTEGER NOT NULL, "
    "mtime_ns INTEGER NOT NULL) WITHOUT ROWID",
    # Lines that tags.log may still lack.
    "CREATE TABLE moves (id INTEGER PRIMARY KEY, line TEXT NOT NULL)",
    *_REFERRERS,
    *_LEASES,
)
# What an index of each version lacks of the next.
UPGRADES = {1: _REFERRERS, 2: _LEASES}


class Transaction:
    """The writes of one transaction; made by `Index.transaction`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.attached: list[ReferrerRow] = []  # what the log must hear of, beside the moves

    def create_tables(self, tables: Sequence[str] = _TABLES) -> None:
        """Marks the index as filled and of this version, once the transaction commits."""
        for table in tables:
            self._connection.execute(table)
        self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def add_manifest(self, manifest: StoredManifest) -> None:
        """Adds a manifest, or gives a lost one its document back."""
        self._connection.execute(
            "INSERT INTO manifests VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE "
            "SET size = excluded.size, kind = excluded.kind, document = excluded.document WHERE document IS NULL",
            (manifest.digest, manifest.size_bytes, manifest.kind, manifest.document),
        )
        uses = [(blob, manifest.digest) for blob in manifest.blobs]
        self._connection.executemany("INSERT OR IGNORE INTO uses VALUES (?, ?)", uses)

    def add_adapter(self, name: str, digest: str) -> bool:
        """Whether that digest is new under that name."""
        cursor = self._connection.execute(
            "INSERT INTO adapters (name, digest) VALUES (?, ?) ON CONFLICT DO NOTHING", (name, digest)
        )
        return cursor.rowcount == 1

    def add_referrer(self, row: ReferrerRow) -> None:
        """Makes a referrer the latest of its subject."""
        self._connection.execute("DELETE FROM referrers WHERE digest = ?", (row.digest,))
        values = (row.digest, row.subject, row.artifact_type)
        self._connection.execute("INSERT INTO referrers (digest, subject, type) VALUES (?, ?, ?)", values)
        self.attached.append(row)

    def has_manifest(self, digest: str) -> bool:
        return self._connection.execute("SELECT 1 FROM manifests WHERE digest = ?", (digest,)).fetchone() is not None

    def remove_manifest(self, digest: str) -> None:
        """Forgets an adapter under all its names, or a referrer. Nothing may name it any more."""
        for table, column in (("adapters", "digest"), ("referrers", "digest"), ("uses", "manifest")):
            self._connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (digest,))
        self._connection.execute("DELETE FROM manifests WHERE digest = ?", (digest,))

    def referrers_of(self, subject: str) -> list[str]:
        """The digests of the documents about an adapter."""
        sql = "SELECT digest FROM referrers WHERE subject = ?"
        return [row[0] for row in self._connection.execute(sql, (subject,))]

    def forget_verified(self, digests: Iterable[str]) -> None:
        """Drops what is remembered of files that may go."""
        self._connection.executemany("DELETE FROM verified WHERE digest = ?", [(digest,) for digest in digests])

    def leases(self, *, after: float) -> list[Lease]:
        """Those that hold longer than until then."""
        sql = "SELECT holder, digest, expires FROM leases WHERE expires > ? ORDER BY expires, holder, digest"
        return [Lease(*row) for row in self._connection.execute(sql, (after,))]

    def add_leases(self, leases: Iterable[Lease]) -> None:
        """Adds those of adapters that are here."""
        sql = "INSERT INTO leases SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM adapters WHERE digest = ?2)"
        self._connection.executemany(sql, leases)

    def forget_leases(self, now: float) -> None:
        """Drops the leases that have expired."""
        self._connection.execute("DELETE FROM leases WHERE expires <= ?", (now,))

    def tag_digest(self, name: str, tag: str) -> str | None:
        """What a tag points at; None if there is no such tag."""
        row = self._connection.execute("SELECT digest FROM tags WHERE name = ? AND tag = ?", (name, tag)).fetchone()
        return None if row is None else str(row[0])

    def has_adapter(self, name: str, digest: str) -> bool:
        """Whether a name has an adapter of that digest."""
        sql = "SELECT 1 FROM adapters WHERE name = ? AND digest = ?"
        return self._connection.execute(sql, (name, digest)).fetchone() is not None

    def set_tag(self, name: str, tag: str, digest: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", (name, tag, digest))

    def remove_tag(self, name: str, tag: str) -> None:
        self._connection.execute("DELETE FROM tags WHERE name = ? AND tag = ?", (name, tag))

    def remember_verified(self, fingerprints: Iterable[tuple[str, Fingerprint]]) -> None:
        """Keeps what blobs' files were like when their bytes were verified."""
        rows = [(digest, *fingerprint) for digest, fingerprint in fingerprints]
        self._connection.executemany("INSERT OR REPLACE INTO verified VALUES (?, ?, ?, ?)", rows)

    def forget_moves(self, up_to: int) -> None:
        """Drops the lines that the log has."""
        self._connection.execute("DELETE FROM moves WHERE id <= ?", (up_to,))

    def next_move(self, logged: int) -> int:
        """The next free log id, above every id in the log (`logged`) and here."""
        last = self._connection.execute("SELECT max(id) FROM moves").fetchone()[0]
        return max(logged, last or 0) + 1

    def add_move(self, move_id: int, line: str) -> None:
        self._connection.execute("INSERT INTO moves VALUES (?, ?)", (move_id, line))
