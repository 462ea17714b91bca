"""What the index holds, row by row. Knows nothing of SQL."""

from typing import NamedTuple


class AdapterRow(NamedTuple):
    """One digest under one name; `tags` are sorted."""

    sequence: int
    name: str
    digest: str
    tags: tuple[str, ...]


class IndexEntry(NamedTuple):
    """One line of the export: a tag, or an adapter without any (`tag` None)."""

    name: str
    tag: str | None
    digest: str
    size_bytes: int


class ReferrerRow(NamedTuple):
    """A document about an adapter, `subject`; both are digests of manifests."""

    digest: str
    subject: str
    artifact_type: str
    size_bytes: int  # of the manifest


class Lease(NamedTuple):
    """Who uses an adapter, and until when, in seconds since the epoch."""

    holder: str
    digest: str
    expires: float


class Snapshot(NamedTuple):
    """What index.json lists. `last_move` is the id of the latest entry of the log; None if none was made since the
    index was rebuilt.
    """

    entries: list[IndexEntry]
    referrers: list[ReferrerRow]
    last_move: int | None


class Fingerprint(NamedTuple):
    """What a file looked like when its bytes were last verified."""

    inode: int
    size_bytes: int
    mtime_ns: int


class StoredManifest(NamedTuple):
    """A manifest as the index keeps it; `document` is None if its bytes are lost."""

    digest: str
    size_bytes: int
    kind: str
    document: bytes | None
    blobs: tuple[str, ...]  # the config's and the layers' digests
