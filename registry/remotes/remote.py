"""What a registry elsewhere can do for us. `parse_remote` opens one by its URL."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from hotshoe.registry.manifest import FileDescriptor
from hotshoe.registry.remotes.patience import DEFAULT_PATIENCE, Patience
from hotshoe.registry.remotes.remote_url import RemoteUrl

MAX_MANIFEST_BYTES = 4 << 20
MAX_REFERRERS = 256
CHUNK_BYTES = 1 << 18

# Told how many bytes of a blob have been sent; what it raises ends the transfer.
Sent = Callable[[int], None]


class Remote(Protocol):
    """Adapters elsewhere, by name. Any thread; every method blocks, for a bounded time.

    What is asked for by digest has been verified when it is returned, but for blobs: those are verified by whoever
    stores them.

    Every method raises RemoteError, which names the remote, and AdapterNotFound where something is not there.
    """

    @property
    def url(self) -> RemoteUrl: ...
    @property
    def patience(self) -> Patience: ...

    def resolve(self, name: str, tag: str) -> str:
        """The digest that a tag points at."""

    def read_manifest(self, name: str, digest: str) -> bytes:
        """The bytes of a manifest, at most MAX_MANIFEST_BYTES."""

    def open_blob(self, name: str, blob: FileDescriptor, offset: int) -> AbstractContextManager[Iterator[bytes]]:
        """A blob's bytes from `offset` on, in chunks; never more than it was declared with."""

    def has_blob(self, name: str, blob: FileDescriptor) -> bool:
        """Whether the remote says that it has a blob. It may be wrong: see `reads_blob`."""

    def reads_blob(self, name: str, blob: FileDescriptor) -> bool:
        """Whether the remote really gives the first byte of a blob."""

    def put_blob(self, name: str, blob: FileDescriptor, source: BinaryIO, *, sent: Sent, mount_from: str = "") -> None:
        """Stores a blob, whose bytes `source` has from its start, or takes it over from another name there."""

    def put_manifest(self, name: str, manifest: bytes) -> None:
        """Stores a manifest whose blobs are there."""

    def set_tag(self, name: str, tag: str, manifest: bytes, *, expected: str | None = None) -> None:
        """Points a tag at a manifest that is there; with `expected`, only if it pointed there ("": nowhere).

        Raises:
            TagMoved: it points elsewhere.
            RemoteRefused: something was expected, and this kind of remote cannot compare and set.
        """

    def list_tags(self, name: str) -> list[str]:
        """The tags of a name, sorted, without those that hold referrers. A hint: one may be gone."""

    def list_referrers(self, name: str, subject: str) -> list[str]:
        """The digests of the manifests about an adapter, the oldest first; at most MAX_REFERRERS."""

    def put_referrer(self, name: str, subject: str, manifest: bytes) -> None:
        """Stores a manifest about an adapter, whose blobs are there, so that `list_referrers` names it."""

    def close(self) -> None:
        """Ends the connections."""


def parse_remote(text: str, *, docker_config: Path | None = None, patience: Patience = DEFAULT_PATIENCE) -> Remote:
    """Opens the remote of a URL; connects to nothing yet.

        oci://host/prefix          an OCI registry by https, or by http on this machine; oci+http:// by http anywhere
        s3://bucket/prefix         needs hotshoe[s3]; ?endpoint=https://…&region=… for another than Amazon's
        dir:///path                another store on this machine

    Args:
        docker_config: docker's config.json, which has the users and passwords of OCI registries.

    Raises:
        InvalidReference: it is no such URL.
        RemoteRefused: what it needs is not installed.
    """
    url = RemoteUrl.parse(text)
    match url.kind:  # imported here: a server without remotes needs none of it
        case "oci":
            from hotshoe.registry.remotes.oci import OciRemote
            from hotshoe.registry.remotes.oci_auth import DockerConfig

            return OciRemote(url, credentials=DockerConfig(docker_config).credentials, patience=patience)
        case "s3":
            from hotshoe.registry.remotes.s3 import S3Remote

            return S3Remote(url, patience=patience)
        case _:
            from hotshoe.registry.remotes.directory import DirectoryRemote

            return DirectoryRemote(url)
