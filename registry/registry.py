"""The adapter registry on a local disk: publish, resolve, tag and list. Knows nothing of gRPC or of requests.

A publication becomes visible and durable in this order: blobs, their directory, the manifest, the directory again,
the index's transaction, tags.log, and index.json if that is small; only then is it acknowledged. Collecting garbage is
the same backwards.
"""

import errno
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hotshoe.registry.digest import check_digest
from hotshoe.registry.errors import StoreUnavailable
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.publisher import StoreLimits, StorePublisher
from hotshoe.registry.reader import MAX_PAGE_SIZE
from hotshoe.registry.reference import given_as
from hotshoe.registry.store.commits import Commits
from hotshoe.registry.store.export import Export
from hotshoe.registry.store.followed_index import FollowedIndex
from hotshoe.registry.store.index import Index
from hotshoe.registry.store.layout import Layout, disk
from hotshoe.registry.store.locks import StoreLocks
from hotshoe.registry.store.machine import MachineLock
from hotshoe.registry.store.quotas import Quota
from hotshoe.registry.store.recovery import recover
from hotshoe.registry.store.tag_log import LoggedMove, TagLog
from hotshoe.registry.store.tag_policy import TagPolicy
from hotshoe.registry.store.tags import Tags


@dataclass(frozen=True, slots=True)
class StoreStats:
    """How much a store holds; `uploads` are under way or interrupted."""

    adapters: int
    tags: int
    blobs: int
    blob_bytes: int
    uploads: int


class Registry(StorePublisher):
    """An open store; `close` it, or leave its `with` block. Every method is synchronous and may be called from any
    thread; several processes may have one store open. Wants a local disk: the locks and SQLite's log are not safe on
    network file systems.

    A store that cannot be written, on a read-only mount or in somebody else's directory, is only read, as `read_only`
    says; it follows what others commit to it, from any machine, and every write raises StoreReadOnly.

    Args:
        root: the store's directory; made if it is missing, recovered if it was left in the middle of something.
        max_blob_bytes: larger uploads are refused.
        upload_ttl_seconds: uploads that nobody wrote to for so long are removed.
        mutable_tags: let version tags (v1, 1.2.3) move as others do.
        quotas: what may be published under names that begin so, or "*" in all.
        reserve_bytes: room that is kept aside, so that garbage can be collected on a full disk.

    Raises:
        StoreUnavailable: the directory is something else, damaged beyond recovery, or not readable.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_blob_bytes: int = 512 << 20,
        upload_ttl_seconds: float = 24 * 3600.0,
        mutable_tags: bool = False,
        quotas: Mapping[str, Quota] | None = None,
        reserve_bytes: int = 0,
    ) -> None:
        layout = Layout(root.absolute())
        locks, log = StoreLocks(layout.root, layout.check_writable), TagLog(layout)
        self._machine: MachineLock | None = None
        try:
            with disk("cannot be opened"):
                index = self._open(layout, locks, log)
        except StoreUnavailable as error:
            raise StoreUnavailable(f"registry {root}: {error}") from error
        self._export = Export(layout, locks=locks, index=index, log=log)
        commits = Commits(layout, locks=locks, index=index, log=log, export=self._export)
        policy = TagPolicy(mutable=mutable_tags)
        limits = StoreLimits(max_blob_bytes, upload_ttl_seconds, quotas or {}, reserve_bytes)
        super().__init__(layout, locks=locks, index=index, commits=commits, log=log, policy=policy, limits=limits)
        self._tags = Tags(locks=locks, index=index, commits=commits, log=log, policy=policy)
        if not layout.read_only:
            with disk("removing old uploads"):
                self._parts.reap()

    def _open(self, layout: Layout, locks: StoreLocks, log: TagLog) -> Index:
        layout.create()
        if not layout.read_only:
            try:
                return self._recover(layout, locks, log)
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                layout.read_only = "its disk takes no writes any more"  # though it is mounted as one that does
        return FollowedIndex(layout, log)

    def _recover(self, layout: Layout, locks: StoreLocks, log: TagLog) -> Index:
        self._machine = MachineLock(layout.root)
        try:
            return recover(layout, locks=locks, log=log)
        except BaseException:
            self._machine.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the index. Uploads that were interrupted stay for a later `open_upload`."""
        self._healing.close()
        with suppress(StoreUnavailable), disk("exporting index.json"):  # else the next open does it
            self._export.close()
        self._leases.close()
        self._index.close()
        if self._machine is not None:
            self._machine.release()

    # Tags.

    def update_tag(self, name: str, tag: str, digest: str, expected_digest: str) -> AdapterRecord:
        """Moves a tag to `digest` if it points at `expected_digest` ("": if there is no such tag).

        Raises:
            InvalidReference: a name, tag or digest is malformed.
            AdapterNotFound: `name` has no adapter of that digest.
            TagMoved: the tag points elsewhere.
            TagImmutable: the tag is a version, and is taken.
        """
        with given_as("expected_digest"):
            expected = check_digest(expected_digest) if expected_digest else None
        with disk("moving a tag"):
            row = self._tags.move(name, tag, digest, expected)
        return self._record(row)

    def delete_tag(self, name: str, tag: str) -> None:
        """Removes a tag; what it pointed at is still found by digest, until it is collected.

        Raises:
            InvalidReference: the name or the tag is malformed.
            AdapterNotFound: there is no such tag.
        """
        with disk("deleting a tag"):
            self._tags.remove(name, tag)

    def roll_back_tag(self, name: str, tag: str) -> tuple[AdapterRecord, str | None]:
        """Moves a tag back to where it pointed before its latest move, or its removal; doing it again undoes that.

        Returns:
            The adapter that it points at now, and the digest that it pointed at until now.

        Raises:
            InvalidReference: the name or the tag is malformed.
            AdapterNotFound: there never was such a tag, it never moved, or what it pointed at has been collected.
            TagImmutable: it is a version.
            TagMoved: somebody moved it meanwhile.
        """
        with disk("rolling back a tag"):
            row, previous = self._tags.roll_back(name, tag)
        return self._record(row), previous

    def tag_history(self, name: str, tag: str = "", *, limit: int = MAX_PAGE_SIZE) -> Sequence[LoggedMove]:
        """What became of a name's tags, or of one, the latest first: moves, publications, and what was collected.

        Raises:
            InvalidReference: the name or the tag is malformed.
        """
        with disk("reading the log"):
            return self._tags.history(name, tag, limit=limit)

    def stats(self) -> StoreStats:
        """Counts; takes time in proportion to the number of blobs."""
        with disk("counting"):
            adapters, tags = self._index.counts()
            sizes = [size for _, size in self._blobs.scan()]
            return StoreStats(adapters, tags, len(sizes), sum(sizes), self._parts.count())
