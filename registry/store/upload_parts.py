"""An upload's bytes on the disk: parts, each locked by the upload that writes to it.

.uploads/<hex of the expected digest>.<id>.part    the bytes
.uploads/<hex>.<id>.json                           {"digest", "size_bytes", "committed_bytes"}: synced so far
.uploads/unnamed.<id>.part                         bytes whose digest nobody has said yet; they cannot be resumed
"""

import fcntl
import json
import os
import stat
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from hotshoe.registry.digest import digest_hex
from hotshoe.registry.manifest import FileDescriptor
from hotshoe.registry.store.blobs import BlobStore
from hotshoe.registry.store.layout import Layout
from hotshoe.registry.store.locks import StoreLocks

_REAP_SECONDS = 60.0
_UNNAMED = "unnamed"


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
        """Removes the bytes and what is noted of them, and lets go of the lock."""
        for path in (self.path, self._state, self.path.with_suffix(".tmp")):
            path.unlink(missing_ok=True)
        self.file.close()

    @property
    def _state(self) -> Path:
        return self.path.with_suffix(".json")


class Parts:
    """The parts of a store, from their first byte until they are a blob or gone.

    Args:
        ttl_seconds: a part that nobody wrote to for so long is removed.
    """

    def __init__(self, layout: Layout, *, blobs: BlobStore, locks: StoreLocks, ttl_seconds: float) -> None:
        self._layout = layout
        self._blobs = blobs
        self._locks = locks
        self._ttl_seconds = ttl_seconds
        self._next_reap = 0.0
        self._reap_mutex = threading.Lock()

    def new(self, blob: FileDescriptor) -> Part:
        """A locked, empty part, unnamed if the blob's digest is not known yet ("")."""
        path = self._path(blob)
        unseen = path.with_suffix(".new")  # until it is locked: whoever finds an unlocked part may take it
        fd = os.open(unseen, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        file = open(fd, "r+b", buffering=0)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(unseen, path)
        return Part(path, file)

    def resume(self, blob: FileDescriptor) -> tuple[Part, int] | None:
        """A part of an interrupted upload of `blob`, locked, and how many of its bytes count; None if there is none."""
        for path in sorted(self._layout.uploads.glob(f"{digest_hex(blob.digest)}.*.part")):
            part = Part.lock(path, os.O_RDWR)
            if part is None:
                continue
            committed = part.committed_bytes(blob)
            if committed:
                return part, committed
            part.remove()
        return None

    def name(self, part: Part, blob: FileDescriptor) -> Part | None:
        """Calls an unnamed part by the digest of `blob`; None, and no part any more, if that is stored already."""
        if self._blobs.size(blob.digest) == blob.size_bytes:
            part.remove()
            return None
        path = self._path(blob)
        os.rename(part.path, path)
        return Part(path, part.file)

    def store(self, part: Part, blob: FileDescriptor) -> None:
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

    def count(self) -> int:
        """Those that are written to, or were interrupted."""
        return sum(1 for _ in self._layout.uploads.glob("*.part"))

    def reap(self) -> int:
        """Removes parts that nobody wrote to within the time to live; returns how many."""
        oldest = time.time() - self._ttl_seconds
        reaped = 0
        for path in self._layout.uploads.iterdir():
            with suppress(FileNotFoundError):
                is_lost = path.suffix == ".part" and path.name.startswith(_UNNAMED)  # unless somebody writes to it
                if path.lstat().st_mtime > oldest and not is_lost:
                    continue
                if path.suffix == ".part":
                    reaped += self._remove_if_idle(path)
                elif not path.with_suffix(".part").exists():
                    path.unlink()
        return reaped

    def reap_sometimes(self) -> None:
        """As `reap`, at most once in a while."""
        with self._reap_mutex:
            if time.monotonic() < self._next_reap:
                return
            self._next_reap = time.monotonic() + _REAP_SECONDS
        self.reap()

    def _remove_if_idle(self, path: Path) -> int:
        part = Part.lock(path, os.O_RDONLY)
        if part is None:
            return 0
        part.remove()
        return 1

    def _path(self, blob: FileDescriptor) -> Path:
        stem = digest_hex(blob.digest) if blob.digest else _UNNAMED
        return self._layout.uploads / f"{stem}.{uuid.uuid4().hex}.part"
