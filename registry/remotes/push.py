"""Adapters from here to a remote; nothing is sent that is there already."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hotshoe.registry.errors import RemoteDamaged
from hotshoe.registry.manifest import AdapterRecord, FileDescriptor, blob_descriptors
from hotshoe.registry.reference import check_name, check_tag
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.progress import Progress, TransferProgress, ignore_progress
from hotshoe.registry.remotes.remote import Remote


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
