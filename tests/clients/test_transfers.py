"""Uploads and downloads over a network that breaks; both clients."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from scripted_server import Failure, ScriptedServer, error_info

from hotshoe.clients import AsyncClient, Client, DataLoss, InvalidArgument, NotFound, RetryPolicy, TransferProgress
from hotshoe.clients.adapter_files import CHUNK_BYTES
from hotshoe.protos.v1.registry_pb2 import (
    Adapter,
    Blob,
    CheckBlobsResponse,
    DownloadBlobRequest,
    DownloadBlobResponse,
    GetAdapterResponse,
    PublishAdapterResponse,
    UploadBlobResponse,
)

QUICK = RetryPolicy(max_attempts=3, initial_backoff_seconds=0.01)
WEIGHTS = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"end"
CONFIG = b"{}"
FILES = {"adapter_model.safetensors": WEIGHTS, "adapter_config.json": CONFIG}
BROKEN = Failure(grpc.StatusCode.UNAVAILABLE, "broken")


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def blocking(address: str, method: str, *arguments: Any, **options: Any) -> Any:
    with Client(address, retry=QUICK) as client:
        return getattr(client, method)(*arguments, **options)


def asyncio_too(address: str, method: str, *arguments: Any, **options: Any) -> Any:
    async def call() -> Any:
        async with AsyncClient(address, retry=QUICK) as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(call())


both = pytest.mark.parametrize("call", [blocking, asyncio_too])
Call = Callable[..., Any]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


class BlobStore:
    """Keeps what is uploaded; breaks each stream after `break_after` bytes of it, as long as there are `breaks`."""

    def __init__(self, *, breaks: int = 0, break_after: int = CHUNK_BYTES + 100) -> None:
        self.blobs: dict[str, bytearray] = {}
        self.breaks = breaks
        self.break_after = break_after
        self.streams: list[tuple[str, int, int]] = []  # digest, offset of the first data message, data messages

    def upload(self, requests: list[Any]) -> UploadBlobResponse | Failure:
        first, *rest = requests
        assert first.WhichOneof("part") == "blob"
        assert all(message.WhichOneof("part") == "data" and len(message.data) <= CHUNK_BYTES for message in rest)
        stored = self.blobs.setdefault(first.blob.digest, bytearray())
        if rest:
            self.streams.append((first.blob.digest, rest[0].offset, len(rest)))
            assert rest[0].offset == len(stored)
        data = b"".join(message.data for message in rest)
        if rest and self.breaks:
            self.breaks -= 1
            stored += data[: self.break_after]
            return BROKEN
        stored += data
        return UploadBlobResponse(digest=first.blob.digest, committed_bytes=len(stored))

    def serve(self, server: ScriptedServer) -> None:
        server.answer("RegistryService/CheckBlobs", lambda requests: self.check(requests[0]))
        server.answer("RegistryService/UploadBlob", self.upload)
        server.answer("RegistryService/PublishAdapter", PublishAdapterResponse(adapter=Adapter(name="a"), created=True))

    def check(self, request: Any) -> CheckBlobsResponse:
        whole = {digest for digest, data in self.blobs.items() if digest_of(data) == digest}
        return CheckBlobsResponse(missing_digests=[b.digest for b in request.blobs if b.digest not in whole])


@both
def test_publish_sends_every_byte_once_and_names_the_files(
    scripted: ScriptedServer, directory: Path, call: Call
) -> None:
    store = BlobStore()
    store.serve(scripted)
    response = call(scripted.address, "publish_directory", directory, "a", tags=["x", "y"], annotations={"k": "v"})
    assert response.created
    assert {digest: bytes(data) for digest, data in store.blobs.items()} == {digest_of(d): d for d in FILES.values()}
    [request] = scripted.calls("RegistryService/PublishAdapter")
    assert (request.name, list(request.tags), dict(request.annotations)) == ("a", ["x", "y"], {"k": "v"})
    assert {blob.file_name: (blob.digest, blob.size_bytes) for blob in request.blobs} == {
        name: (digest_of(data), len(data)) for name, data in FILES.items()
    }


@both
def test_a_broken_upload_goes_on_from_what_the_server_has(
    scripted: ScriptedServer, directory: Path, call: Call
) -> None:
    store = BlobStore(breaks=2)
    store.serve(scripted)
    call(scripted.address, "publish_directory", directory, "a")
    assert bytes(store.blobs[digest_of(WEIGHTS)]) == WEIGHTS
    offsets = [offset for digest, offset, _ in store.streams if digest == digest_of(WEIGHTS)]
    assert offsets == [0, CHUNK_BYTES + 100, 2 * (CHUNK_BYTES + 100)]


@both
def test_an_upload_that_gets_nowhere_is_given_up(scripted: ScriptedServer, directory: Path, call: Call) -> None:
    store = BlobStore(breaks=1000, break_after=0)
    store.serve(scripted)
    with pytest.raises(Exception, match="broken"):
        call(scripted.address, "publish_directory", directory, "a")
    assert len(store.streams) == QUICK.max_attempts


@both
def test_files_that_the_server_has_are_not_sent(scripted: ScriptedServer, directory: Path, call: Call) -> None:
    store = BlobStore()
    store.blobs[digest_of(WEIGHTS)] = bytearray(WEIGHTS)
    store.serve(scripted)
    steps: list[TransferProgress] = []
    call(scripted.address, "publish_directory", directory, "a", progress=steps.append)
    assert {digest for digest, _, _ in store.streams} == {digest_of(CONFIG)}
    uploads = [step for step in steps if step.stage == "upload"]
    assert {step.total_bytes for step in uploads} == {len(CONFIG)} and uploads[-1].completed_bytes == len(CONFIG)


@both
def test_a_blob_collected_before_the_publish_is_sent_again_once(
    scripted: ScriptedServer, directory: Path, call: Call
) -> None:
    store = BlobStore()
    store.serve(scripted)
    collected = Failure(grpc.StatusCode.NOT_FOUND, "blobs not in the registry", (error_info("BLOB_NOT_FOUND"),))

    def collect(_: list[Any]) -> Failure:
        store.blobs.clear()
        return collected

    scripted.answer("RegistryService/PublishAdapter", collect, PublishAdapterResponse(created=True))
    assert call(scripted.address, "publish_directory", directory, "a").created
    assert bytes(store.blobs[digest_of(WEIGHTS)]) == WEIGHTS
    scripted.answer("RegistryService/PublishAdapter", collected)
    with pytest.raises(NotFound):
        call(scripted.address, "publish_directory", directory, "a")


@both
def test_a_refused_upload_is_not_repeated(scripted: ScriptedServer, directory: Path, call: Call) -> None:
    BlobStore().serve(scripted)
    refused = Failure(grpc.StatusCode.INVALID_ARGUMENT, "too large", (error_info("INVALID_UPLOAD"),))
    scripted.answer("RegistryService/UploadBlob", refused)
    with pytest.raises(InvalidArgument, match="too large"):
        call(scripted.address, "publish_directory", directory, "a")
    assert len(scripted.calls("RegistryService/UploadBlob")) == 1


def blob(name: str, data: bytes) -> Blob:
    return Blob(file_name=name, digest=digest_of(data), size_bytes=len(data))


def serve_adapter(server: ScriptedServer, *blobs: Blob) -> None:
    server.answer("RegistryService/GetAdapter", GetAdapterResponse(adapter=Adapter(name="a", blobs=blobs)))


def parts(data: bytes, offset: int = 0) -> list[Any]:
    return [DownloadBlobResponse(data=data[at : at + 1000]) for at in range(offset, len(data), 1000)]


def from_offset(data: bytes) -> Callable[[list[Any]], list[Any]]:
    return lambda requests: parts(data, requests[0].offset)


@both
def test_pull_writes_the_files_and_asks_for_none_that_is_here(
    scripted: ScriptedServer, tmp_path: Path, call: Call
) -> None:
    data = WEIGHTS[:5500]
    serve_adapter(scripted, blob("adapter_model.safetensors", data), blob("adapter_config.json", CONFIG))
    scripted.answer(
        "RegistryService/DownloadBlob",
        lambda requests: parts(CONFIG if requests[0].digest == digest_of(CONFIG) else data, requests[0].offset),
    )
    for _ in range(2):
        call(scripted.address, "pull", "a", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        "adapter_model.safetensors": data,
        "adapter_config.json": CONFIG,
    }
    assert len(scripted.calls("RegistryService/DownloadBlob")) == 2  # both in the first pull


@both
def test_a_broken_download_goes_on_from_what_has_come(scripted: ScriptedServer, tmp_path: Path, call: Call) -> None:
    data = WEIGHTS[:5500]
    serve_adapter(scripted, blob("adapter_model.safetensors", data))
    scripted.answer("RegistryService/DownloadBlob", [*parts(data)[:2], BROKEN], BROKEN, from_offset(data))
    call(scripted.address, "pull", "a", tmp_path)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == data
    offsets = [request.offset for request in scripted.calls("RegistryService/DownloadBlob")]
    assert offsets == [0, 2000, 2000]


@both
@pytest.mark.parametrize(
    "sent", [WEIGHTS[1:5501], WEIGHTS[:5000], WEIGHTS[:9000]], ids=["other bytes", "too few", "too many"]
)
def test_a_download_of_wrong_bytes_is_data_loss_and_leaves_nothing(
    scripted: ScriptedServer, tmp_path: Path, call: Call, sent: bytes
) -> None:
    serve_adapter(scripted, blob("adapter_model.safetensors", WEIGHTS[:5500]))
    scripted.answer("RegistryService/DownloadBlob", parts(sent))
    with pytest.raises(DataLoss, match="adapter_model.safetensors"):
        call(scripted.address, "pull", "a", tmp_path)
    assert list(tmp_path.iterdir()) == []


@both
def test_a_rotten_rest_of_an_earlier_pull_is_thrown_away(scripted: ScriptedServer, tmp_path: Path, call: Call) -> None:
    data = WEIGHTS[:5500]
    serve_adapter(scripted, blob("adapter_model.safetensors", data))
    scripted.answer("RegistryService/DownloadBlob", [*parts(data)[:3], Failure(grpc.StatusCode.INTERNAL)])
    with pytest.raises(Exception, match="as scripted"):
        call(scripted.address, "pull", "a", tmp_path)
    [partial] = tmp_path.iterdir()
    partial.write_bytes(b"x" + partial.read_bytes()[1:])
    scripted.answer("RegistryService/DownloadBlob", from_offset(data))
    call(scripted.address, "pull", "a", tmp_path)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == data
    requests: list[DownloadBlobRequest] = scripted.calls("RegistryService/DownloadBlob")
    assert [request.offset for request in requests] == [0, 3000, 0]
