"""The messages that carry blobs, and blobs as they come. Shared by both clients; does no I/O."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import grpc

from hotshoe.clients.adapter_files import AdapterFile, expect_megabytes, file_chunks
from hotshoe.clients.errors import DataLoss
from hotshoe.clients.progress import Progress, ProgressCounter
from hotshoe.protos.v1 import chunks
from hotshoe.protos.v1 import registry_pb2 as registry


def blob_of(file: AdapterFile) -> registry.Blob:
    """A file as the registry names it."""
    return registry.Blob(digest=file.digest, size_bytes=file.size_bytes, file_name=file.file_name)


def check_request(files: Iterable[AdapterFile]) -> registry.CheckBlobsRequest:
    """The message that asks which of `files` the registry lacks."""
    return registry.CheckBlobsRequest(blobs=[blob_of(file) for file in files])


def upload_probe(file: AdapterFile) -> Iterator[registry.UploadBlobRequest]:
    """An upload that sends nothing yet, to learn where to go on."""
    yield registry.UploadBlobRequest(blob=blob_of(file))


def upload_requests(
    file: AdapterFile, offset: int, counter: ProgressCounter
) -> Iterator[registry.UploadBlobRequest | bytes]:
    """The messages that send `file` from `offset` on, counting what has been handed over; those of bytes encoded."""
    yield registry.UploadBlobRequest(blob=blob_of(file))
    for position, data in file.chunks(offset):
        yield chunks.upload_chunk(data, position)
        counter.at(file.file_name, position + len(data))


class Hashing(Protocol):
    """A file's hash to come: a future of concurrent.futures, or of asyncio."""

    def done(self) -> bool: ...
    def result(self) -> AdapterFile: ...


class LateNames:
    """The messages of an upload that begins while its file is hashed: its size, its bytes, and its digest between them
    as soon as that is known, or after them.
    """

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._size_bytes = path.stat().st_size
        self._counter = ProgressCounter("upload", self._size_bytes, progress)
        self.named = False
        expect_megabytes()

    def requests(self, hashing: Hashing) -> Iterator[registry.UploadBlobRequest | bytes]:
        """All but the digest, which is among them only if it is known before the last of the bytes: see `named`."""
        yield self.begin()
        for chunk in self.chunks():
            if hashing.done() and not self.named:
                yield self.name(hashing.result())
            yield chunk

    def begin(self) -> registry.UploadBlobRequest:
        """The first message."""
        return registry.UploadBlobRequest(blob=registry.Blob(file_name=self._path.name, size_bytes=self._size_bytes))

    def chunks(self) -> Iterator[bytes]:
        """The bytes, encoded."""
        for position, data in file_chunks(self._path):
            yield chunks.upload_chunk(data, position)
            self._counter.at(self._path.name, position + len(data))

    def name(self, file: AdapterFile) -> registry.UploadBlobRequest:
        """The digest."""
        self.named = True
        return registry.UploadBlobRequest(blob=blob_of(file))


class SmallBlob:
    """A blob as it comes, held in memory: at most `max_bytes`, and only what has the digest."""

    def __init__(self, digest: str, max_bytes: int) -> None:
        self._digest = digest
        self._max_bytes = max_bytes
        self._data = bytearray()

    def add(self, data: bytes | memoryview) -> None:
        """Takes the next bytes. Raises DataLoss: more came than may."""
        self._data += data
        if len(self._data) > self._max_bytes:
            raise self._wrong(f"more than {self._max_bytes} bytes came")

    def whole(self) -> bytes:
        """All of it. Raises DataLoss when it does not have the digest."""
        data = bytes(self._data)
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != self._digest:
            raise self._wrong("what came has another digest")
        return data

    def _wrong(self, problem: str) -> DataLoss:
        return DataLoss(f"blob {self._digest}: {problem}", status=grpc.StatusCode.DATA_LOSS)


def corrupt_download(blob: registry.Blob) -> DataLoss:
    """What to raise when a download does not have the digest it should."""
    return DataLoss(
        f"{blob.file_name}: what came is not {blob.size_bytes} bytes with digest {blob.digest}",
        status=grpc.StatusCode.DATA_LOSS,
    )
