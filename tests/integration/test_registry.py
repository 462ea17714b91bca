"""Publishing, tags and transfers through a real server."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from model_directories import tiny_model
from peft_adapters import write_lora
from server_process import ServerProcess, publish, upload

from hotshoe.protos.v1 import registry_pb2

NOWHERE = f"sha256:{'0' * 64}"


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("lora") / "lora", tiny_model())


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("other") / "other", tiny_model(), rank=4, seed=9)


def _reason(error: grpc.RpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in rpc_status.from_call(error).details)
    return info.reason


def _chunks(data: bytes, blob: registry_pb2.Blob, start: int, size: int) -> Iterator[registry_pb2.UploadBlobRequest]:
    yield registry_pb2.UploadBlobRequest(blob=blob)
    for offset in range(start, len(data), size):
        yield registry_pb2.UploadBlobRequest(data=data[offset : offset + size], offset=offset)


def _blob(data: bytes) -> registry_pb2.Blob:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return registry_pb2.Blob(digest=digest, size_bytes=len(data), file_name="adapter_model.safetensors")


def test_a_published_adapter_is_found_listed_and_downloaded(server: ServerProcess, lora: Path) -> None:
    adapter = publish(server, "team/poet", lora, "latest", "v1")
    assert adapter.kind == "LORA"
    assert adapter.rank == 8
    assert adapter.base_digest == server.ready["base_digest"]
    assert sorted(adapter.tags) == ["latest", "v1"]
    for reference in ("team/poet", "team/poet:v1", f"team/poet@{adapter.digest}"):
        request = registry_pb2.GetAdapterRequest(reference=reference)
        found = server.registry.GetAdapter(request).adapter
        found.ClearField("referrers")  # that the doctor attached meanwhile
        assert found == adapter
    listed = server.registry.ListAdapters(registry_pb2.ListAdaptersRequest(name_contains="poet")).adapters
    assert adapter in listed
    weights = next(blob for blob in adapter.blobs if blob.file_name == "adapter_model.safetensors")
    data = (lora / "adapter_model.safetensors").read_bytes()
    for offset in (0, 100, len(data)):
        request = registry_pb2.DownloadBlobRequest(digest=weights.digest, offset=offset)
        assert b"".join(part.data for part in server.registry.DownloadBlob(request)) == data[offset:]


def test_publishing_again_changes_nothing(server: ServerProcess, lora: Path) -> None:
    first = publish(server, "again", lora)
    blobs = [upload(server, lora / name) for name in ("adapter_config.json", "adapter_model.safetensors")]
    request = registry_pb2.PublishAdapterRequest(name="again", tags=["latest"], blobs=blobs)
    response = server.registry.PublishAdapter(request)
    assert not response.created
    assert response.adapter == first
    assert not server.registry.CheckBlobs(registry_pb2.CheckBlobsRequest(blobs=blobs)).missing_digests


def test_validate_only_stores_nothing(server: ServerProcess, other: Path) -> None:
    blobs = [upload(server, other / name) for name in ("adapter_config.json", "adapter_model.safetensors")]
    request = registry_pb2.PublishAdapterRequest(name="dry", tags=["latest"], blobs=blobs, validate_only=True)
    assert server.registry.PublishAdapter(request).adapter.kind == "LORA"
    with pytest.raises(grpc.RpcError) as caught:
        server.registry.GetAdapter(registry_pb2.GetAdapterRequest(reference="dry"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_missing_blob_must_be_uploaded_first(server: ServerProcess) -> None:
    missing = registry_pb2.Blob(digest=NOWHERE, size_bytes=10, file_name="adapter_model.safetensors")
    config = registry_pb2.Blob(digest=f"sha256:{'1' * 64}", size_bytes=10, file_name="adapter_config.json")
    check = registry_pb2.CheckBlobsRequest(blobs=[missing, config])
    assert list(server.registry.CheckBlobs(check).missing_digests) == [missing.digest, config.digest]
    with pytest.raises(grpc.RpcError) as caught:
        server.registry.PublishAdapter(registry_pb2.PublishAdapterRequest(name="a", blobs=[missing, config]))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert _reason(caught.value) == "BLOB_NOT_FOUND"


def test_an_interrupted_upload_goes_on_where_it_stopped(server: ServerProcess) -> None:
    data = bytes(range(256)) * 4096 * 3
    blob = _blob(data)
    half = len(data) // 2
    messages = [registry_pb2.UploadBlobRequest(blob=blob)]
    messages += [
        registry_pb2.UploadBlobRequest(data=data[start : min(start + (1 << 18), half)], offset=start)
        for start in range(0, half, 1 << 18)
    ]
    assert server.registry.UploadBlob(iter(messages)).committed_bytes == half
    question = [registry_pb2.UploadBlobRequest(blob=blob)]
    assert server.registry.UploadBlob(iter(question)).committed_bytes == half
    assert server.registry.CheckBlobs(registry_pb2.CheckBlobsRequest(blobs=[blob])).missing_digests
    response = server.registry.UploadBlob(_chunks(data, blob, half, 1 << 18))
    assert (response.digest, response.committed_bytes) == (blob.digest, len(data))
    assert not server.registry.CheckBlobs(registry_pb2.CheckBlobsRequest(blobs=[blob])).missing_digests
    assert server.registry.UploadBlob(iter(question)).committed_bytes == len(data)


def test_an_upload_that_a_client_abandons_can_be_resumed(server: ServerProcess) -> None:
    data = b"abandoned" * 200_000
    blob = _blob(data)

    def endless() -> Iterator[registry_pb2.UploadBlobRequest]:
        yield registry_pb2.UploadBlobRequest(blob=blob)
        yield registry_pb2.UploadBlobRequest(data=data[: 1 << 18], offset=0)
        raise RuntimeError("the client is gone")

    with pytest.raises(grpc.RpcError):
        server.registry.UploadBlob(endless())
    committed = server.registry.UploadBlob(iter([registry_pb2.UploadBlobRequest(blob=blob)])).committed_bytes
    assert committed in (0, 1 << 18)
    assert server.registry.UploadBlob(_chunks(data, blob, committed, 1 << 20)).committed_bytes == len(data)


@pytest.mark.parametrize(
    "case", ["no blob", "gap", "overlap", "too much", "too large a chunk", "other bytes", "blob twice"]
)
def test_a_wrong_upload_is_refused(server: ServerProcess, case: str) -> None:
    data = f"{case} of some bytes".encode() * 1000
    blob = _blob(data)
    head, message = registry_pb2.UploadBlobRequest(blob=blob), registry_pb2.UploadBlobRequest
    messages = {
        "no blob": [message(data=data, offset=0)],
        "gap": [head, message(data=data[:10], offset=0), message(data=data[20:], offset=20)],
        "overlap": [head, message(data=data[:10], offset=0), message(data=data[5:], offset=5)],
        "too much": [head, message(data=data + b"x", offset=0)],
        "too large a chunk": [head, message(data=b"x" * ((1 << 20) + 1), offset=0)],
        "other bytes": [head, message(data=b"x" * len(data), offset=0)],
        "blob twice": [head, head],
    }[case]
    with pytest.raises(grpc.RpcError) as caught:
        server.registry.UploadBlob(iter(messages))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert _reason(caught.value) == "INVALID_UPLOAD"
    assert server.registry.CheckBlobs(registry_pb2.CheckBlobsRequest(blobs=[blob])).missing_digests


def test_a_malformed_adapter_is_refused_with_the_field(server: ServerProcess, lora: Path, tmp_path: Path) -> None:
    config = json.loads((lora / "adapter_config.json").read_text())
    broken = tmp_path / "adapter_config.json"
    broken.write_text(json.dumps({**config, "r": -1}))
    blobs = [upload(server, broken), upload(server, lora / "adapter_model.safetensors")]
    with pytest.raises(grpc.RpcError) as caught:
        server.registry.PublishAdapter(registry_pb2.PublishAdapterRequest(name="broken", blobs=blobs))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad_request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad_request) for detail in rpc_status.from_call(caught.value).details)
    assert "r" in bad_request.field_violations[0].field


def test_an_adapter_of_other_shapes_does_not_fit(server: ServerProcess, tmp_path: Path) -> None:
    foreign = write_lora(tmp_path / "foreign", tiny_model(hidden_size=128))
    with pytest.raises(grpc.RpcError) as caught:
        publish(server, "foreign", foreign)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert _reason(caught.value) == "ADAPTER_INCOMPATIBLE"


def test_a_tag_moves_only_from_where_it_is_thought_to_be(server: ServerProcess, lora: Path, other: Path) -> None:
    old, new = publish(server, "moving", lora), publish(server, "moving", other, "next")

    def move(expected: str) -> registry_pb2.Adapter:
        request = registry_pb2.UpdateTagRequest(
            name="moving", tag="latest", digest=new.digest, expected_digest=expected
        )
        return server.registry.UpdateTag(request).adapter

    for wrong in ("", NOWHERE, new.digest):
        with pytest.raises(grpc.RpcError) as caught:
            move(wrong)
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert _reason(caught.value) == "TAG_CONFLICT"
    assert "latest" in move(old.digest).tags
    resolved = server.registry.GetAdapter(registry_pb2.GetAdapterRequest(reference="moving")).adapter
    assert resolved.digest == new.digest
    server.registry.DeleteTag(registry_pb2.DeleteTagRequest(name="moving", tag="latest"))
    for call, request in (
        (server.registry.GetAdapter, registry_pb2.GetAdapterRequest(reference="moving")),
        (server.registry.DeleteTag, registry_pb2.DeleteTagRequest(name="moving", tag="latest")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert server.registry.GetAdapter(registry_pb2.GetAdapterRequest(reference=f"moving@{new.digest}"))


def test_lists_come_in_pages_and_filtered(server: ServerProcess, lora: Path) -> None:
    names = [f"page/a{number}" for number in range(5)]
    for name in names:
        publish(server, name, lora)
    found, token = [], ""
    while True:
        request = registry_pb2.ListAdaptersRequest(page_size=2, page_token=token, name_contains="page/", kind="LORA")
        page = server.registry.ListAdapters(request)
        assert len(page.adapters) <= 2
        found += [adapter.name for adapter in page.adapters]
        token = page.next_page_token
        if not token:
            break
    assert found == names[::-1]
    request = registry_pb2.ListAdaptersRequest(name_contains="page/", kind="IA3")
    assert not server.registry.ListAdapters(request).adapters


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetAdapter", registry_pb2.GetAdapterRequest(reference="../etc/passwd")),
        ("GetAdapter", registry_pb2.GetAdapterRequest(reference="a@sha256:../..")),
        ("ListAdapters", registry_pb2.ListAdaptersRequest(page_size=-1)),
        ("ListAdapters", registry_pb2.ListAdaptersRequest(page_token="nonsense")),
        ("CheckBlobs", registry_pb2.CheckBlobsRequest(blobs=[registry_pb2.Blob(digest="md5:1")])),
        ("CheckBlobs", registry_pb2.CheckBlobsRequest(blobs=[registry_pb2.Blob(digest=NOWHERE)] * 65)),
        ("UpdateTag", registry_pb2.UpdateTagRequest(name="A", tag="t", digest=NOWHERE)),
        ("DeleteTag", registry_pb2.DeleteTagRequest(name="a", tag="..")),
        ("PublishAdapter", registry_pb2.PublishAdapterRequest(name="a\n")),
    ],
)
def test_malformed_requests_are_invalid(server: ServerProcess, method: str, request_: object) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(server.registry, method)(request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("offset", [-1, 10**9])
def test_a_download_starts_within_the_blob(server: ServerProcess, lora: Path, offset: int) -> None:
    blob = publish(server, "download", lora).blobs[0]
    with pytest.raises(grpc.RpcError) as caught:
        list(server.registry.DownloadBlob(registry_pb2.DownloadBlobRequest(digest=blob.digest, offset=offset)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
