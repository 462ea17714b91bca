"""The full check of a store: every blob is read and hashed."""

from dataclasses import dataclass

from hotshoe.registry.blobs import BlobStore
from hotshoe.registry.errors import BlobCorrupt, BlobNotFound
from hotshoe.registry.index import Index


@dataclass(frozen=True, slots=True)
class FsckReport:
    """What a full check found. `corrupt` blobs are now in quarantine; `missing` ones some manifest needs."""

    blobs: int
    blob_bytes: int
    corrupt: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        return not self.corrupt and not self.missing


def check_blobs(blobs: BlobStore, index: Index) -> FsckReport:
    """Hashes every blob, whatever is remembered of it, while others publish and collect."""
    corrupt, present, total = [], set(), 0
    for digest, _ in blobs.scan():
        try:
            total += blobs.verify_again(digest)
            present.add(digest)
        except BlobCorrupt:
            corrupt.append(digest)
        except BlobNotFound:  # collected meanwhile, or lost: then a manifest names it
            continue
    # What was published meanwhile is there, though it was not when the blobs were listed.
    missing = {digest for digest in index.used_blobs() - present - set(corrupt) if blobs.size(digest) is None}
    missing &= index.used_blobs()
    return FsckReport(len(present), total, tuple(sorted(corrupt)), tuple(sorted(missing)))
