"""What all parts of the RegistryService work with."""

from concurrent.futures import Executor

from hotshoe.protos.v1 import registry_pb2, registry_pb2_grpc
from hotshoe.registry.attachment import MAX_DOCUMENT_BYTES
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.manifest import AdapterRecord, FileDescriptor
from hotshoe.registry.registry import Registry
from hotshoe.registry.verification import Verifier
from hotshoe.server.adapters.signature_gate import SignatureGate
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.services.adapter_messages import adapter_message
from hotshoe.server.services.doctor import Doctor
from hotshoe.server.services.registry_messages import verification_message
from hotshoe.server.services.rpc import call
from hotshoe.server.services.transfers import Transfers

MAX_BLOBS = 64


class RegistryPart(registry_pb2_grpc.RegistryServiceServicer):
    """The registry, and who examines, copies and verifies for it.

    Args:
        base: the model that published adapters are checked against.
        transfers: copies to and from the server's remotes.
        gate: the registry, for what is to be served.
        checking: for the full check of the store, one at a time.
        publish_doctor: what happens at publish: "warn", "require" or "off", as `ServerConfig.doctor` has it.
        verifier: None where no policy asks for signatures. With one, everything may be published all the same: an
            adapter can be signed once its digest is known, and until then it is not served.
    """

    def __init__(
        self,
        registry: Registry,
        base: BaseShape,
        *,
        transfers: Transfers,
        doctor: Doctor,
        publish_doctor: str,
        gate: SignatureGate,
        checking: Executor,
        verifier: Verifier | None = None,
    ) -> None:
        self._registry = registry
        self._transfers = transfers
        self._base = base
        self._doctor = doctor
        self._publish_doctor = publish_doctor
        self._gate = gate
        self._checking = checking
        self._verifier = verifier

    async def _verified_message(self, record: AdapterRecord) -> registry_pb2.Adapter:
        """An adapter as the wire has it, with what the policy says of its signatures."""
        message = adapter_message(record)
        if self._verifier is not None:
            verdict = await call(self._verifier.verdict, record.name, record.digest)
            message.verification.CopyFrom(verification_message(verdict))
        return message


def file_of(blob: registry_pb2.Blob) -> FileDescriptor:
    """A file, as a caller names it."""
    return FileDescriptor(file_name=blob.file_name, digest=blob.digest, size_bytes=blob.size_bytes)


def check_bytes(field: str, data: bytes) -> None:
    """Raises InvalidRequest for a document that is none, or too large."""
    if not 1 <= len(data) <= MAX_DOCUMENT_BYTES:
        raise InvalidRequest(field, f"expected 1 to {MAX_DOCUMENT_BYTES} bytes, not {len(data)}")


def check_count(field: str, count: int) -> None:
    """Raises InvalidRequest for more than a request may name."""
    if count > MAX_BLOBS:
        raise InvalidRequest(field, f"at most {MAX_BLOBS}, not {count}")
