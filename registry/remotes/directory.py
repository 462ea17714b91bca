"""Another store of ours on this machine's disks as a remote: a memory stick, a second registry."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hotshoe.registry.digest import digest_of
from hotshoe.registry.errors import (
    AdapterNotFound,
    BlobCorrupt,
    BlobNotFound,
    InvalidUpload,
    RemoteDamaged,
    RemoteRefused,
    RemoteUnavailable,
    StoreReadOnly,
    StoreUnavailable,
)
from hotshoe.registry.manifest import FileDescriptor
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.patience import DEFAULT_PATIENCE
from hotshoe.registry.remotes.remote import CHUNK_BYTES, MAX_REFERRERS, Sent
from hotshoe.registry.remotes.remote_url import RemoteUrl


class DirectoryRemote:
    """A store, made if it is missing, and only read if it cannot be written. Its tags are compared and set."""

    def __init__(self, url: RemoteUrl) -> None:
        self.url = url
        self.patience = DEFAULT_PATIENCE
        with self._told():
            self._store = Registry(Path(url.prefix))

    def close(self) -> None:
        self._store.close()

    def resolve(self, name: str, tag: str) -> str:
        with self._told():
            return self._store.resolve(f"{name}:{tag}").digest

    def read_manifest(self, name: str, digest: str) -> bytes:
        with self._told(), self._store.read_blob(digest) as file:
            return file.read()

    @contextmanager
    def open_blob(self, name: str, blob: FileDescriptor, offset: int) -> Iterator[Iterator[bytes]]:
        with self._told():
            file = self._store.read_blob(blob.digest, offset)
        with file:
            yield self._chunks(file)

    def has_blob(self, name: str, blob: FileDescriptor) -> bool:
        with self._told():
            return not self._store.missing_blobs([blob.digest])

    def reads_blob(self, name: str, blob: FileDescriptor) -> bool:
        return self.has_blob(name, blob)  # which hashes it, or did

    def put_blob(self, name: str, blob: FileDescriptor, source: BinaryIO, *, sent: Sent, mount_from: str = "") -> None:
        with self._told():
            upload = self._store.open_upload(blob)
        with upload:
            source.seek(upload.received_bytes)
            while chunk := source.read(CHUNK_BYTES):
                with self._told():
                    upload.write(upload.received_bytes, chunk)
                sent(upload.received_bytes)
            with self._told():
                upload.finish()

    def put_manifest(self, name: str, manifest: bytes) -> None:
        with self._told():
            self._store.adopt(manifest, name=name, tags=())

    def set_tag(self, name: str, tag: str, manifest: bytes, *, expected: str | None = None) -> None:
        digest = digest_of(manifest)
        with self._told():
            if expected is not None:
                self._store.update_tag(name, tag, digest, expected)
            else:
                self._store.adopt(manifest, name=name, tags=[tag])

    def list_tags(self, name: str) -> list[str]:
        with self._told():
            return sorted(self._store.tags(name))

    def list_referrers(self, name: str, subject: str) -> list[str]:
        with self._told():
            latest_first = self._store.referrers(subject)[:MAX_REFERRERS]
            return [referrer.digest for referrer in reversed(latest_first)]

    def put_referrer(self, name: str, subject: str, manifest: bytes) -> None:
        with self._told():
            self._store.adopt_referrer(manifest)

    def _chunks(self, file: BinaryIO) -> Iterator[bytes]:
        while True:
            with self._told():
                chunk = file.read(CHUNK_BYTES)
            if not chunk:
                return
            yield chunk

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Says of which store an error speaks."""
        try:
            yield
        except AdapterNotFound as error:
            raise AdapterNotFound(f"{self.url}: {error}") from error
        except BlobCorrupt as error:
            raise RemoteDamaged(str(self.url), str(error)) from error
        except (BlobNotFound, InvalidUpload) as error:
            raise RemoteRefused(str(self.url), str(error)) from error
        except StoreReadOnly as error:
            raise RemoteRefused(str(self.url), str(error)) from error
        except (StoreUnavailable, OSError) as error:
            raise RemoteUnavailable(str(self.url), str(error)) from error
