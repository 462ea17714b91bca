"""The RPCs that carry blobs."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, BinaryIO

from hotshoe.protos.v1 import chunks, registry_pb2
from hotshoe.registry.errors import InvalidUpload
from hotshoe.registry.store.uploads import Upload
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.services.chunk_writer import ChunkWriter
from hotshoe.server.services.registry_part import RegistryPart, check_count, file_of
from hotshoe.server.services.rpc import Context, call, call_to_its_end

MAX_CHUNK_BYTES = 1 << 20  # of an upload


class BlobService(RegistryPart):
    """A part of `RegistryService`."""

    async def CheckBlobs(
        self, request: registry_pb2.CheckBlobsRequest, context: Context
    ) -> registry_pb2.CheckBlobsResponse:
        check_count("blobs", len(request.blobs))
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
        blob = file_of(first.blob)
        upload = await call(self._registry.open_upload if blob.digest else self._registry.begin_upload, blob)
        try:
            await _receive(requests, upload)
            if upload.received_bytes == blob.size_bytes:
                await call(upload.finish)
        finally:
            await call_to_its_end(upload.close)
        return registry_pb2.UploadBlobResponse(digest=upload.blob.digest, committed_bytes=upload.committed_bytes)

    async def DownloadBlob(  # type: ignore[override]  # encoded DownloadBlobResponses
        self, request: registry_pb2.DownloadBlobRequest, context: Context
    ) -> AsyncIterator[bytes]:
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
