"""The full check of a store: every blob is read and hashed."""

from collections.abc import Callable
from dataclasses import dataclass

from hotshoe.registry.errors import BlobCorrupt, BlobNotFound, RemoteError
from hotshoe.registry.store.blobs import BlobStore
from hotshoe.registry.store.index import Index
from hotshoe.registry.store.quarantine import DamagedFile, Quarantine


@dataclass(frozen=True, slots=True)
class FsckReport:
    """What a full check found. `corrupt` blobs went to quarantine; `missing` ones some manifest needs. Those of both
    that are `healed` are whole again.
    """

    blobs: int  # sound when they were read
    blob_bytes: int
    corrupt: tuple[str, ...]
    missing: tuple[str, ...]
    healed: tuple[str, ...] = ()
    quarantine: tuple[DamagedFile, ...] = ()  # what lies there now

    @property
    def is_clean(self) -> bool:
        """Whether nothing was wrong."""
        return not self.corrupt and not self.missing

    @property
    def unhealed(self) -> tuple[str, ...]:
        """What is still wrong, sorted."""
        return tuple(sorted({*self.corrupt, *self.missing} - set(self.healed)))

    @property
    def only_damaged(self) -> tuple[str, ...]:
        """What of that has its damaged bytes in quarantine, and nowhere else; sorted."""
        return tuple(sorted({file.digest for file in self.quarantine}.intersection(self.unhealed)))


@dataclass(frozen=True, slots=True)
class FsckProgress:
    """How far a full check has come, of what there was when it began."""

    blobs: int
    blob_bytes: int
    total_blobs: int
    total_bytes: int


def check_blobs(
    blobs: BlobStore,
    index: Index,
    quarantine: Quarantine,
    *,
    heal: Callable[[str], bool] | None = None,
    progress: Callable[[FsckProgress], None] = lambda step: None,
) -> FsckReport:
    """Hashes every blob, whatever is remembered of it, while others publish and collect.

    Args:
        heal: puts a damaged or lost blob that a manifest names back; None leaves them to their next reader.
        progress: called before each blob, and once at the end; what it raises ends the check.
    """
    corrupt, present, done = [], set(), 0
    listed = list(blobs.scan())
    total = sum(size for _, size in listed)
    for number, (digest, size) in enumerate(listed):
        progress(FsckProgress(number, done, len(listed), total))
        done += size
        try:
            blobs.verify_again(digest)
            present.add(digest)
        except BlobCorrupt:
            corrupt.append(digest)
        except BlobNotFound:  # collected meanwhile, or lost: then a manifest names it
            continue
    progress(FsckProgress(len(listed), done, len(listed), total))
    sizes = dict(listed)
    # What was published meanwhile is there, though it was not when the blobs were listed.
    missing = {digest for digest in index.used_blobs() - present - set(corrupt) if blobs.size(digest) is None}
    missing &= index.used_blobs()
    healed = [digest for digest in sorted({*corrupt, *missing} & index.used_blobs()) if heal and _heals(heal, digest)]
    return FsckReport(
        len(present),
        sum(sizes[digest] for digest in present),
        tuple(sorted(corrupt)),
        tuple(sorted(missing)),
        tuple(healed),
        tuple(quarantine.files()),
    )


def _heals(heal: Callable[[str], bool], digest: str) -> bool:
    try:
        return heal(digest)
    except RemoteError:  # which cannot be reached now: the report says that the blob is not healed
        return False
