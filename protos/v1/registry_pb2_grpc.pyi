from collections.abc import AsyncIterator, Awaitable
from typing import Any, overload

import grpc
import grpc.aio

from hotshoe.protos.v1 import registry_pb2

class RegistryServiceStub:
    @overload
    def __new__(cls, channel: grpc.Channel) -> RegistryServiceStub: ...
    @overload
    def __new__(cls, channel: grpc.aio.Channel) -> RegistryServiceAsyncStub: ...
    CheckBlobs: grpc.UnaryUnaryMultiCallable[registry_pb2.CheckBlobsRequest, registry_pb2.CheckBlobsResponse]
    UploadBlob: grpc.StreamUnaryMultiCallable[registry_pb2.UploadBlobRequest, registry_pb2.UploadBlobResponse]
    DownloadBlob: grpc.UnaryStreamMultiCallable[registry_pb2.DownloadBlobRequest, registry_pb2.DownloadBlobResponse]
    PublishAdapter: grpc.UnaryUnaryMultiCallable[registry_pb2.PublishAdapterRequest, registry_pb2.PublishAdapterResponse]
    AdoptAdapter: grpc.UnaryUnaryMultiCallable[registry_pb2.AdoptAdapterRequest, registry_pb2.AdoptAdapterResponse]
    GetAdapter: grpc.UnaryUnaryMultiCallable[registry_pb2.GetAdapterRequest, registry_pb2.GetAdapterResponse]
    ListAdapters: grpc.UnaryUnaryMultiCallable[registry_pb2.ListAdaptersRequest, registry_pb2.ListAdaptersResponse]
    UpdateTag: grpc.UnaryUnaryMultiCallable[registry_pb2.UpdateTagRequest, registry_pb2.UpdateTagResponse]
    DeleteTag: grpc.UnaryUnaryMultiCallable[registry_pb2.DeleteTagRequest, registry_pb2.DeleteTagResponse]
    RollBackTag: grpc.UnaryUnaryMultiCallable[registry_pb2.RollBackTagRequest, registry_pb2.RollBackTagResponse]
    ListTagMoves: grpc.UnaryUnaryMultiCallable[registry_pb2.ListTagMovesRequest, registry_pb2.ListTagMovesResponse]
    CreateView: grpc.UnaryUnaryMultiCallable[registry_pb2.CreateViewRequest, registry_pb2.CreateViewResponse]
    DeleteView: grpc.UnaryUnaryMultiCallable[registry_pb2.DeleteViewRequest, registry_pb2.DeleteViewResponse]
    MergeAdapters: grpc.UnaryUnaryMultiCallable[registry_pb2.MergeAdaptersRequest, registry_pb2.MergeAdaptersResponse]
    DiagnoseAdapter: grpc.UnaryUnaryMultiCallable[registry_pb2.DiagnoseAdapterRequest, registry_pb2.DiagnoseAdapterResponse]
    MitigateAdapter: grpc.UnaryUnaryMultiCallable[registry_pb2.MitigateAdapterRequest, registry_pb2.MitigateAdapterResponse]
    GetLineage: grpc.UnaryUnaryMultiCallable[registry_pb2.GetLineageRequest, registry_pb2.GetLineageResponse]
    CompareAdapters: grpc.UnaryUnaryMultiCallable[registry_pb2.CompareAdaptersRequest, registry_pb2.CompareAdaptersResponse]
    AttachReferrer: grpc.UnaryUnaryMultiCallable[registry_pb2.AttachReferrerRequest, registry_pb2.AttachReferrerResponse]
    AdoptReferrer: grpc.UnaryUnaryMultiCallable[registry_pb2.AdoptReferrerRequest, registry_pb2.AdoptReferrerResponse]
    PushAdapter: grpc.UnaryStreamMultiCallable[registry_pb2.PushAdapterRequest, registry_pb2.PushAdapterResponse]
    PullAdapter: grpc.UnaryStreamMultiCallable[registry_pb2.PullAdapterRequest, registry_pb2.PullAdapterResponse]
    LeaseAdapter: grpc.UnaryUnaryMultiCallable[registry_pb2.LeaseAdapterRequest, registry_pb2.LeaseAdapterResponse]
    ReleaseLease: grpc.UnaryUnaryMultiCallable[registry_pb2.ReleaseLeaseRequest, registry_pb2.ReleaseLeaseResponse]
    ListLeases: grpc.UnaryUnaryMultiCallable[registry_pb2.ListLeasesRequest, registry_pb2.ListLeasesResponse]
    CollectGarbage: grpc.UnaryUnaryMultiCallable[registry_pb2.CollectGarbageRequest, registry_pb2.CollectGarbageResponse]
    CheckStore: grpc.UnaryStreamMultiCallable[registry_pb2.CheckStoreRequest, registry_pb2.CheckStoreResponse]

class RegistryServiceAsyncStub(RegistryServiceStub):  # only a type: what RegistryServiceStub is on grpc.aio's channels
    CheckBlobs: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.CheckBlobsRequest, registry_pb2.CheckBlobsResponse]
    UploadBlob: grpc.aio.StreamUnaryMultiCallable[registry_pb2.UploadBlobRequest, registry_pb2.UploadBlobResponse]
    DownloadBlob: grpc.aio.UnaryStreamMultiCallable[registry_pb2.DownloadBlobRequest, registry_pb2.DownloadBlobResponse]
    PublishAdapter: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.PublishAdapterRequest, registry_pb2.PublishAdapterResponse]
    AdoptAdapter: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.AdoptAdapterRequest, registry_pb2.AdoptAdapterResponse]
    GetAdapter: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.GetAdapterRequest, registry_pb2.GetAdapterResponse]
    ListAdapters: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.ListAdaptersRequest, registry_pb2.ListAdaptersResponse]
    UpdateTag: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.UpdateTagRequest, registry_pb2.UpdateTagResponse]
    DeleteTag: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.DeleteTagRequest, registry_pb2.DeleteTagResponse]
    RollBackTag: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.RollBackTagRequest, registry_pb2.RollBackTagResponse]
    ListTagMoves: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.ListTagMovesRequest, registry_pb2.ListTagMovesResponse]
    CreateView: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.CreateViewRequest, registry_pb2.CreateViewResponse]
    DeleteView: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.DeleteViewRequest, registry_pb2.DeleteViewResponse]
    MergeAdapters: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.MergeAdaptersRequest, registry_pb2.MergeAdaptersResponse]
    DiagnoseAdapter: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.DiagnoseAdapterRequest, registry_pb2.DiagnoseAdapterResponse]
    MitigateAdapter: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.MitigateAdapterRequest, registry_pb2.MitigateAdapterResponse]
    GetLineage: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.GetLineageRequest, registry_pb2.GetLineageResponse]
    CompareAdapters: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.CompareAdaptersRequest, registry_pb2.CompareAdaptersResponse]
    AttachReferrer: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.AttachReferrerRequest, registry_pb2.AttachReferrerResponse]
    AdoptReferrer: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.AdoptReferrerRequest, registry_pb2.AdoptReferrerResponse]
    PushAdapter: grpc.aio.UnaryStreamMultiCallable[registry_pb2.PushAdapterRequest, registry_pb2.PushAdapterResponse]
    PullAdapter: grpc.aio.UnaryStreamMultiCallable[registry_pb2.PullAdapterRequest, registry_pb2.PullAdapterResponse]
    LeaseAdapter: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.LeaseAdapterRequest, registry_pb2.LeaseAdapterResponse]
    ReleaseLease: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.ReleaseLeaseRequest, registry_pb2.ReleaseLeaseResponse]
    ListLeases: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.ListLeasesRequest, registry_pb2.ListLeasesResponse]
    CollectGarbage: grpc.aio.UnaryUnaryMultiCallable[registry_pb2.CollectGarbageRequest, registry_pb2.CollectGarbageResponse]
    CheckStore: grpc.aio.UnaryStreamMultiCallable[registry_pb2.CheckStoreRequest, registry_pb2.CheckStoreResponse]

class RegistryServiceServicer:
    def CheckBlobs(self, request: registry_pb2.CheckBlobsRequest, context: Any) -> Awaitable[registry_pb2.CheckBlobsResponse]: ...
    def UploadBlob(self, request_iterator: AsyncIterator[registry_pb2.UploadBlobRequest], context: Any) -> Awaitable[registry_pb2.UploadBlobResponse]: ...
    def DownloadBlob(self, request: registry_pb2.DownloadBlobRequest, context: Any) -> AsyncIterator[registry_pb2.DownloadBlobResponse] | Awaitable[None]: ...
    def PublishAdapter(self, request: registry_pb2.PublishAdapterRequest, context: Any) -> Awaitable[registry_pb2.PublishAdapterResponse]: ...
    def AdoptAdapter(self, request: registry_pb2.AdoptAdapterRequest, context: Any) -> Awaitable[registry_pb2.AdoptAdapterResponse]: ...
    def GetAdapter(self, request: registry_pb2.GetAdapterRequest, context: Any) -> Awaitable[registry_pb2.GetAdapterResponse]: ...
    def ListAdapters(self, request: registry_pb2.ListAdaptersRequest, context: Any) -> Awaitable[registry_pb2.ListAdaptersResponse]: ...
    def UpdateTag(self, request: registry_pb2.UpdateTagRequest, context: Any) -> Awaitable[registry_pb2.UpdateTagResponse]: ...
    def DeleteTag(self, request: registry_pb2.DeleteTagRequest, context: Any) -> Awaitable[registry_pb2.DeleteTagResponse]: ...
    def RollBackTag(self, request: registry_pb2.RollBackTagRequest, context: Any) -> Awaitable[registry_pb2.RollBackTagResponse]: ...
    def ListTagMoves(self, request: registry_pb2.ListTagMovesRequest, context: Any) -> Awaitable[registry_pb2.ListTagMovesResponse]: ...
    def CreateView(self, request: registry_pb2.CreateViewRequest, context: Any) -> Awaitable[registry_pb2.CreateViewResponse]: ...
    def DeleteView(self, request: registry_pb2.DeleteViewRequest, context: Any) -> Awaitable[registry_pb2.DeleteViewResponse]: ...
    def MergeAdapters(self, request: registry_pb2.MergeAdaptersRequest, context: Any) -> Awaitable[registry_pb2.MergeAdaptersResponse]: ...
    def DiagnoseAdapter(self, request: registry_pb2.DiagnoseAdapterRequest, context: Any) -> Awaitable[registry_pb2.DiagnoseAdapterResponse]: ...
    def MitigateAdapter(self, request: registry_pb2.MitigateAdapterRequest, context: Any) -> Awaitable[registry_pb2.MitigateAdapterResponse]: ...
    def GetLineage(self, request: registry_pb2.GetLineageRequest, context: Any) -> Awaitable[registry_pb2.GetLineageResponse]: ...
    def CompareAdapters(self, request: registry_pb2.CompareAdaptersRequest, context: Any) -> Awaitable[registry_pb2.CompareAdaptersResponse]: ...
    def AttachReferrer(self, request: registry_pb2.AttachReferrerRequest, context: Any) -> Awaitable[registry_pb2.AttachReferrerResponse]: ...
    def AdoptReferrer(self, request: registry_pb2.AdoptReferrerRequest, context: Any) -> Awaitable[registry_pb2.AdoptReferrerResponse]: ...
    def PushAdapter(self, request: registry_pb2.PushAdapterRequest, context: Any) -> AsyncIterator[registry_pb2.PushAdapterResponse] | Awaitable[None]: ...
    def PullAdapter(self, request: registry_pb2.PullAdapterRequest, context: Any) -> AsyncIterator[registry_pb2.PullAdapterResponse] | Awaitable[None]: ...
    def LeaseAdapter(self, request: registry_pb2.LeaseAdapterRequest, context: Any) -> Awaitable[registry_pb2.LeaseAdapterResponse]: ...
    def ReleaseLease(self, request: registry_pb2.ReleaseLeaseRequest, context: Any) -> Awaitable[registry_pb2.ReleaseLeaseResponse]: ...
    def ListLeases(self, request: registry_pb2.ListLeasesRequest, context: Any) -> Awaitable[registry_pb2.ListLeasesResponse]: ...
    def CollectGarbage(self, request: registry_pb2.CollectGarbageRequest, context: Any) -> Awaitable[registry_pb2.CollectGarbageResponse]: ...
    def CheckStore(self, request: registry_pb2.CheckStoreRequest, context: Any) -> AsyncIterator[registry_pb2.CheckStoreResponse] | Awaitable[None]: ...

def add_RegistryServiceServicer_to_server(servicer: RegistryServiceServicer, server: grpc.Server | grpc.aio.Server) -> None: ...
