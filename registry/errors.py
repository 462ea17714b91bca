"""What the registry refuses, in its own words.

RegistryError
├── InvalidAdapter          the files are not an adapter that can be served exactly
│   └── IncompatibleAdapter they are, but not on this base model
├── InvalidReference        not name, name:tag or name@sha256:<hex>
├── InvalidDocument         what is to be attached to an adapter is not what its type says
├── SignaturesMissing       the policy asks for signatures that are not there
├── InvalidUpload           bytes that are not what their descriptor says, or out of order
├── AdapterNotFound         no such name, tag or digest
├── BlobNotFound            a manifest names a blob that is not here: upload it again
├── TagMoved                compare-and-set lost
├── TagImmutable            a version tag that would move
├── QuotaExceeded           the store, or a part of its names, is full
├── BlobCorrupt             stored bytes no longer match their digest
├── StoreUnavailable        the disk refused
│   └── StoreReadOnly       the store is only read here, and something was to be written
└── RemoteError             another registry; `remote` is its URL
    ├── RemoteUnavailable   it cannot be reached, is too slow, or fails
    ├── RemoteRefused       it does not let us, or wants what we do not do
    └── RemoteDamaged       what it sent is not what it should be
"""

from collections.abc import Sequence


class RegistryError(Exception):
    """Base of everything that the registry raises on purpose."""


class InvalidAdapter(RegistryError):
    """A file or a field of an adapter is wrong; `field` names it, `problem` says what was expected."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class IncompatibleAdapter(InvalidAdapter):
    """A sound adapter that does not fit the base model it was held against."""


class InvalidDocument(RegistryError):
    """A document about an adapter is wrong; `field` names what of it, `problem` says what was expected."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class SignaturesMissing(RegistryError):
    """An adapter that the policy does not let be served under that name; the message says what is missing."""


class InvalidReference(RegistryError):
    """Text that is not a reference, a name, a tag or a digest; `field` is what the caller gave it as."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class InvalidUpload(RegistryError):
    """Uploaded bytes that disagree with their descriptor, or leave a gap."""


class AdapterNotFound(RegistryError):
    """No adapter has that name, tag or digest."""


class BlobNotFound(RegistryError):
    """Blobs that the caller must upload (again); `digests` lists them."""

    def __init__(self, digests: Sequence[str]) -> None:
        super().__init__(f"blobs not in the registry: {', '.join(digests)}")
        self.digests = tuple(digests)


class TagMoved(RegistryError):
    """The tag does not point where the caller thought; `actual` is where it points, None if nowhere."""

    def __init__(self, reference: str, expected: str | None, actual: str | None) -> None:
        super().__init__(f"tag {reference} points at {actual or 'nothing'}, not at {expected or 'nothing'}")
        self.actual = actual


class TagImmutable(RegistryError):
    """A version tag was asked to point at other bytes; `actual` is where it points."""

    def __init__(self, reference: str, actual: str) -> None:
        super().__init__(f"tag {reference} is a version and stays at {actual}; publish under a new version")
        self.actual = actual


class QuotaExceeded(RegistryError):
    """A publication would exceed what may be stored under its name."""


class BlobCorrupt(RegistryError):
    """A stored blob no longer has the digest it is named by."""


class StoreUnavailable(RegistryError):
    """The disk refused a read or a write; nothing was acknowledged."""


class StoreReadOnly(StoreUnavailable):
    """The store's directory cannot be written from here, now or later; the message says which, why, and what to do."""


class RemoteError(RegistryError):
    """Another registry could not be used; `remote` is its URL, and nothing of it was kept."""

    def __init__(self, remote: str, problem: str) -> None:
        super().__init__(f"{remote}: {problem}")
        self.remote = remote
        self.problem = problem


class RemoteUnavailable(RemoteError):
    """It cannot be reached, took too long, or failed; another time it may work."""


class RemoteRefused(RemoteError):
    """It refuses what was asked, or asks for what is not done here, such as a password over plain http."""


class RemoteDamaged(RemoteError):
    """It sent other bytes than it was asked for."""
