"""An OCI image layout as it is written: blobs by digest, then index.json, which names them."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MODELPACK_TYPE = "application/vnd.cncf.model.manifest.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
SUBJECT = "dev.hotshoe.subject"  # in index.json, of documents about an adapter
LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
LAYOUT_VERSION = {"imageLayoutVersion": "1.0.0"}

_CHUNK_BYTES = 1 << 20


class LayoutWriter:
    """A new layout in a directory that is made for it. It is none until `finish` was called."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)

    def add(self, data: bytes) -> str:
        """Writes a blob; its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._path(digest).write_bytes(data)
        return digest

    def take(self, path: Path, digest: str) -> None:
        """Moves a file whose bytes have that digest in."""
        os.replace(path, self._path(digest))

    def open(self) -> "BlobWriter":
        """A blob that is written piece by piece."""
        return BlobWriter(self._blobs / ".writing", self.take)

    def finish(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        """Names the manifests, by their descriptors."""
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": list(manifests)}
        (self._root / LAYOUT_FILE).write_bytes(canonical_json(LAYOUT_VERSION))
        (self._root / INDEX_FILE).write_bytes(canonical_json(index))

    def _path(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")


class BlobWriter:
    """A file to write to; `digest` and `size_bytes` are known once the `with` block was left."""

    def __init__(self, path: Path, keep: Any) -> None:
        self._path = path
        self._keep = keep
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0
        self.digest = ""

    def __enter__(self) -> "BlobWriter":
        self._file: BinaryIO = self._path.open("wb")
        return self

    def write(self, data: bytes) -> int:
        """Appends some bytes; gives how many."""
        self._sha256.update(data)
        self.size_bytes += len(data)
        return self._file.write(data)

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if exc_type is not None:
            return
        self.digest = f"sha256:{self._sha256.hexdigest()}"
        self._keep(self._path, self.digest)


def descriptor(document: bytes, **fields: Any) -> dict[str, Any]:
    """What names a manifest."""
    digest = f"sha256:{hashlib.sha256(document).hexdigest()}"
    return {"mediaType": MANIFEST_TYPE, "digest": digest, "size": len(document), **fields}


def canonical_json(value: Any) -> bytes:
    """Equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
