"""An adapter's files on their way to and from a server, on an event loop. Twin of `transfers.py`."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from hotshoe.clients import blob_messages
from hotshoe.clients.adapter_files import LARGE_BYTES, AdapterFile, find_files, hash_counter, hash_file
from hotshoe.clients.connection import call_aio
from hotshoe.clients.downloads import PartialDownload
from hotshoe.clients.errors import NotFound, from_rpc_error
from hotshoe.clients.progress import Progress, ProgressCounter
from hotshoe.clients.retry import Attempts
from hotshoe.protos.v1 import registry_pb2 as registry


class AsyncTransfers:
    """What one call of the client sends and fetches, within its attempts; a stream that breaks goes on where it broke.

    `stub` is the registry's.
    """

    def __init__(self, stub: Any, attempts: Attempts, progress: Progress) -> None:
        self._stub = stub
        self._attempts = attempts
        self._progress = progress

    async def scan(self, directory: str | os.PathLike[str]) -> list[AdapterFile]:
        """Hashes a directory's files; large weights are sent meanwhile."""
        weights, *others = paths = await asyncio.to_thread(find_files, directory)
        counter = hash_counter(paths, self._progress)
        hashing = asyncio.ensure_future(asyncio.to_thread(hash_file, weights, counter))
        if weights.stat().st_size >= LARGE_BYTES:
            names = blob_messages.LateNames(weights, self._progress)
            # If it breaks, what follows sends the rest, or says why not.
            try:
                await self._stub.UploadBlob(_late_requests(names, hashing), timeout=self._attempts.remaining())
            except grpc.RpcError:
                pass
            except asyncio.CancelledError:  # by gRPC, where hashing failed; that is raised below
                if not hashing.done() or hashing.cancelled() or hashing.exception() is None:
                    raise
        return [await hashing, *[await asyncio.to_thread(hash_file, path, counter) for path in others]]

    async def upload_missing(self, files: Sequence[AdapterFile]) -> None:
        """Sends those files that the registry lacks."""
        response = await call_aio(self._stub.CheckBlobs, blob_messages.check_request(files), self._attempts.anew())
        missing = [file for file in files if file.digest in response.missing_digests]
        counter = ProgressCounter("upload", sum(file.size_bytes for file in missing), self._progress)
        for file in missing:
            await self._upload(file, counter)

    async def publish(
        self, files: Sequence[AdapterFile], request: registry.PublishAdapterRequest
    ) -> registry.PublishAdapterResponse:
        """Sends what the registry lacks of the files, and has them made an adapter."""
        try:
            return await self._publish(files, request)
        except NotFound as error:
            if error.reason != "BLOB_NOT_FOUND":  # collected since it was checked
                raise
        return await self._publish(files, request)

    async def download(self, adapter: registry.Adapter, directory: Path) -> None:
        """Writes an adapter's files into a directory. Raises DataLoss: what came has another digest."""
        counter = ProgressCounter("download", sum(blob.size_bytes for blob in adapter.blobs), self._progress)
        for blob in adapter.blobs:
            await self._download(blob, PartialDownload(directory, blob), counter)

    async def _publish(
        self, files: Sequence[AdapterFile], request: registry.PublishAdapterRequest
    ) -> registry.PublishAdapterResponse:
        await self.upload_missing(files)
        response: registry.PublishAdapterResponse = await call_aio(
            self._stub.PublishAdapter, request, self._attempts.anew()
        )
        return response

    async def _upload(self, file: AdapterFile, counter: ProgressCounter) -> None:
        furthest = 0
        while True:
            try:
                probe = await self._stub.UploadBlob(
                    blob_messages.upload_probe(file), timeout=self._attempts.remaining()
                )
                if probe.committed_bytes > furthest:
                    furthest = probe.committed_bytes
                    self._attempts.progressed()
                if probe.committed_bytes < file.size_bytes:
                    requests = blob_messages.upload_requests(file, probe.committed_bytes, counter)
                    await self._stub.UploadBlob(requests, timeout=self._attempts.remaining())
                return counter.finish(file.file_name, file.size_bytes)
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            await asyncio.sleep(self._attempts.wait_after(failure))

    async def _download(self, blob: registry.Blob, target: PartialDownload, counter: ProgressCounter) -> None:
        if await asyncio.to_thread(target.already_here):
            return counter.finish(blob.file_name, blob.size_bytes)
        with target:
            # What an earlier pull left may have been wrong: then once more, from the start.
            for _ in range(2 if target.offset else 1):
                await self._receive(blob, target, counter)
                if await asyncio.to_thread(target.commit):
                    break
            else:
                raise blob_messages.corrupt_download(blob)
        counter.finish(blob.file_name, blob.size_bytes)

    async def _receive(self, blob: registry.Blob, target: PartialDownload, counter: ProgressCounter) -> None:
        while target.offset < blob.size_bytes:
            request = registry.DownloadBlobRequest(digest=blob.digest, offset=target.offset)
            download = self._stub.DownloadBlob(request, timeout=self._attempts.remaining())
            try:
                async for message in download:
                    target.write(message.data)
                    self._attempts.progressed()
                    counter.at(blob.file_name, target.offset)
                    if target.offset > blob.size_bytes:
                        break
                return
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            finally:
                download.cancel()
            await asyncio.sleep(self._attempts.wait_after(failure))


async def _late_requests(
    names: blob_messages.LateNames, hashing: "asyncio.Future[AdapterFile]"
) -> AsyncIterator[registry.UploadBlobRequest | bytes]:
    for request in names.requests(hashing):
        yield request
    if not names.named:
        yield names.name(await hashing)
