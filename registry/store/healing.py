"""Putting back what is damaged or lost, from where it is still whole: the index, for manifests; quarantine, if it was
only read wrongly; or another registry.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from hotshoe.registry.digest import digest_of
from hotshoe.registry.errors import BlobCorrupt, BlobNotFound
from hotshoe.registry.manifest import FileDescriptor, blob_descriptors
from hotshoe.registry.referrer import EMPTY_CONFIG
from hotshoe.registry.store.blobs import BlobStore
from hotshoe.registry.store.index import Index
from hotshoe.registry.store.layout import Layout, disk
from hotshoe.registry.store.locks import StoreLocks
from hotshoe.registry.store.quarantine import Quarantine

logger = logging.getLogger(__name__)

HEALER_THREADS = 4  # blobs that are healed at a time for those who do not wait for it
_given_up: ContextVar[Mapping[str, BlobCorrupt] | None] = ContextVar("given_up", default=None)


class BlobBeingHealed(Exception):
    """A blob is damaged or lost, and being healed; `healed` says whether it is whole again, or raises why not."""

    def __init__(self, digest: str, damage: BlobCorrupt, healed: "Future[bool]") -> None:
        super().__init__(f"blob {digest} is being healed")
        self.digest = digest
        self.damage = damage.with_traceback(None)
        self.healed = healed


@contextmanager
def healing_elsewhere(given_up: Mapping[str, BlobCorrupt]) -> Iterator[None]:
    """Whoever reads damage within it does not wait, but gets BlobBeingHealed, and is to read again once it is healed.

    What could not be healed is to be in `given_up` then, by digest: it is raised.
    """
    token = _given_up.set(given_up)
    try:
        yield
    finally:
        _given_up.reset(token)


class BlobSource(Protocol):
    """Where blobs can be had again. Any thread; may take as long as it takes to fetch one."""

    def fetch(self, blob: FileDescriptor, names: Sequence[str]) -> bool:
        """Uploads a blob of adapters of these names to the store anew; whether there was one to be had.

        Raises:
            RemoteUnavailable: it may be had another time.
        """
        ...

    def note(self, digest: str, *, healed: bool) -> None:
        """Told of each blob that was found damaged or lost, and whether it is whole again."""
        ...


class Healing:
    """Heals the blobs of one store; `source` is where they are had that nothing here can make again."""

    def __init__(self, layout: Layout, *, locks: StoreLocks, index: Index, blobs: BlobStore) -> None:
        self._layout = layout
        self._locks = locks
        self._index = index
        self._blobs = blobs
        self._quarantine = Quarantine(layout)
        self._turn = threading.Condition()
        self._under_way: set[str] = set()
        self._executor = ThreadPoolExecutor(HEALER_THREADS, "blob-healer")
        self._started: dict[str, Future[bool]] = {}
        self.source: BlobSource | None = None

    def heal_for_reader(self, digest: str, damage: BlobCorrupt) -> None:
        """As `heal`, for somebody who found that damage.

        Raises:
            BlobCorrupt: the damage, if it could not be healed.
            BlobBeingHealed: this is within `healing_elsewhere`.
            RemoteUnavailable, OSError, sqlite3.Error: as `heal`.
        """
        given_up = _given_up.get()
        if given_up is None:
            if not self.heal(digest):
                raise damage
            return
        if digest in given_up:
            raise given_up[digest]
        raise BlobBeingHealed(digest, damage, self._start(digest))

    def heal(self, digest: str) -> bool:
        """Puts back a blob that is in quarantine or lost; whether it is whole again.

        Raises:
            RemoteUnavailable: the source cannot be reached.
            OSError, sqlite3.Error: the disk refused.
        """
        with self._alone(digest):
            if self._is_whole(digest):  # another reader has healed it meanwhile
                return True
            logger.error("blob %s is damaged or lost", digest)
            healed = False
            try:
                if not self._layout.read_only:  # else it is for those who may write
                    healed = self._make_again(digest) or self._release(digest) or self._fetch(digest)
            finally:
                if self.source is not None:
                    self.source.note(digest, healed=healed)
            return healed

    def close(self) -> None:
        """Heals nothing any more, after what it is at."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _start(self, digest: str) -> "Future[bool]":
        """The healing of a blob on a thread of ours, one for all who ask."""
        with self._turn:
            healed = self._started.get(digest)
            if healed is None:
                healed = self._started[digest] = self._executor.submit(self._heal_once, digest)
            return healed

    def _heal_once(self, digest: str) -> bool:
        try:
            with disk("healing a blob"):
                return self.heal(digest)
        finally:
            with self._turn:
                del self._started[digest]

    @contextmanager
    def _alone(self, digest: str) -> Iterator[None]:
        """While it is held, nobody else heals that blob."""
        with self._turn:
            while digest in self._under_way:
                self._turn.wait()
            self._under_way.add(digest)
        try:
            yield
        finally:
            with self._turn:
                self._under_way.remove(digest)
                self._turn.notify_all()

    def _is_whole(self, digest: str) -> bool:
        try:
            self._blobs.verify(digest)
        except (BlobCorrupt, BlobNotFound):
            return False
        return True

    def _make_again(self, digest: str) -> bool:
        for document in (self._index.manifest_document(digest), EMPTY_CONFIG):
            if document is not None and digest_of(document) == digest:
                with self._locks.publishing():
                    self._blobs.put(document)
                    self._layout.sync_blobs()
                return True
        return False

    def _release(self, digest: str) -> bool:
        """Puts back a file from quarantine whose bytes are right after all: they had been read wrongly."""
        for file in self._quarantine.files(digest):
            if self._quarantine.is_sound(file):
                with self._locks.publishing():
                    self._blobs.link(self._quarantine.path(file), digest)
                    self._layout.sync_blobs()
                    self._quarantine.discard(file)
                return True
        return False

    def _fetch(self, digest: str) -> bool:
        if self.source is None:
            return False
        for document in self._index.documents_that_use(digest):
            for blob in blob_descriptors(document):
                if blob.digest == digest:
                    return self.source.fetch(blob, self._index.names_that_use(digest))
        return False
