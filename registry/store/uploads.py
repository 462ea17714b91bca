"""Uploads: bytes on their way to becoming a blob. They may be interrupted and resumed; nothing of them is visible."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import BinaryIO

from hotshoe.registry.digest import digest_hex
from hotshoe.registry.errors import InvalidUpload
from hotshoe.registry.manifest import FileDescriptor
from hotshoe.registry.store.blobs import BlobStore
from hotshoe.registry.store.layout import disk
from hotshoe.registry.store.upload_parts import Part, Parts
from hotshoe.registry.stream_hash import StreamHash, begin_writing

# How much may have to be sent again after a crash; more syncs cost time.
_COMMIT_BYTES = 32 << 20
_BEGIN_BYTES = 1 << 20
_HASH_BYTES = 1 << 20


class Upload:
    """One upload in progress; used by one thread at a time. Leave it by `finish`, `close` or `discard`.

    As a context manager it is closed, so that it can be resumed.
    """

    def __init__(self, blob: FileDescriptor, *, parts: Parts, part: Part | None, committed_bytes: int) -> None:
        self.blob = blob
        self._parts = parts
        self._part = part  # None: the blob is stored already
        self._hash = StreamHash()
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

    @property
    def received_digest(self) -> str:
        """Of the bytes so far: who has made them here need not hash them, too, to `name` them."""
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, offset: int, data: bytes | memoryview) -> None:
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
            self._hash.update(data)
            _write_all(self._part.file, data)
            self._position += len(data)
            if self._position - self._begun >= _BEGIN_BYTES:
                begin_writing(self._part.file.fileno(), self._begun, self._position)
                self._begun = self._position
            if self.blob.digest and self._position - self._committed >= _COMMIT_BYTES:
                self._commit(self._part)

    def name(self, digest: str) -> bool:
        """Says what the digest of an upload that began without one will be; whether that blob is stored already.

        If it is, `received_bytes` is all of it, and no more is to be written.

        Raises:
            InvalidReference: that is no digest.
            InvalidUpload: it has a digest.
            StoreUnavailable: the disk refused.
        """
        self._check_open()
        digest_hex(digest)
        if self.blob.digest:
            raise InvalidUpload(f"digest {digest}: the blob was declared as {self.blob.digest}")
        blob = replace(self.blob, digest=digest)
        assert self._part is not None, "what has no digest is not stored"
        with disk("uploading"), self._discarded_on_error():
            self._part = self._parts.name(self._part, blob)
        self.blob = blob
        if self._part is None:
            self._committed = self._position = blob.size_bytes
        return self._part is None

    def finish(self) -> FileDescriptor:
        """Stores the blob, durably, if its size and digest are as declared.

        Raises:
            InvalidUpload: bytes are missing (the upload can be resumed), or the digest is another (it cannot), or
                nobody has said any.
            BlobNotFound: the blob was stored when the upload began, and has since been removed: send it.
            StoreUnavailable: the disk refused.
        """
        self._check_open()
        if self._position < self.blob.size_bytes:
            self.close()
            raise InvalidUpload(f"{self._position} bytes: the blob was declared with {self.blob.size_bytes}")
        with disk("uploading"), self._discarded_on_error():
            if self._part is None:
                self._parts.freshen(self.blob)
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
            if self._position == 0 or not self.blob.digest:
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
                self._part = self._parts.new(self.blob)
            else:
                self._part.file.truncate(0)
                self._part.file.seek(0)
        self._hash = StreamHash()
        self._committed = self._position = self._begun = 0

    def _store(self, part: Part) -> None:
        if not self.blob.digest:
            raise InvalidUpload("digest: expected one before the upload ends")
        actual = self.received_digest
        if actual != self.blob.digest:
            raise InvalidUpload(f"digest {actual}: the blob was declared as {self.blob.digest}")
        os.fsync(part.file.fileno())
        self._parts.store(part, self.blob)

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


class Uploads:
    """Starts the uploads of a store.

    Args:
        max_blob_bytes: larger blobs are refused before the first byte.
    """

    def __init__(self, parts: Parts, *, blobs: BlobStore, max_blob_bytes: int) -> None:
        self._parts = parts
        self._blobs = blobs
        self._max_blob_bytes = max_blob_bytes

    def open(self, blob: FileDescriptor) -> Upload:
        """Starts an upload of `blob`, or goes on with one that was interrupted.

        Two uploads of one blob at a time do not meet: the second starts anew, and the blob is stored once.

        Raises:
            InvalidUpload: the size is negative or above the limit.
            InvalidReference: the digest is not one.
        """
        digest_hex(blob.digest)
        self._check_size(blob)
        with disk("uploading"):
            self._parts.reap_sometimes()
            if self._blobs.size(blob.digest) == blob.size_bytes:
                return Upload(blob, parts=self._parts, part=None, committed_bytes=blob.size_bytes)
            part, committed = self._parts.resume(blob) or (self._parts.new(blob), 0)
            return Upload(blob, parts=self._parts, part=part, committed_bytes=committed)

    def begin(self, blob: FileDescriptor) -> Upload:
        """Starts an upload of which only the size is known; `Upload.name` says the digest.

        Raises:
            InvalidUpload: the size is negative or above the limit.
        """
        self._check_size(blob)
        with disk("uploading"):
            self._parts.reap_sometimes()
            return Upload(blob, parts=self._parts, part=self._parts.new(blob), committed_bytes=0)

    def _check_size(self, blob: FileDescriptor) -> None:
        if not 0 <= blob.size_bytes <= self._max_blob_bytes:
            raise InvalidUpload(f"size_bytes {blob.size_bytes}: expected 0 to {self._max_blob_bytes}")


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
