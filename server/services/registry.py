"""RegistryService: message ⇄ core type. The registry blocks on the disk, so every call of it runs in the executor."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, BinaryIO

from hotshoe.protos.v1 import chunks, registry_pb2
from hotshoe.registry.adoption import check_manifest
from hotshoe.registry.attachment import MAX_DOCUMENT_BYTES
from hotshoe.registry.errors import IncompatibleAdapter, InvalidUpload
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.manifest import Lineage, Parent
from hotshoe.registry.recipes.lora_files import lora_files
from hotshoe.registry.recipes.merge_parameters import MergeParameters
from hotshoe.registry.reference import AdapterRef, check_name
from hotshoe.registry.registry import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    AdapterRecord,
    FileDescriptor,
    Registry,
    Upload,
)
from hotshoe.registry.remotes.transfer import TransferProgress
from hotshoe.registry.verification import Verifier
from hotshoe.server.adapters.signature_gate import SignatureGate
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.logs import log_event
from hotshoe.server.services.adapter_messages import adapter_message
from hotshoe.server.services.chunk_writer import ChunkWriter
from hotshoe.server.services.diagnosis_messages import diagnosis_message
from hotshoe.server.services.doctor import Doctor
from hotshoe.server.services.documents import adopt_document, check_type
from hotshoe.server.services.keeping import KeepingService
from hotshoe.server.services.registry_messages import (
    move_message,
    progress_message,
    referrer_message,
    verification_message,
)
from hotshoe.server.services.relations import comparison_message, lineage_message
from hotshoe.server.services.rpc import Context, call, call_to_its_end
from hotshoe.server.services.transfers import Transfers, tags_of

MAX_CHUNK_BYTES = 1 << 20  # of an upload
MAX_BLOBS = 64


class RegistryService(KeepingService):
    """The registry for those who are not on its disk.

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
        super().__init__(registry, gate, checking)
        self._registry = registry
        self._transfers = transfers
        self._base = base
        self._doctor = doctor
        self._publish_doctor = publish_doctor
        self._verifier = verifier

    async def CheckBlobs(
        self, request: registry_pb2.CheckBlobsRequest, context: Context
    ) -> registry_pb2.CheckBlobsResponse:
        _check_count("blobs", len(request.blobs))
        missing = await call(self._registry.missing_blobs, [blob.digest for blob in request.blobs])
        return registry_pb2.CheckBlobsResponse(missing_digests=missing)

    async def UploadBlob(
        self, requests: AsyncIterator[registry_pb2.UploadBlobRequest | chunks.Chunk], context: Context
    ) -> registry_pb2.UploadBlobResponse:
        """The blob's message alone asks how far an earlier upload got; data then goes on from there, or from 0.

        Without a digest it begins a new one, and a later message says the digest.
        """
        first = await anext(requests, None)
        if not isinstance(first, registry_pb2.UploadBlobRequest) or first.WhichOneof("part") != "blob":
            raise InvalidUpload("the first message must name the blob")
        blob = _file(first.blob)
        upload = await call(self._registry.open_upload if blob.digest else self._registry.begin_upload, blob)
        try:
            await _receive(requests, upload)
            if upload.received_bytes == blob.size_bytes:
                await call(upload.finish)
        finally:
            await call_to_its_end(upload.close)
        return registry_pb2.UploadBlobResponse(digest=upload.blob.digest, committed_bytes=upload.committed_bytes)

    async def DownloadBlob(self, request: registry_pb2.DownloadBlobRequest, context: Context) -> AsyncIterator[bytes]:
        """Encoded DownloadBlobResponses."""
        if request.offset < 0:
            raise InvalidRequest("offset", f"must be 0 or more, not {request.offset}")
        file: BinaryIO = await call(self._registry.read_blob, request.digest, request.offset)
        reading = asyncio.ensure_future(call(file.read, chunks.CHUNK_BYTES))
        try:
            while data := await asyncio.shield(reading):
                reading = asyncio.ensure_future(call(file.read, chunks.CHUNK_BYTES))  # while this one is sent
                yield chunks.download_chunk(data)
        finally:
            await _settled(reading)
            file.close()

    async def PublishAdapter(
        self, request: registry_pb2.PublishAdapterRequest, context: Context
    ) -> registry_pb2.PublishAdapterResponse:
        _check_count("blobs", len(request.blobs))
        files = [_file(blob) for blob in request.blobs]
        diagnosis = cut = None
        if rank := request.approximate_rank:
            paths = await call(self._registry.uploaded_files, files)
            cut = await self._doctor.approximate(paths, rank=rank)
        if self._publish_doctor == "require":
            paths = await call(self._registry.uploaded_files, files)
            diagnosis = await self._doctor.refuse_bad(request.name, paths, approximate_rank=rank)
        publish = partial(
            self._registry.publish,
            name=request.name,
            tags=list(request.tags),
            files=files,
            annotations=dict(request.annotations),
            base=self._base,
            validate_only=request.validate_only,
            approximation=None if cut is None else cut.approximation,
        )
        record, created = await call(publish)
        if not request.validate_only:
            tags = ",".join(request.tags) or "-"
            log_event(
                logging.INFO,
                "publish",
                name=record.name,
                digest=record.digest,
                tags=tags,
                kind=record.kind,
                new=created,
            )
            if cut is not None:
                await call(self._doctor.keep, record, cut)
            if diagnosis is not None:
                await call(self._doctor.attach, record, diagnosis)
            elif self._publish_doctor == "warn":
                diagnosis = await self._doctor.examine_soon(record)
        return registry_pb2.PublishAdapterResponse(
            adapter=await self._verified_message(record),
            created=created,
            diagnosis=None if diagnosis is None else diagnosis_message(diagnosis, with_linears=False),
        )

    async def AdoptAdapter(
        self, request: registry_pb2.AdoptAdapterRequest, context: Context
    ) -> registry_pb2.AdoptAdapterResponse:
        """Who brings an adapter here wants to serve it: one of another base is refused, as by PublishAdapter."""
        _check_bytes("manifest", request.manifest)
        content = check_manifest(request.manifest)
        if content.base_digest != self._base.digest:
            problem = f"the adapter is for {content.base_digest}; the base model here, {self._base.name}, is "
            raise IncompatibleAdapter("manifest.annotations", problem + self._base.digest)
        adopt = partial(
            self._registry.adopt,
            request.manifest,
            name=request.name,
            tags=list(request.tags),
            base=self._base,
            approve=self._transfers.approve(request.name),
        )
        record, created = await call(adopt)
        log_event(logging.INFO, "adopt", name=record.name, digest=record.digest, new=created)
        if self._publish_doctor == "warn":
            await self._doctor.examine_soon(record)
        return registry_pb2.AdoptAdapterResponse(adapter=await self._verified_message(record), created=created)

    async def AdoptReferrer(
        self, request: registry_pb2.AdoptReferrerRequest, context: Context
    ) -> registry_pb2.AdoptReferrerResponse:
        _check_bytes("manifest", request.manifest)
        referrer = await call(adopt_document, self._registry, request.manifest, request.document)
        log_event(logging.INFO, "adopt_referrer", digest=referrer.subject, type=referrer.artifact_type)
        return registry_pb2.AdoptReferrerResponse(referrer=referrer_message(referrer), subject=referrer.subject)

    async def GetAdapter(
        self, request: registry_pb2.GetAdapterRequest, context: Context
    ) -> registry_pb2.GetAdapterResponse:
        record = await call(self._registry.resolve, request.reference)
        message = await self._verified_message(record)
        message.referrers.extend(map(referrer_message, await call(self._registry.referrers, record.digest)))
        return registry_pb2.GetAdapterResponse(adapter=message)

    async def AttachReferrer(
        self, request: registry_pb2.AttachReferrerRequest, context: Context
    ) -> registry_pb2.AttachReferrerResponse:
        check_type(request.artifact_type)
        record = await call(self._registry.resolve, request.reference)
        attach = partial(
            self._registry.attach,
            record.digest,
            request.document,
            artifact_type=request.artifact_type,
            file_name=request.file_name,
            annotations=dict(request.annotations),
        )
        referrer = await call(attach)
        log_event(
            logging.INFO, "attach", name=record.name, digest=record.digest, type=referrer.artifact_type,
            document=referrer.document.digest,
        )  # fmt: skip
        return registry_pb2.AttachReferrerResponse(referrer=referrer_message(referrer), subject=record.digest)

    async def _verified_message(self, record: AdapterRecord) -> registry_pb2.Adapter:
        """An adapter as the wire has it, with what the policy says of its signatures."""
        message = adapter_message(record)
        if self._verifier is not None:
            verdict = await call(self._verifier.verdict, record.name, record.digest)
            message.verification.CopyFrom(verification_message(verdict))
        return message

    async def DiagnoseAdapter(
        self, request: registry_pb2.DiagnoseAdapterRequest, context: Context
    ) -> registry_pb2.DiagnoseAdapterResponse:
        """The report of a published adapter becomes its latest."""
        _check_count("blobs", len(request.blobs))
        if bool(request.reference) == bool(request.blobs):
            raise InvalidRequest("reference", "expected a reference or blobs, and not both")
        if request.blobs:
            files = await call(self._registry.uploaded_files, [_file(blob) for blob in request.blobs])
            rank = request.approximate_rank
            diagnosis = await self._doctor.diagnose(files, exact=request.exact, approximate_rank=rank)
            return registry_pb2.DiagnoseAdapterResponse(diagnosis=diagnosis_message(diagnosis))
        record = await call(self._registry.resolve, request.reference)
        files = await call(self._registry.adapter_files, record.digest)
        rank = record.approximate_rank
        diagnosis = await self._doctor.diagnose(files, exact=request.exact, approximate_rank=rank)
        referrer = await call(self._doctor.attach, record, diagnosis)
        return registry_pb2.DiagnoseAdapterResponse(
            diagnosis=diagnosis_message(diagnosis), referrer=referrer_message(referrer)
        )

    async def MitigateAdapter(
        self, request: registry_pb2.MitigateAdapterRequest, context: Context
    ) -> registry_pb2.MitigateAdapterResponse:
        if not 0 <= request.keep < 1:
            raise InvalidRequest("keep", f"expected a number from 0 to below 1, not {request.keep}")
        parent = await call(self._registry.resolve, request.reference)
        parts = await call(self._registry.adapter_files, parent.digest)
        rank = parent.approximate_rank
        mitigation = await self._doctor.mitigate(parts, keep=request.keep, approximate_rank=rank)
        made = lora_files(mitigation.updates, self._base, base_name=parent.base_model)
        files = await call(self._registry.add_files, made)
        paths = await call(self._registry.uploaded_files, files)
        if self._publish_doctor == "require":
            diagnosis = await self._doctor.refuse_bad(request.name, paths, exact=True)
        else:
            diagnosis = await self._doctor.diagnose(paths, exact=True)
        recipe = {"op": "mitigate", "keep": request.keep, "intruders": mitigation.shrunk}
        record = await self._publish_made(request, files, Lineage((Parent(parent.digest, 1.0),), recipe))
        await call(self._doctor.attach, record, diagnosis)
        log_event(logging.INFO, "mitigate", name=record.name, digest=record.digest, parent=parent.digest)
        return registry_pb2.MitigateAdapterResponse(
            adapter=adapter_message(record),
            diagnosis=diagnosis_message(diagnosis),
            shrunk=mitigation.shrunk,
            energy_kept=mitigation.energy_kept,
        )

    async def MergeAdapters(
        self, request: registry_pb2.MergeAdaptersRequest, context: Context
    ) -> registry_pb2.MergeAdaptersResponse:
        parameters = MergeParameters.parse(request.method, dict(request.parameters))
        weights = [source.weight if source.HasField("weight") else 1.0 for source in request.sources]
        parameters.check_parents(weights)
        _check_count("sources", len(weights))
        parents = [await call(self._registry.resolve, source.reference) for source in request.sources]
        parts = [
            (await call(self._registry.adapter_files, parent.digest), parent.approximate_rank) for parent in parents
        ]
        merged = await self._doctor.merge(parts, weights, parameters, base_name=parents[0].base_model)
        files = await call(self._registry.add_files, merged.files)
        if self._publish_doctor == "require":
            await self._doctor.refuse_bad(request.name, await call(self._registry.uploaded_files, files))
        lineage = Lineage(
            tuple(Parent(parent.digest, weight) for parent, weight in zip(parents, weights, strict=True)),
            merged.recipe,
        )
        record = await self._publish_made(request, files, lineage)
        if self._publish_doctor == "warn":
            await self._doctor.examine_soon(record)
        log_event(logging.INFO, "merge", name=record.name, digest=record.digest, method=parameters.method)
        return registry_pb2.MergeAdaptersResponse(adapter=adapter_message(record), energy_kept=merged.energy_kept)

    async def PushAdapter(
        self, request: registry_pb2.PushAdapterRequest, context: Context
    ) -> AsyncIterator[registry_pb2.PushAdapterResponse]:
        ref = AdapterRef.parse(request.reference)
        record = await call(self._registry.resolve, request.reference)
        expected = request.expected_digest if request.HasField("expected_digest") else None
        tags = tags_of(ref, request.tags)
        steps = self._transfers.push(record, request.remote, name=request.name, tags=tags, expected=expected)
        async with contextlib.aclosing(steps):
            async for step in steps:
                assert isinstance(step, TransferProgress), "a push brings nothing here"
                yield registry_pb2.PushAdapterResponse(progress=progress_message(step))
        log_event(logging.INFO, "push", name=record.name, digest=record.digest, remote=request.remote)
        yield registry_pb2.PushAdapterResponse(adapter=adapter_message(record))

    async def PullAdapter(
        self, request: registry_pb2.PullAdapterRequest, context: Context
    ) -> AsyncIterator[registry_pb2.PullAdapterResponse]:
        """A caller that goes away ends the transfer; what has come is kept for the next."""
        if request.all_tags:
            steps = self._transfers.mirror(request.remote, check_name(request.reference), as_name=request.name)
        else:
            ref = AdapterRef.parse(request.reference)
            tags = tags_of(ref, request.tags)
            steps = self._transfers.pull(request.remote, ref, name=request.name, tags=tags)
        async with contextlib.aclosing(steps):
            async for step in steps:
                if isinstance(step, TransferProgress):
                    yield registry_pb2.PullAdapterResponse(progress=progress_message(step))
                    continue
                record = step.record
                log_event(
                    logging.INFO,
                    "pull",
                    name=record.name,
                    digest=record.digest,
                    remote=request.remote,
                    new=step.created,
                )
                if self._publish_doctor == "warn" and record.base_digest == self._base.digest:
                    await self._doctor.examine_soon(record)
                yield registry_pb2.PullAdapterResponse(adapter=adapter_message(record), created=step.created)

    async def _publish_made(
        self,
        request: registry_pb2.MitigateAdapterRequest | registry_pb2.MergeAdaptersRequest,
        files: Sequence[FileDescriptor],
        lineage: Lineage,
    ) -> AdapterRecord:
        """Publishes what was made of other adapters, under the name and the tags that were asked for."""
        publish = partial(
            self._registry.publish,
            name=request.name,
            tags=list(request.tags),
            files=files,
            annotations={},
            base=self._base,
            lineage=lineage,
        )
        record, _ = await call(publish)
        return record

    async def GetLineage(
        self, request: registry_pb2.GetLineageRequest, context: Context
    ) -> registry_pb2.GetLineageResponse:
        return await call(lineage_message, self._registry, request.reference)

    async def CompareAdapters(
        self, request: registry_pb2.CompareAdaptersRequest, context: Context
    ) -> registry_pb2.CompareAdaptersResponse:
        first, second = [await call(self._registry.resolve, ref) for ref in (request.first, request.second)]
        files = [await call(self._registry.adapter_files, record.digest) for record in (first, second)]
        found = await self._doctor.compare((files[0], first.approximate_rank), (files[1], second.approximate_rank))
        return await call(comparison_message, (first, second), (files[0], files[1]), found)

    async def ListAdapters(
        self, request: registry_pb2.ListAdaptersRequest, context: Context
    ) -> registry_pb2.ListAdaptersResponse:
        if request.page_size < 0:
            raise InvalidRequest("page_size", f"must be 0 or more, not {request.page_size}")
        page = partial(
            self._registry.list,
            page_size=request.page_size,
            page_token=request.page_token,
            name_contains=request.name_contains,
            kind=request.kind,
        )
        records, token = await call(page)
        return registry_pb2.ListAdaptersResponse(adapters=map(adapter_message, records), next_page_token=token)

    async def UpdateTag(
        self, request: registry_pb2.UpdateTagRequest, context: Context
    ) -> registry_pb2.UpdateTagResponse:
        record = await call(
            self._registry.update_tag, request.name, request.tag, request.digest, request.expected_digest
        )
        log_event(logging.INFO, "update_tag", name=request.name, tag=request.tag, digest=record.digest)
        return registry_pb2.UpdateTagResponse(adapter=adapter_message(record))

    async def DeleteTag(
        self, request: registry_pb2.DeleteTagRequest, context: Context
    ) -> registry_pb2.DeleteTagResponse:
        await call(self._registry.delete_tag, request.name, request.tag)
        log_event(logging.INFO, "delete_tag", name=request.name, tag=request.tag)
        return registry_pb2.DeleteTagResponse()

    async def RollBackTag(
        self, request: registry_pb2.RollBackTagRequest, context: Context
    ) -> registry_pb2.RollBackTagResponse:
        record, previous = await call(self._registry.roll_back_tag, request.name, request.tag)
        log_event(logging.INFO, "roll_back_tag", name=request.name, tag=request.tag, digest=record.digest)
        return registry_pb2.RollBackTagResponse(adapter=adapter_message(record), previous_digest=previous or "")

    async def ListTagMoves(
        self, request: registry_pb2.ListTagMovesRequest, context: Context
    ) -> registry_pb2.ListTagMovesResponse:
        if request.limit < 0:
            raise InvalidRequest("limit", f"must be 0 or more, not {request.limit}")
        limit = min(request.limit or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        history = await call(partial(self._registry.tag_history, request.name, request.tag, limit=limit))
        return registry_pb2.ListTagMovesResponse(moves=map(move_message, history))


async def _receive(requests: AsyncIterator[registry_pb2.UploadBlobRequest | chunks.Chunk], upload: Upload) -> None:
    """Ends with the stream, or as soon as it is known that the blob is stored already."""
    writer = ChunkWriter(upload)
    try:
        async for message in requests:
            if message.WhichOneof("part") == "blob":
                assert isinstance(message, registry_pb2.UploadBlobRequest)
                if await writer.name(message.blob.digest):
                    return
                continue
            if message.WhichOneof("part") != "data":
                raise InvalidUpload("expected data, or the digest of an upload that began without one")
            if len(message.data) > MAX_CHUNK_BYTES:
                raise InvalidUpload(f"data: {len(message.data)} bytes in one message; at most {MAX_CHUNK_BYTES}")
            await writer.put(message.offset, message.data)
        await writer.finish()
    finally:
        await writer.stop()


async def _settled(working: "asyncio.Future[Any]") -> None:
    """Waits for what a thread does with a file, which only one may use, also where its caller has gone."""
    await asyncio.wait([working])
    working.exception()  # somebody looked


def _file(blob: registry_pb2.Blob) -> FileDescriptor:
    return FileDescriptor(file_name=blob.file_name, digest=blob.digest, size_bytes=blob.size_bytes)


def _check_bytes(field: str, data: bytes) -> None:
    if not 1 <= len(data) <= MAX_DOCUMENT_BYTES:
        raise InvalidRequest(field, f"expected 1 to {MAX_DOCUMENT_BYTES} bytes, not {len(data)}")


def _check_count(field: str, count: int) -> None:
    if count > MAX_BLOBS:
        raise InvalidRequest(field, f"at most {MAX_BLOBS}, not {count}")
