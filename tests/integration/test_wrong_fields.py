"""Every RPC refuses what is wrong as INVALID_ARGUMENT, by the field's name."""

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from server_process import ServerProcess

from hotshoe.protos.v1 import generation_pb2, registry_pb2, residency_pb2

NOT = "not a name"
DIGEST = f"sha256:{'0' * 64}"


def _generate(**fields: object) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(text="hello", **fields)


@pytest.mark.parametrize(
    "method, request_, field",
    [
        ("Generate", _generate(adapters=[{"reference": NOT}]), "adapters[0].reference"),
        ("StreamGenerate", generation_pb2.StreamGenerateRequest(), "prompt"),
        ("Score", generation_pb2.ScoreRequest(text="a"), "choices"),
        ("Tokenize", generation_pb2.TokenizeRequest(text="x" * (1 << 20 | 1)), "text"),
        ("CheckBlobs", registry_pb2.CheckBlobsRequest(blobs=[{"digest": "sha256:0"}]), "digest"),
        ("DownloadBlob", registry_pb2.DownloadBlobRequest(digest=DIGEST, offset=-1), "offset"),
        ("PublishAdapter", registry_pb2.PublishAdapterRequest(name=NOT), "name"),
        ("AdoptAdapter", registry_pb2.AdoptAdapterRequest(name="a", manifest=b"[]"), "manifest"),
        ("GetAdapter", registry_pb2.GetAdapterRequest(reference=NOT), "reference"),
        ("ListAdapters", registry_pb2.ListAdaptersRequest(page_token=NOT), "page_token"),
        ("UpdateTag", registry_pb2.UpdateTagRequest(name="a", tag=NOT, digest=DIGEST), "tag"),
        (
            "UpdateTag",
            registry_pb2.UpdateTagRequest(name="a", tag="b", digest=DIGEST, expected_digest=NOT),
            "expected_digest",
        ),
        ("DeleteTag", registry_pb2.DeleteTagRequest(name=NOT, tag="a"), "name"),
        ("RollBackTag", registry_pb2.RollBackTagRequest(name="a", tag=""), "tag"),
        ("ListTagMoves", registry_pb2.ListTagMovesRequest(name="a", limit=-1), "limit"),
        ("CreateView", registry_pb2.CreateViewRequest(reference=NOT), "reference"),
        ("DeleteView", registry_pb2.DeleteViewRequest(reference=NOT), "reference"),
        (
            "MergeAdapters",
            registry_pb2.MergeAdaptersRequest(method="linear", sources=[{"reference": "a b"}, {"reference": NOT}]),
            "sources[0].reference",
        ),
        (
            "DiagnoseAdapter",
            registry_pb2.DiagnoseAdapterRequest(reference="a", approximate_rank=1),
            "approximate_rank",
        ),
        ("MitigateAdapter", registry_pb2.MitigateAdapterRequest(reference="a", keep=float("nan")), "keep"),
        ("GetLineage", registry_pb2.GetLineageRequest(reference=NOT), "reference"),
        ("CompareAdapters", registry_pb2.CompareAdaptersRequest(first=NOT, second="a"), "first"),
        ("AttachReferrer", registry_pb2.AttachReferrerRequest(reference=NOT, artifact_type="a/b"), "reference"),
        ("AdoptReferrer", registry_pb2.AdoptReferrerRequest(manifest=b""), "manifest"),
        ("PushAdapter", registry_pb2.PushAdapterRequest(reference=NOT), "reference"),
        ("PullAdapter", registry_pb2.PullAdapterRequest(reference="a", remote="file:///etc"), "remote"),
        ("PullAdapter", registry_pb2.PullAdapterRequest(reference="a:b", all_tags=True), "reference"),
        ("LeaseAdapter", registry_pb2.LeaseAdapterRequest(reference="a", holder="b", ttl_seconds=-1), "ttl_seconds"),
        ("ReleaseLease", registry_pb2.ReleaseLeaseRequest(holder="two\nlines"), "holder"),
        ("CollectGarbage", registry_pb2.CollectGarbageRequest(grace_seconds=float("nan")), "grace_seconds"),
        ("LoadAdapter", residency_pb2.LoadAdapterRequest(reference="a", tier=99), "tier"),
        ("UnloadAdapter", residency_pb2.UnloadAdapterRequest(reference=NOT), "reference"),
        ("WatchStatus", residency_pb2.WatchStatusRequest(interval_ms=1), "interval_ms"),
    ],
)
def test_a_wrong_field_is_named(server: ServerProcess, method: str, request_: Message, field: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        _call(server, method, request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    named = error_details_pb2.BadRequest()
    assert any(detail.Unpack(named) for detail in rpc_status.from_call(caught.value).details), caught.value.details()
    assert [violation.field for violation in named.field_violations] == [field]


def _call(server: ServerProcess, method: str, request: Message) -> None:
    for module in (generation_pb2, registry_pb2, residency_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            if method in service.methods_by_name:
                channel, path = server.channel(), f"/{service.full_name}/{method}"
                if service.methods_by_name[method].server_streaming:
                    list(channel.unary_stream(path)(request.SerializeToString(), timeout=200))
                else:
                    channel.unary_unary(path)(request.SerializeToString(), timeout=200)
