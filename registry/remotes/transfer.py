"""Adapters from here to a remote and back, each byte verified on its way in, nothing sent that is there already."""

import threading
from collections.abc import Callable, Iterator, Sequence
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
from hotshoe.registry.reference import check_name, check_tag
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.remote import Remote
from hotshoe.registry.uploads import Upload


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far one blob has come. All of a manifest are named before the first moves; one that is there is whole."""

    blob: FileDescriptor
    completed_bytes: int


# Called by the transfer's thread. What it raises ends the transfer, which can be begun again where it was.
Progress = Callable[[TransferProgress], None]


def ignore_progress(progress: TransferProgress) -> None:
    """For those who do not look."""


class Pulled(NamedTuple):
    """An adapter that is here now, and whether it was not before."""

    record: AdapterRecord
    created: bool


def push(
    registry: Registry,
    record: AdapterRecord,
    remote: Remote,
    *,
    name: str = "",
    tags: Sequence[str] = (),
    expected: str | None = None,
    progress: Progress = ignore_progress,
) -> None:
    """Copies an adapter and the documents about it to a remote, as `name` (its own by default), and moves `tags` there.

    When it returns, the remote has given the first byte of every blob.

    Args:
        expected: the digest that the tags must point at there, "" if there must be none; None if that does not matter.

    Raises:
        RemoteError, TagMoved: it could not be pushed; the error names the remote.
        BlobCorrupt: stored bytes are damaged or lost.
    """
    name = check_name(name or record.name)
    for tag in tags:
        check_tag(tag)
    mount_from = record.name if record.name != name else ""
    sender = _Sender(registry, remote, name, progress, mount_from)
    manifest = sender.send(record.digest, lambda manifest: remote.put_manifest(name, manifest))
    for referrer in reversed(registry.referrers(record.digest)):
        sender.send(referrer.digest, lambda manifest: remote.put_referrer(name, record.digest, manifest))
    for tag in tags:
        remote.set_tag(name, tag, manifest, expected=expected)


@dataclass(frozen=True, slots=True)
class _Sender:
    """Sends manifests and what they name to one name of one remote; blobs may be taken over from `mount_from`."""

    registry: Registry
    remote: Remote
    name: str
    progress: Progress
    mount_from: str

    def send(self, digest: str, put: Callable[[bytes], None]) -> bytes:
        """Sends the blobs that the remote lacks, then `put`s the manifest, and returns it."""
        with self.registry.read_blob(digest) as file:
            manifest = file.read()
        blobs = blob_descriptors(manifest)
        missing = [blob for blob in blobs if not self.remote.has_blob(self.name, blob)]
        for blob in blobs:
            self.progress(TransferProgress(blob, 0 if blob in missing else blob.size_bytes))
        for blob in missing:
            self._send_blob(blob, mount_from=self.mount_from)
        put(manifest)
        # A registry whose garbage was collected beneath it says that it has what is gone, and takes the manifest too.
        lost = [blob for blob in blobs if not self.remote.reads_blob(self.name, blob)]
        for blob in lost:
            self._send_blob(blob)
        if lost:
            put(manifest)
        for blob in lost:
            if not self.remote.reads_blob(self.name, blob):
                problem = f"it took blob {blob.digest} ({blob.file_name}), and does not give it back"
                raise RemoteDamaged(str(self.remote.url), problem)
        return manifest

    def _send_blob(self, blob: FileDescriptor, *, mount_from: str = "") -> None:
        def sent(count: int) -> None:
            self.progress(TransferProgress(blob, count))

        with self.registry.read_blob(blob.digest) as source:
            self.remote.put_blob(self.name, blob, source, sent=sent, mount_from=mount_from)


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
    """
    digest = reference if is_digest(reference) else remote.resolve(name, check_tag(reference))
    with _one_at_a_time(registry, digest):
        manifest = remote.read_manifest(name, digest)
        with _naming(remote):
            check_manifest(manifest)
        documents = _pull_documents(registry, remote, digest, name=name, progress=progress)

        def adopt() -> Pulled:
            _pull_blobs(registry, remote, manifest, name=name, progress=progress)
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
    _pull_blob(registry, remote, blob, name=name, progress=progress)


def _pull_blobs(registry: Registry, remote: Remote, manifest: bytes, *, name: str, progress: Progress) -> None:
    blobs = {blob.digest: blob for blob in blob_descriptors(manifest)}
    missing = registry.missing_blobs(list(blobs))
    for digest, blob in blobs.items():
        progress(TransferProgress(blob, 0 if digest in missing else blob.size_bytes))
    for digest in missing:
        _pull_blob(registry, remote, blobs[digest], name=name, progress=progress)
        progress(TransferProgress(blobs[digest], blobs[digest].size_bytes))


def _pull_blob(registry: Registry, remote: Remote, blob: FileDescriptor, *, name: str, progress: Progress) -> None:
    with _one_at_a_time(registry, blob.digest):
        if not registry.missing_blobs([blob.digest]):  # it came with another adapter meanwhile
            return
        for attempt in range(remote.patience.attempts):
            if attempt:
                remote.patience.rest(attempt - 1)
            with _upload(registry, blob, remote) as upload:
                start = upload.received_bytes
                try:
                    _receive(upload, remote, name=name, progress=progress)
                    upload.finish()
                    return
                except InvalidUpload as error:
                    upload.discard()
                    problem = f"blob {blob.digest} ({blob.file_name}): {error}"
                    failure: RemoteError = RemoteDamaged(str(remote.url), problem)
                    if start == 0:
                        raise failure from error
                    # What an earlier transfer left may have been wrong: once more, from the start.
                except RemoteDamaged:
                    upload.discard()
                    raise
                except RemoteUnavailable as error:
                    failure = error
        raise failure


def _upload(registry: Registry, blob: FileDescriptor, remote: Remote) -> Upload:
    try:
        return registry.open_upload(blob)
    except InvalidUpload as error:  # larger than this store takes
        raise InvalidAdapter(blob.file_name, f"{error} (from {remote.url})") from error


def _receive(upload: Upload, remote: Remote, *, name: str, progress: Progress) -> None:
    if upload.received_bytes == upload.blob.size_bytes:
        return
    with remote.open_blob(name, upload.blob, upload.received_bytes) as chunks:
        for chunk in chunks:
            upload.write(upload.received_bytes, chunk)
            progress(TransferProgress(upload.blob, upload.received_bytes))


def _pull_documents(registry: Registry, remote: Remote, subject: str, *, name: str, progress: Progress) -> list[bytes]:
    """The manifests of what the remote has about an adapter, whose documents are then here: those that we lack.

    They are fetched before the adapter is committed, so that it does not come without what vouches for it.
    """
    here = {referrer.digest for referrer in registry.referrers(subject)}
    manifests = []
    for digest in remote.list_referrers(name, subject):
        if digest in here:
            continue
        manifest = remote.read_manifest(name, digest)
        try:
            referrer = check_referrer(manifest)
        except InvalidAdapter:  # another tool's, of a form that is not kept here
            continue
        if referrer.subject == subject:
            if registry.missing_blobs([referrer.document.digest]):
                _pull_blob(registry, remote, referrer.document, name=name, progress=progress)
            manifests.append(manifest)
    return manifests


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
