"""Blobs: immutable files named by the digest of their bytes, linked into place whole or not at all.

A blob's bytes are trusted once they have been hashed and for as long as its file keeps inode, size and mtime; one
that fails is moved to .quarantine/, so that a new upload heals it.
"""

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from hotshoe.registry.digest import digest_hex, digest_of, digest_of_stream, is_digest
from hotshoe.registry.errors import BlobCorrupt, BlobNotFound, StoreReadOnly
from hotshoe.registry.store.index import Index, is_io_error
from hotshoe.registry.store.index_rows import Fingerprint
from hotshoe.registry.store.layout import Layout, entries, open_regular, write_synced
from hotshoe.registry.store.quarantine import Quarantine

# A collector spares what was touched within its grace, which is at least an hour.
_FRESH_SECONDS = 600.0


class BlobStore:
    """The blobs of a layout. Everything that links a blob runs under `StoreLocks.publishing`."""

    def __init__(self, layout: Layout, index: Index) -> None:
        self._layout = layout
        self._index = index
        self._quarantine = Quarantine(layout)
        self._verified: dict[str, Fingerprint] = {}

    def path(self, digest: str) -> Path:
        """Where a blob lies, or would."""
        return self._layout.blobs / digest_hex(digest)

    def size(self, digest: str) -> int | None:
        """Size in bytes, None if there is no such regular file."""
        try:
            status = os.lstat(self.path(digest))
        except FileNotFoundError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def open(self, digest: str) -> BinaryIO:
        """Opens a blob's file for reading, without looking at its bytes.

        Raises:
            BlobNotFound: there is none.
            BlobCorrupt: something else than a regular file lay in its place; it is now in quarantine.
        """
        try:
            # O_NONBLOCK: opening a planted FIFO must not hang.
            fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise BlobNotFound([digest]) from None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a symbolic link; a socket
                raise
            self._set_aside(digest, os.lstat(self.path(digest)).st_ino)
            raise BlobCorrupt(f"blob {digest}: no regular file lies in its place") from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            self._set_aside(digest, status.st_ino)
            raise BlobCorrupt(f"blob {digest}: no regular file lies in its place")
        return open(fd, "rb")

    def open_verified(self, digest: str) -> BinaryIO:
        """Opens a blob whose bytes are those of its digest; hashes them unless this very file was hashed before.

        Raises:
            BlobNotFound: there is none.
            BlobCorrupt: the bytes are others; what lay there is now in quarantine.
        """
        file = self.open(digest)
        try:
            if self._recall(digest) != _fingerprint(file.fileno()):
                self._hash(digest, file)
                file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def verify(self, digest: str) -> int:
        """Size in bytes of a blob, verified as by `open_verified`."""
        with self.open_verified(digest) as file:
            return os.fstat(file.fileno()).st_size

    def verify_again(self, digest: str) -> int:
        """As `verify`, but hashes the bytes whatever is remembered."""
        with self.open(digest) as file:
            self._hash(digest, file)
            return os.fstat(file.fileno()).st_size

    def is_sound(self, digest: str, *, again: bool = False) -> bool:
        """Whether a blob is here and its bytes are right; hashes them if they were not, or `again`. Moves nothing."""
        file = open_regular(self.path(digest))
        if file is None:
            return False
        with file:
            found = _fingerprint(file.fileno())
            if again or self._recall(digest) != found:
                if digest_of_stream(file) != digest:
                    return False
                self._remember(digest, found)
            return True

    def fingerprints(self, digests: Iterable[str]) -> list[tuple[str, Fingerprint]]:
        """What this process has verified among `digests`."""
        return [(digest, self._verified[digest]) for digest in digests if digest in self._verified]

    def put(self, data: bytes) -> str:
        """Stores `data`, unless it is there; returns its digest. The name is durable after `Layout.sync_blobs`."""
        digest = digest_of(data)
        with suppress(BlobNotFound, BlobCorrupt):
            self.verify(digest)
            self.freshen(digest)
            return digest
        staged = self._layout.stage()
        try:
            write_synced(staged, data)
            self.link(staged, digest)
        finally:
            staged.unlink(missing_ok=True)
        return digest

    def link(self, staged: Path, digest: str) -> None:
        """Gives a synced file, whose bytes were hashed to `digest`, its name. `staged` stays, the caller removes it.

        A sound blob of that digest stays and is touched; an unsound one is set aside.
        """
        os.chmod(staged, 0o444)
        for _ in range(3):  # a bad file in the place is set aside; only an adversary could put one there twice
            try:
                os.link(staged, self.path(digest), follow_symlinks=False)
            except FileExistsError:
                with suppress(BlobCorrupt, BlobNotFound):
                    self.verify(digest)
                    self.freshen(digest)
                    return
            else:
                fd = os.open(staged, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    self._verified[digest] = _fingerprint(fd)
                finally:
                    os.close(fd)
                return
        raise BlobCorrupt(f"blob {digest}: its place in the store is taken by a file that is not it")

    def freshen(self, digest: str) -> None:
        """Marks a blob as wanted now, so that no collector takes it before its publisher commits.

        Raises:
            BlobNotFound: it is not there.
        """
        with self.open(digest) as file:
            before = _fingerprint(file.fileno())
            if time.time() - before.mtime_ns / 1e9 < _FRESH_SECONDS:
                return
            known = self._recall(digest) == before
            os.utime(file.fileno())
            if known:
                self._remember(digest, _fingerprint(file.fileno()))

    def scan(self) -> Iterator[tuple[str, int]]:
        """Digest and size in bytes of every regular file that is named as a blob."""
        for entry in entries(self._layout.blobs):
            digest = f"sha256:{entry.name}"
            if is_digest(digest) and entry.is_file(follow_symlinks=False):
                try:
                    size = entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:  # collected, or set aside, since it was listed
                    continue
                yield digest, size

    def older_than(self, digest: str, seconds: float) -> bool:
        """Whether a blob's file was last wanted before `seconds` since the epoch; False if it is not there."""
        try:
            return os.lstat(self.path(digest)).st_mtime < seconds
        except FileNotFoundError:
            return False

    def throw_away(self, digest: str) -> None:
        """Moves a blob to .trash/; only under `StoreLocks.collecting`."""
        self._verified.pop(digest, None)
        os.rename(self.path(digest), self._layout.trash / digest_hex(digest))

    def _hash(self, digest: str, file: BinaryIO) -> None:
        found = _fingerprint(file.fileno())
        actual = digest_of_stream(file)
        if actual != digest:
            self._set_aside(digest, found.inode)
            raise BlobCorrupt(f"blob {digest}: its {found.size_bytes} stored bytes have digest {actual}")
        self._remember(digest, found)

    def _set_aside(self, digest: str, inode: int) -> None:
        self._verified.pop(digest, None)
        with suppress(OSError, StoreReadOnly):  # gone already, or the disk takes no writes: the caller raises anyway
            if os.lstat(self.path(digest)).st_ino == inode:  # and not what a new upload put there meanwhile
                self._quarantine.take(self.path(digest), digest)

    def _recall(self, digest: str) -> Fingerprint | None:
        known = self._verified.get(digest)
        if known is None and (known := self._index.fingerprint(digest)):
            self._verified[digest] = known
        return known

    def _remember(self, digest: str, fingerprint: Fingerprint) -> None:
        self._verified[digest] = fingerprint
        try:
            self._index.remember_verified([(digest, fingerprint)])
        except sqlite3.Error as error:  # a full disk must not stop reading; it is hashed again after a restart
            if is_io_error(error):
                self._layout.fail(f"the index could not be written ({error})")


def _fingerprint(fd: int) -> Fingerprint:
    status = os.fstat(fd)
    return Fingerprint(status.st_ino, status.st_size, status.st_mtime_ns)
