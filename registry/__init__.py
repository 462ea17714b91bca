"""An adapter at rest: bytes, checked, canonical. Knows nothing of gRPC or of requests.

    with Registry(Path("registry")) as registry:
        adapter = registry.resolve("team/pirate:v1")
        print(adapter.kind, adapter.digest, registry.adapter_files(adapter.digest))

What is named here is imported when it is first used: clients sign and hash by this package, and need no store for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hotshoe.registry.errors import (
        AdapterNotFound,
        BlobCorrupt,
        BlobNotFound,
        IncompatibleAdapter,
        InvalidAdapter,
        InvalidDocument,
        InvalidReference,
        InvalidUpload,
        QuotaExceeded,
        RegistryError,
        RemoteDamaged,
        RemoteError,
        RemoteRefused,
        RemoteUnavailable,
        SignaturesMissing,
        StoreReadOnly,
        StoreUnavailable,
        TagImmutable,
        TagMoved,
    )
    from hotshoe.registry.formats.base import BaseShape
    from hotshoe.registry.manifest import AdapterRecord, FileDescriptor, Lineage, Parent
    from hotshoe.registry.reference import AdapterRef
    from hotshoe.registry.referrer import Referrer
    from hotshoe.registry.registry import Registry, StoreStats
    from hotshoe.registry.store.fsck import FsckProgress, FsckReport
    from hotshoe.registry.store.garbage import CollectedAdapter, GarbageReport
    from hotshoe.registry.store.index_rows import Lease
    from hotshoe.registry.store.quotas import Quota
    from hotshoe.registry.store.tag_log import LoggedMove, Move
    from hotshoe.registry.store.uploads import Upload

# Where they are; the others are errors.
_MODULES = {
    "AdapterRecord": "manifest",
    "AdapterRef": "reference",
    "BaseShape": "formats.base",
    "CollectedAdapter": "store.garbage",
    "FileDescriptor": "manifest",
    "FsckProgress": "store.fsck",
    "FsckReport": "store.fsck",
    "GarbageReport": "store.garbage",
    "Lease": "store.index_rows",
    "Lineage": "manifest",
    "LoggedMove": "store.tag_log",
    "Move": "store.tag_log",
    "Parent": "manifest",
    "Quota": "store.quotas",
    "Referrer": "referrer",
    "Registry": "registry",
    "StoreStats": "registry",
    "Upload": "store.uploads",
}

__all__ = [
    "AdapterNotFound",
    "AdapterRecord",
    "AdapterRef",
    "BaseShape",
    "BlobCorrupt",
    "BlobNotFound",
    "CollectedAdapter",
    "FileDescriptor",
    "FsckProgress",
    "FsckReport",
    "GarbageReport",
    "IncompatibleAdapter",
    "InvalidAdapter",
    "InvalidDocument",
    "InvalidReference",
    "InvalidUpload",
    "Lease",
    "Lineage",
    "LoggedMove",
    "Move",
    "Parent",
    "Quota",
    "QuotaExceeded",
    "Referrer",
    "Registry",
    "RegistryError",
    "RemoteDamaged",
    "RemoteError",
    "RemoteRefused",
    "RemoteUnavailable",
    "SignaturesMissing",
    "StoreStats",
    "StoreReadOnly",
    "StoreUnavailable",
    "TagImmutable",
    "TagMoved",
    "Upload",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
