"""Referrers: documents about an adapter that are made after it, each an OCI manifest whose `subject` is the adapter's.

manifest  artifactType what the document is, subject the adapter's manifest
 config   application/vnd.oci.empty.v1+json, {}
 layers   the document, of type artifactType
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hotshoe.registry.digest import digest_of, is_digest
from hotshoe.registry.manifest import FILE_TITLE, MALFORMED, MANIFEST_TYPE, FileDescriptor, canonical_json

DIAGNOSIS_TYPE = "application/vnd.hotshoe.intruder.v1+json"
EVALUATION_TYPE = "application/vnd.hotshoe.eval.v1+json"
EMPTY_CONFIG = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


@dataclass(frozen=True, slots=True)
class Referrer:
    """One document about an adapter."""

    digest: str  # of its manifest
    subject: str  # of the adapter's
    artifact_type: str
    document: FileDescriptor
    annotations: Mapping[str, str]

    @property
    def blobs(self) -> tuple[str, ...]:
        """The digests that the manifest names, but for its subject."""
        return (digest_of(EMPTY_CONFIG), self.document.digest)


class NotAReferrer(Exception):
    """A manifest that `build_referrer` did not make."""


def build_referrer(
    *, subject: str, subject_bytes: int, artifact_type: str, document: FileDescriptor, annotations: Mapping[str, str]
) -> bytes:
    """The manifest of a document; a pure function of its arguments."""
    layer = {"mediaType": artifact_type, "digest": document.digest, "size": document.size_bytes}
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": artifact_type,
            "config": {"mediaType": _EMPTY_TYPE, "digest": digest_of(EMPTY_CONFIG), "size": len(EMPTY_CONFIG)},
            "layers": [{**layer, "annotations": {FILE_TITLE: document.file_name}}],
            "subject": {"mediaType": MANIFEST_TYPE, "digest": subject, "size": subject_bytes},
            "annotations": dict(annotations),
        }
    )


def read_referrer(document: bytes) -> Referrer:
    """Reads a manifest that `build_referrer` made.

    Raises:
        NotAReferrer: it is another document.
    """
    try:
        manifest: dict[str, Any] = json.loads(document)
        if manifest["config"]["digest"] != digest_of(EMPTY_CONFIG):
            raise NotAReferrer("it has a config of its own")
        [layer] = manifest["layers"]
        referrer = Referrer(
            digest=digest_of(document),
            subject=manifest["subject"]["digest"],
            artifact_type=str(manifest["artifactType"]),
            document=FileDescriptor(str(layer["annotations"][FILE_TITLE]), layer["digest"], int(layer["size"])),
            annotations=MappingProxyType({str(key): str(value) for key, value in manifest["annotations"].items()}),
        )
    except MALFORMED as error:
        raise NotAReferrer(f"it is no referrer's manifest ({type(error).__name__}: {error})") from error
    if not (is_digest(referrer.subject) and is_digest(referrer.document.digest)):
        raise NotAReferrer("it names a blob by something else than a sha256 digest")
    return referrer
