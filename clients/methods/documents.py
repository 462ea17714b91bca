"""Documents about adapters: reports, signatures, and others."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hotshoe.clients import blob_messages, evaluations, registry_messages, signatures
from hotshoe.clients.channels import MAX_SMALL_BLOB_BYTES, QUICK_SECONDS
from hotshoe.clients.methods.adapters import AdapterMethods
from hotshoe.clients.retry import Attempts
from hotshoe.clients.streams import ResponseStream
from hotshoe.protos.v1 import registry_pb2 as registry

if TYPE_CHECKING:
    from hotshoe.registry.signing.keys import PrivateKey
    from hotshoe.registry.signing.policy import Policy
    from hotshoe.registry.signing.verdict import Verdict


class DocumentMethods(AdapterMethods):
    """Part of Client."""

    def attach(
        self,
        reference: str,
        document: bytes,
        *,
        artifact_type: str,
        file_name: str,
        annotations: Mapping[str, str] | None = None,
        timeout: float | None = QUICK_SECONDS,
    ) -> registry.AttachReferrerResponse:
        """Keeps a document of at most 1 MiB about an adapter, as its latest of that media type. Idempotent."""
        request = registry_messages.attach_request(
            reference, document, artifact_type=artifact_type, file_name=file_name, annotations=annotations or {}
        )
        return self._call(self._registry.AttachReferrer, request, timeout)

    def report(
        self,
        reference: str,
        report: Mapping[str, Any] | bytes,
        *,
        file_name: str = evaluations.EVALUATION_FILE,
        timeout: float | None = QUICK_SECONDS,
    ) -> registry.AttachReferrerResponse:
        """Keeps an evaluation's report about an adapter: a JSON object, or its bytes. The latest of a name is shown.

        Of what it has under "results" (as lm-evaluation-harness writes), "metrics" or at its top, the first figures
        are its summary. Raises ValueError where it is no JSON object.
        """
        request = evaluations.report_request(reference, report, file_name=file_name)
        return self._call(self._registry.AttachReferrer, request, timeout)

    def adopt_referrer(
        self, manifest: bytes, document: bytes, *, timeout: float | None = QUICK_SECONDS
    ) -> registry.AdoptReferrerResponse:
        """Keeps a document about an adapter that is here as it was attached elsewhere: its manifest byte for byte."""
        request = registry.AdoptReferrerRequest(manifest=manifest, document=document)
        return self._call(self._registry.AdoptReferrer, request, timeout)

    def read_blob(
        self, digest: str, *, max_bytes: int = MAX_SMALL_BLOB_BYTES, timeout: float | None = QUICK_SECONDS
    ) -> bytes:
        """A manifest, or a document about an adapter. Raises DataLoss if it has another digest, or more bytes."""
        request = registry.DownloadBlobRequest(digest=digest)
        blob = blob_messages.SmallBlob(digest, max_bytes)
        message: registry.DownloadBlobResponse
        with ResponseStream(*self._opening(self._registry.DownloadBlob, request, timeout)) as stream:
            for message in stream:
                blob.add(message.data)
        return blob.whole()

    def sign(
        self, reference: str, key: "PrivateKey", *, timeout: float | None = QUICK_SECONDS
    ) -> registry.AttachReferrerResponse:
        """Signs the digest that `reference` resolves to, here, and attaches the signature. The key stays here."""
        attempts = Attempts(self._retry, timeout)
        adapter = self.get_adapter(reference, timeout=attempts.remaining())
        request = signatures.sign_request(adapter, key)
        return self._call(self._registry.AttachReferrer, request, attempts.remaining())

    def verify(self, reference: str, policy: "Policy", *, timeout: float | None = QUICK_SECONDS) -> "Verdict":
        """Whose signatures a policy counts for an adapter, checked here: the server is not taken at its word.

        Raises DataLoss when what the server says of the adapter is not what its manifest says.
        """
        attempts = Attempts(self._retry, timeout)
        adapter = self.get_adapter(reference, timeout=attempts.remaining())
        manifest = self.read_blob(adapter.digest, timeout=attempts.remaining())
        signatures.check_manifest(adapter, manifest)
        bundles = [
            self.read_blob(digest, max_bytes=signatures.MAX_BUNDLE_BYTES, timeout=attempts.remaining())
            for digest in signatures.bundle_digests(adapter)
        ]
        return signatures.judge(adapter, policy, bundles)
