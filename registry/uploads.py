"""Uploads: bytes on their way to becoming a blob. They may be interrupted and resumed; nothing of them is visible.

.uploads/<hex of the expected digest>.<id>.part    the bytes
.uploads/<hex>.<id>.json                           {"digest", "size_bytes", "committed_bytes"}: synced so far
"""

import fcntl
import hashlib
import json
import os
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hotshoe.registry.blobs import BlobStore
from hotshoe.registry.digest import digest_hex
from hotshoe.registry.errors import InvalidUpload
from hotshoe.registry.layout import Layout, disk
from hotshoe.registry.locks import StoreLocks
from hotshoe.registry.manifest import FileDescriptor

# How much may have to be sent again after a crash; more syncs cost time.
_COMMIT_BYTES = 32 << 20
_BEGIN_BYTES = 1 << 20
_HASH_BYTES = 1 << 20
_REAP_SECONDS = 60.0


class Uploads:
    """The uploads of a store.

    Args:
        max_blob_bytes: larger blobs are refused before the first byte.
        ttl_seconds: an upload that nobody wrote to for so long is removed.
    """

    def __init__(
        self, layout: Layout, *, blobs: BlobStore, locks: StoreLocks, max_blob_bytes: int, ttl_seconds: float
    ) -> None:
        self._layout = layout
        self._blobs = blobs
        self._locks = locks
        self._max_blob_bytes = max_blob_bytes
        self._ttl_seconds = ttl_seconds
        self._next_reap = 0.0
        self._reap_mutex = threading.Lock()

    def open(self, blob: FileDescriptor) -> "Upload":
        """Starts an upload of `blob`, or goes on with one that was interrupted.

        Two uploads of one blob at a time do not meet: the second starts anew, and the blob is stored once.

        Raises:
            InvalidUpload: the size is negative or above the limit.
            InvalidReference: the digest is not one.
        """
        digest_hex(blob.digest)
        if not 0 <= blob.size_bytes <= self._max_blob_bytes:
            raise InvalidUpload(f"size_bytes {blob.size_bytes}: expected 0 to {self._max_blob_bytes}")
        with disk("uploading"):
            self._reap_sometimes()
            if self._blobs.size(blob.digest) == blob.size_bytes:
                return Upload(blob, uploads=self, part=None, committed_bytes=blob.size_bytes)
            part, committed = self._resume(blob) or (self.new_part(blob), 0)
            return Upload(blob, uploads=self, part=part, committed_bytes=committed)

    def count(self) -> int:
        """Uploads under way or interrupted."""
        return sum(1 for _ in self._layout.uploads.glob("*.part"))

    def reap(self) -> int:
        """Removes uploads that nobody wrote to within the time to live; returns how many."""
        oldest = time.time() - self._ttl_seconds
        reaped = 0
        for path in self._layout.uploads.iterdir():
            with suppress(FileNotFoundError):
                if path.lstat().st_mtime > oldest:
                    continue
                if path.suffix == ".part":
                    reaped += self._remove_if_idle(path)
                elif not path.with_suffix(".part").exists():
                    path.unlink()
        return reaped

    def new_part(self, blob: FileDescriptor) -> "Part":
        """A locked, empty part."""
        path = self._layout.uploads / f"{digest_hex(blob.digest)}.{uuid.uuid4().hex}.part"
        unseen = path.with_suffix(".new")  # until it is locked: whoever finds an unlocked part may take it
        fd = os.open(unseen, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        file = open(fd, "r+b", buffering=0)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(unseen, path)
        return Part(path, file)

    def store(self, part: "Part", blob: FileDescriptor) -> None:
        """Links a synced part as `blob`, durably, and removes it and what is left of other uploads of that blob."""
        with self._locks.publishing():
            self._blobs.link(part.path, blob.digest)
            self._layout.sync_blobs()
        part.remove()
        for path in self._layout.uploads.glob(f"{digest_hex(blob.digest)}.*.part"):
            self._remove_if_idle(path)

    def freshen(self, blob: FileDescriptor) -> None:
        """Touches a blob that is stored already."""
        with self._locks.publishing():
            self._blobs.freshen(blob.digest)

    def _resume(self, blob: FileDescriptor) -> "tuple[Part, int] | None":
        for path in sorted(self._layout.uploads.glob(f"{digest_hex(blob.digest)}.*.part")):
            part = Part.lock(path, os.O_RDWR)
            if part is None:
                continue
            committed = part.committed_bytes(blob)
            if committed:
                return part, committed
            part.remove()
        return None

    def _remove_if_idle(self, path: Path) -> int:
        part = Part.lock(path, os.O_RDONLY)
        if part is None:
            return 0
        part.remove()
        return 1

    def _reap_sometimes(self) -> None:
        with self._reap_mutex:
            if time.monotonic() < self._next_reap:
                return
            self._next_reap = time.monotonic() + _REAP_SECONDS
        self.reap()


class Part:
    """A part's file, locked by this upload until it is closed or removed."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file

    @classmethod
    def lock(cls, path: Path, flags: int) -> "Part | None":
        """The part; None if it is gone, not to be written to (`flags`), or another upload has it."""
        try:
            fd = os.open(path, os.O_CLOEXEC | os.O_NOFOLLOW | flags)
        except (FileNotFoundError, PermissionError):
            return None
        file = open(fd, "r+b" if flags & os.O_RDWR else "rb", buffering=0)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.lstat(path).st_ino == os.fstat(fd).st_ino:
                return cls(path, file)
        except (BlockingIOError, FileNotFoundError):
            pass
        file.close()
        return None

    def committed_bytes(self, blob: FileDescriptor) -> int:
        """How many bytes of `blob` are surely there; 0 if the part is of another size or its state is unreadable."""
        try:
            state = json.loads(self._state.read_bytes())
            committed = int(state["committed_bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        same = state.get("digest") == blob.digest and state.get("size_bytes") == blob.size_bytes
        status = os.fstat(self.file.fileno())
        there = 0 < committed <= min(blob.size_bytes, status.st_size)
        # A crash may have left a part that is a blob's other name already: writing to it would change the blob.
        is_writable = status.st_nlink == 1 and status.st_mode & stat.S_IWUSR
        return committed if same and there and is_writable else 0

    def commit(self, blob: FileDescriptor, committed_bytes: int) -> None:
        """Syncs the bytes, then notes how many there are. The note itself may be lost: then an older one holds."""
        os.fsync(self.file.fileno())
        state = {"digest": blob.digest, "size_bytes": blob.size_bytes, "committed_bytes": committed_bytes}
        staged = self.path.with_suffix(".tmp")
        staged.write_text(json.dumps(state))
        os.replace(staged, self._state)

    def close(self) -> None:
        self.file.close()

    def remove(self) -> None:
        for path in (self.path, self._state, self.path.with_suffix(".tmp")):
            path.unlink(missing_ok=True)
        self.file.close()

    @property
    def _state(self) -> Path:
        return self.path.with_suffix(".json")


class Upload:
    """One upload in progress; used by one thread at a time. Leave it by `finish`, `close` or `discard`.

    As a context manager it is closed, so that it can be resumed.
    """

    def __init__(self, blob: FileDescriptor, *, uploads: Uploads, part: Part | None, committed_bytes: int) -> None:
        self.blob = blob
        self._uploads = uploads
        self._part = part  # None: the blob is stored already
        self._hash = hashlib.sha256()
        self._committed = committed_bytes
        self._position = committed_bytes
        self._begun = committed_bytes  # on their way to the disk
        self._is_open = True
        self._wrote = False
        if part is not None:
            self._hash_prefix(part, committed_bytes)

    @property
    def committed_bytes(self) -> int:
        """Where a resumed upload goes on: bytes that are synced. The whole size if the blob is stored."""
        return self._committed

    @property
    def received_bytes(self) -> int:
        """Where the next chunk starts."""
        return self._position

    def write(self, offset: int, data: bytes) -> None:
        """Appends a chunk. `offset` must be where the last one ended; the first chunk may start at 0 instead of
        `committed_bytes`, which starts the upload anew.

        Raises:
            InvalidUpload: a gap, an overlap, or more bytes than the blob has; what was received before stays.
            StoreUnavailable: the disk refused.
        """
        self._check_open()
        if offset == 0 and not self._wrote and self._position > 0:
            self._restart()
        if offset != self._position:
            what = "gap" if offset > self._position else "overlap"
            raise InvalidUpload(f"offset {offset}: {what}; expected {self._position}")
        if offset + len(data) > self.blob.size_bytes:
            raise InvalidUpload(f"{offset + len(data)} bytes: the blob was declared with {self.blob.size_bytes}")
        if not data or self._part is None:
            return
        with disk("uploading"), self._discarded_on_error():
            self._wrote = True
            _write_all(self._part.file, data)
            self._hash.update(data)
            self._position += len(data)
            if self._position - self._begun >= _BEGIN_BYTES:
                _begin_writing(self._part.file, self._begun, self._position)
                self._begun = self._position
            if self._position - self._committed >= _COMMIT_BYTES:
                self._commit(self._part)

    def finish(self) -> FileDescriptor:
        """Stores the blob, durably, if its size and digest are as declared.

        Raises:
            InvalidUpload: bytes are missing (the upload can be resumed), or the digest is another (it cannot).
            BlobNotFound: the blob was stored when the upload began, and has since been removed: send it.
            StoreUnavailable: the disk refused.
        """
        self._check_open()
        if self._position < self.blob.size_bytes:
            self.close()
            raise InvalidUpload(f"{self._position} bytes: the blob was declared with {self.blob.size_bytes}")
        with disk("uploading"), self._discarded_on_error():
            if self._part is None:
                self._uploads.freshen(self.blob)
            else:
                self._store(self._part)
        self._is_open = False
        self._committed = self.blob.size_bytes
        return self.blob

    def close(self) -> None:
        """Ends the session; the upload can be resumed by `Registry.open_upload` until it expires."""
        if not self._is_open:
            return
        self._is_open = False
        if self._part is None:
            return
        with disk("uploading"):
            if self._position == 0:
                self._part.remove()
                return
            self._commit(self._part)
            self._part.close()

    def discard(self) -> None:
        """Ends the session and forgets its bytes."""
        self._is_open = False
        if self._part is not None:
            with suppress(OSError):
                self._part.remove()

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _restart(self) -> None:
        with disk("uploading"):
            if self._part is None:
                self._part = self._uploads.new_part(self.blob)
            else:
                self._part.file.truncate(0)
                self._part.file.seek(0)
        self._hash = hashlib.sha256()
        self._committed = self._position = self._begun = 0

    def _store(self, part: Part) -> None:
        actual = f"sha256:{self._hash.hexdigest()}"
        if actual != self.blob.digest:
            raise InvalidUpload(f"digest {actual}: the blob was declared as {self.blob.digest}")
        os.fsync(part.file.fileno())
        self._uploads.store(part, self.blob)

    def _commit(self, part: Part) -> None:
        part.commit(self.blob, self._position)
        self._committed = self._position

    def _hash_prefix(self, part: Part, size_bytes: int) -> None:
        left = size_bytes
        while left:
            chunk = part.file.read(min(left, _HASH_BYTES))
            if not chunk:
                raise OSError(f"an upload's part ends {left} bytes before what was synced")
            self._hash.update(chunk)
            left -= len(chunk)
        part.file.truncate(size_bytes)

    @contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        # After a failed write or sync nobody knows what the file holds; and its bytes may be what filled the disk.
        try:
            yield
        except BaseException:
            self.discard()
            raise

    def _check_open(self) -> None:
        if not self._is_open:
            raise InvalidUpload("the upload has ended; open it again")


def _begin_writing(file: BinaryIO, start: int, end: int) -> None:
    """Has the system write those bytes to the disk while others come, so that the sync at the end waits for few."""
    if hasattr(
        os, "posix_fadvise"
    ):  # whose advice not to keep bytes that are dirty begins to write them, and keeps them
        os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
