"""The RPCs that keep documents about adapters, which callers bring."""

import logging

from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.adoption import check_referrer
from hotshoe.registry.attachment import check_attachment
from hotshoe.registry.digest import digest_of
from hotshoe.registry.referrer import DIAGNOSIS_TYPE, Referrer
from hotshoe.registry.registry import Registry
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.logs import log_event
from hotshoe.server.services.registry_messages import referrer_message
from hotshoe.server.services.registry_part import RegistryPart, check_bytes
from hotshoe.server.services.rpc import Context, call


class DocumentService(RegistryPart):
    """A part of `RegistryService`."""

    async def AttachReferrer(
        self, request: registry_pb2.AttachReferrerRequest, context: Context
    ) -> registry_pb2.AttachReferrerResponse:
        _check_type(request.artifact_type)
        record = await call(self._registry.resolve, request.reference)
        referrer = await call(
            self._registry.attach,
            record.digest,
            request.document,
            artifact_type=request.artifact_type,
            file_name=request.file_name,
            annotations=dict(request.annotations),
        )
        log_event(
            logging.INFO, "attach", name=record.name, digest=record.digest, type=referrer.artifact_type,
            document=referrer.document.digest,
        )  # fmt: skip
        return registry_pb2.AttachReferrerResponse(referrer=referrer_message(referrer), subject=record.digest)

    async def AdoptReferrer(
        self, request: registry_pb2.AdoptReferrerRequest, context: Context
    ) -> registry_pb2.AdoptReferrerResponse:
        check_bytes("manifest", request.manifest)
        referrer = await call(_adopt, self._registry, request.manifest, request.document)
        log_event(logging.INFO, "adopt_referrer", digest=referrer.subject, type=referrer.artifact_type)
        return registry_pb2.AdoptReferrerResponse(referrer=referrer_message(referrer), subject=referrer.subject)


def _check_type(artifact_type: str) -> None:
    """Raises InvalidRequest for what callers may not say of adapters."""
    if artifact_type == DIAGNOSIS_TYPE:
        raise InvalidRequest("artifact_type", f"{DIAGNOSIS_TYPE} is what the server's doctor attaches")


def _adopt(registry: Registry, manifest: bytes, document: bytes) -> Referrer:
    """Keeps a document that was attached elsewhere, as it stands, if it could be attached here.

    Raises:
        InvalidRequest, InvalidAdapter, InvalidDocument: it could not, or is not what the manifest names.
        AdapterNotFound, BlobCorrupt, StoreUnavailable: as `Registry.adopt_referrer`.
    """
    referrer = check_referrer(manifest)
    _check_type(referrer.artifact_type)
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
