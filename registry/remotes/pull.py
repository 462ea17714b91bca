"""Adapters from a remote to here, each byte verified on its way in, nothing fetched that is here already."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from hotshoe.registry.adoption import Approve, approve_all, check_manifest, check_referrer
from hotshoe.registry.digest import is_digest
from hotshoe.registry.errors import (
    AdapterNotFound,
    BlobNotFound,
    InvalidAdapter,
    InvalidReference,
    InvalidUpload,
    RemoteDamaged,
    RemoteError,
    RemoteUnavailable,
)
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.manifest import AdapterRecord, FileDescriptor, blob_descriptors
from hotshoe.registry.reference import check_tag
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.progress import Progress, TransferProgress, ignore_progress
from hotshoe.registry.remotes.remote import Remote
from hotshoe.registry.store.uploads import Upload


class Pulled(NamedTuple):
    """An adapter that is here now, and whether it was not before."""

    record: AdapterRecord
    created: bool


def pull(
    registry: Registry,
    remote: Remote,
    reference: str,
    *,
    name: str,
    as_name: str = "",
    tags: Sequence[str] = (),
    base: BaseShape | None = None,
    approve: Approve = approve_all,
    progress: Progress = ignore_progress,
) -> Pulled:
    """Copies an adapter and the documents about it from a remote, byte for byte, and moves `tags` to it here.

    Args:
        reference: a tag or a digest there.
        name: what it is called there; here too, unless `as_name` says otherwise.
        base: if the adapter is for that base, it is held against it.
        approve: what else must be said of it, once all its files are sound.

    Raises:
        AdapterNotFound: the remote does not have it.
        RemoteError: it could not be pulled; the error names the remote. What came of its blobs is kept for the next
            time, but no adapter.
        InvalidAdapter, IncompatibleAdapter: it is refused.
        StoreReadOnly: nothing is copied here.
    """
    registry.check_writable()
    digest = reference if is_digest(reference) else remote.resolve(name, check_tag(reference))
    with _one_at_a_time(registry, digest):
        manifest = remote.read_manifest(name, digest)
        with _naming(remote):
            check_manifest(manifest)
        receiver = _Receiver(registry, remote, name, progress)
        documents = receiver.receive_documents(digest)

        def adopt() -> Pulled:
            receiver.receive_blobs(manifest)
            with _naming(remote):
                return Pulled(*registry.adopt(manifest, name=as_name or name, tags=tags, base=base, approve=approve))

        try:
            pulled = adopt()
        except BlobNotFound:  # what was here is damaged, and has been set aside; or it was collected meanwhile
            pulled = adopt()
        for document in documents:
            registry.adopt_referrer(document)
    return pulled


def mirror(
    registry: Registry,
    remote: Remote,
    name: str,
    *,
    as_name: str = "",
    base: BaseShape | None = None,
    approve: Approve = approve_all,
    progress: Progress = ignore_progress,
) -> Iterator[Pulled]:
    """Brings every tag of a name on the remote here, and what it points at; tags that are only here stay.

    Raises:
        AdapterNotFound: the remote has no such name.
        RemoteError, InvalidAdapter, IncompatibleAdapter: as `pull`; what was yielded before is here.
    """
    tags_by_digest: dict[str, list[str]] = {}
    for tag in remote.list_tags(name):
        with suppress(AdapterNotFound, InvalidReference):  # a listing is a hint, and other tools' tags have other forms
            tags_by_digest.setdefault(remote.resolve(name, check_tag(tag)), []).append(tag)
    for digest, tags in tags_by_digest.items():
        yield pull(
            registry,
            remote,
            digest,
            name=name,
            as_name=as_name,
            tags=tags,
            base=base,
            approve=approve,
            progress=progress,
        )


def pull_blob(
    registry: Registry, remote: Remote, blob: FileDescriptor, *, name: str, progress: Progress = ignore_progress
) -> None:
    """Brings one blob here that a manifest which is here names, unless it is here; it is verified on its way.

    Raises:
        AdapterNotFound: the remote does not have it under that name.
        RemoteError: it could not be pulled; the error names the remote.
    """
    progress(TransferProgress(blob, 0))
    _Receiver(registry, remote, name, progress).receive_blob(blob)


@dataclass(frozen=True, slots=True)
class _Receiver:
    """Fetches what one name of one remote has, and this store has not."""

    registry: Registry
    remote: Remote
    name: str
    progress: Progress

    def receive_documents(self, subject: str) -> list[bytes]:
        """The manifests of what the remote has about an adapter, whose documents are then here: those that we lack.

        They are fetched before the adapter is committed, so that it does not come without what vouches for it.
        """
        here = {referrer.digest for referrer in self.registry.referrers(subject)}
        manifests = []
        for digest in self.remote.list_referrers(self.name, subject):
            if digest in here:
                continue
            manifest = self.remote.read_manifest(self.name, digest)
            try:
                referrer = check_referrer(manifest)
            except InvalidAdapter:  # another tool's, of a form that is not kept here
                continue
            if referrer.subject == subject:
                if self.registry.missing_blobs([referrer.document.digest]):
                    self.receive_blob(referrer.document)
                manifests.append(manifest)
        return manifests

    def receive_blobs(self, manifest: bytes) -> None:
        """What a manifest names; all of it is told of before the first moves."""
        blobs = {blob.digest: blob for blob in blob_descriptors(manifest)}
        missing = self.registry.missing_blobs(list(blobs))
        for digest, blob in blobs.items():
            self.progress(TransferProgress(blob, 0 if digest in missing else blob.size_bytes))
        for digest in missing:
            self.receive_blob(blobs[digest])
            self.progress(TransferProgress(blobs[digest], blobs[digest].size_bytes))

    def receive_blob(self, blob: FileDescriptor) -> None:
        with _one_at_a_time(self.registry, blob.digest):
            if not self.registry.missing_blobs([blob.digest]):  # it came with another adapter meanwhile
                return
            for attempt in range(self.remote.patience.attempts):
                if attempt:
                    self.remote.patience.rest(attempt - 1)
                with self._upload(blob) as upload:
                    start = upload.received_bytes
                    try:
                        self._receive(upload)
                        upload.finish()
                        return
                    except InvalidUpload as error:
                        upload.discard()
                        problem = f"blob {blob.digest} ({blob.file_name}): {error}"
                        failure: RemoteError = RemoteDamaged(str(self.remote.url), problem)
                        if start == 0:
                            raise failure from error
                        # What an earlier transfer left may have been wrong: once more, from the start.
                    except RemoteDamaged:
                        upload.discard()
                        raise
                    except RemoteUnavailable as error:
                        failure = error
            raise failure

    def _upload(self, blob: FileDescriptor) -> Upload:
        try:
            return self.registry.open_upload(blob)
        except InvalidUpload as error:  # larger than this store takes
            raise InvalidAdapter(blob.file_name, f"{error} (from {self.remote.url})") from error

    def _receive(self, upload: Upload) -> None:
        if upload.received_bytes == upload.blob.size_bytes:
            return
        with self.remote.open_blob(self.name, upload.blob, upload.received_bytes) as chunks:
            for chunk in chunks:
                upload.write(upload.received_bytes, chunk)
                self.progress(TransferProgress(upload.blob, upload.received_bytes))


@contextmanager
def _naming(remote: Remote) -> Iterator[None]:
    """Adds to what is wrong with an adapter where it came from."""
    try:
        yield
    except InvalidAdapter as error:
        raise type(error)(error.field, f"{error.problem} (from {remote.url})") from error


_flights_mutex = threading.Lock()
_flights: dict[tuple[int, str], tuple[threading.Lock, int]] = {}  # lock, and how many hold it or wait for it


@contextmanager
def _one_at_a_time(registry: Registry, digest: str) -> Iterator[None]:
    """One transfer of a digest into a store at a time; whoever waited finds what the first one brought."""
    key = (id(registry), digest)
    with _flights_mutex:
        lock, users = _flights.get(key, (threading.Lock(), 0))
        _flights[key] = (lock, users + 1)
    try:
        with lock:
            yield
    finally:
        with _flights_mutex:
            lock, users = _flights.pop(key)
            if users > 1:
                _flights[key] = (lock, users - 1)
