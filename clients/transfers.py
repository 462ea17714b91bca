"""An adapter's files on their way to and from a server. `aio_transfers.py` is the asyncio twin."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from hotshoe.clients import blob_messages
from hotshoe.clients.adapter_files import LARGE_BYTES, AdapterFile, find_files, hash_counter, hash_file
from hotshoe.clients.connection import call
from hotshoe.clients.downloads import PartialDownload
from hotshoe.clients.errors import NotFound, from_rpc_error
from hotshoe.clients.progress import Progress, ProgressCounter
from hotshoe.clients.retry import Attempts
from hotshoe.protos.v1 import registry_pb2 as registry


class Transfers:
    """What one call of the client sends and fetches, within its attempts; a stream that breaks goes on where it broke.

    `stub` is the registry's.
    """

    def __init__(self, stub: Any, attempts: Attempts, progress: Progress) -> None:
        self._stub = stub
        self._attempts = attempts
        self._progress = progress

    def scan(self, directory: str | os.PathLike[str]) -> list[AdapterFile]:
        """Hashes a directory's files; large weights are sent meanwhile."""
        weights, *others = paths = find_files(directory)
        counter = hash_counter(paths, self._progress)
        if weights.stat().st_size < LARGE_BYTES:
            return [hash_file(path, counter) for path in paths]
        with ThreadPoolExecutor(1, thread_name_prefix="hashing") as thread:
            hashing = thread.submit(hash_file, weights, counter)
            names = blob_messages.LateNames(weights, self._progress)
            # If it breaks, what follows sends the rest, or says why not.
            with contextlib.suppress(grpc.RpcError):
                self._stub.UploadBlob(_late_requests(names, hashing), timeout=self._attempts.remaining())
            return [hashing.result(), *[hash_file(path, counter) for path in others]]

    def upload_missing(self, files: Sequence[AdapterFile]) -> None:
        """Sends those files that the registry lacks."""
        response = call(self._stub.CheckBlobs, blob_messages.check_request(files), self._attempts.anew())
        missing = [file for file in files if file.digest in response.missing_digests]
        counter = ProgressCounter("upload", sum(file.size_bytes for file in missing), self._progress)
        for file in missing:
            self._upload(file, counter)

    def publish(
        self, files: Sequence[AdapterFile], request: registry.PublishAdapterRequest
    ) -> registry.PublishAdapterResponse:
        """Sends what the registry lacks of the files, and has them made an adapter."""
        try:
            return self._publish(files, request)
        except NotFound as error:
            if error.reason != "BLOB_NOT_FOUND":  # collected since it was checked
                raise
        return self._publish(files, request)

    def download(self, adapter: registry.Adapter, directory: Path) -> None:
        """Writes an adapter's files into a directory. Raises DataLoss: what came has another digest."""
        counter = ProgressCounter("download", sum(blob.size_bytes for blob in adapter.blobs), self._progress)
        for blob in adapter.blobs:
            self._download(blob, PartialDownload(directory, blob), counter)

    def _publish(
        self, files: Sequence[AdapterFile], request: registry.PublishAdapterRequest
    ) -> registry.PublishAdapterResponse:
        self.upload_missing(files)
        response: registry.PublishAdapterResponse = call(self._stub.PublishAdapter, request, self._attempts.anew())
        return response

    def _upload(self, file: AdapterFile, counter: ProgressCounter) -> None:
        furthest = 0
        while True:
            try:
                probe = self._stub.UploadBlob(blob_messages.upload_probe(file), timeout=self._attempts.remaining())
                if probe.committed_bytes > furthest:
                    furthest = probe.committed_bytes
                    self._attempts.progressed()
                if probe.committed_bytes < file.size_bytes:
                    requests = blob_messages.upload_requests(file, probe.committed_bytes, counter)
                    self._stub.UploadBlob(requests, timeout=self._attempts.remaining())
                return counter.finish(file.file_name, file.size_bytes)
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            time.sleep(self._attempts.wait_after(failure))

    def _download(self, blob: registry.Blob, target: PartialDownload, counter: ProgressCounter) -> None:
        if target.already_here():
            return counter.finish(blob.file_name, blob.size_bytes)
        with target:
            # What an earlier pull left may have been wrong: then once more, from the start.
            for _ in range(2 if target.offset else 1):
                self._receive(blob, target, counter)
                if target.commit():
                    break
            else:
                raise blob_messages.corrupt_download(blob)
        counter.finish(blob.file_name, blob.size_bytes)

    def _receive(self, blob: registry.Blob, target: PartialDownload, counter: ProgressCounter) -> None:
        while target.offset < blob.size_bytes:
            request = registry.DownloadBlobRequest(digest=blob.digest, offset=target.offset)
            download = self._stub.DownloadBlob(request, timeout=self._attempts.remaining())
            try:
                for message in download:
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
            time.sleep(self._attempts.wait_after(failure))


def _late_requests(
    names: blob_messages.LateNames, hashing: "Future[AdapterFile]"
) -> Iterator[registry.UploadBlobRequest | bytes]:
    yield from names.requests(hashing)
    if not names.named:
        yield names.name(hashing.result())
