"""Documents about adapters that callers bring."""

from hotshoe.registry.adoption import check_referrer
from hotshoe.registry.attachment import check_attachment
from hotshoe.registry.digest import digest_of
from hotshoe.registry.referrer import DIAGNOSIS_TYPE, Referrer
from hotshoe.registry.registry import Registry
from hotshoe.server.errors import InvalidRequest


def check_type(artifact_type: str) -> None:
    """Raises InvalidRequest for what callers may not say of adapters."""
    if artifact_type == DIAGNOSIS_TYPE:
        raise InvalidRequest("artifact_type", f"{DIAGNOSIS_TYPE} is what the server's doctor attaches")


def adopt_document(registry: Registry, manifest: bytes, document: bytes) -> Referrer:
    """Keeps a document that was attached elsewhere, as it stands, if it could be attached here.

    Raises:
        InvalidRequest, InvalidAdapter, InvalidDocument: it could not, or is not what the manifest names.
        AdapterNotFound, BlobCorrupt, StoreUnavailable: as `Registry.adopt_referrer`.
    """
    referrer = check_referrer(manifest)
    check_type(referrer.artifact_type)
    if digest_of(document) != referrer.document.digest or len(document) != referrer.document.size_bytes:
        raise InvalidRequest("document", f"expected {referrer.document.size_bytes} bytes {referrer.document.digest}")
    check_attachment(
        referrer.subject,
        document,
        artifact_type=referrer.artifact_type,
        file_name=referrer.document.file_name,
        annotations=referrer.annotations,
    )
    registry.add_files({referrer.document.file_name: document})
    return registry.adopt_referrer(manifest)
