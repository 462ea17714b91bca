from collections.abc import AsyncIterator, Awaitable
from typing import Any, overload

import grpc
import grpc.aio

from hotshoe.protos.v1 import residency_pb2

class ResidencyServiceStub:
    @overload
    def __new__(cls, channel: grpc.Channel) -> ResidencyServiceStub: ...
    @overload
    def __new__(cls, channel: grpc.aio.Channel) -> ResidencyServiceAsyncStub: ...
    LoadAdapter: grpc.UnaryStreamMultiCallable[residency_pb2.LoadAdapterRequest, residency_pb2.LoadAdapterResponse]
    UnloadAdapter: grpc.UnaryUnaryMultiCallable[residency_pb2.UnloadAdapterRequest, residency_pb2.UnloadAdapterResponse]
    ListResidentAdapters: grpc.UnaryUnaryMultiCallable[residency_pb2.ListResidentAdaptersRequest, residency_pb2.ListResidentAdaptersResponse]
    WatchStatus: grpc.UnaryStreamMultiCallable[residency_pb2.WatchStatusRequest, residency_pb2.WatchStatusResponse]

class ResidencyServiceAsyncStub(ResidencyServiceStub):  # only a type: what ResidencyServiceStub is on grpc.aio's channels
    LoadAdapter: grpc.aio.UnaryStreamMultiCallable[residency_pb2.LoadAdapterRequest, residency_pb2.LoadAdapterResponse]
    UnloadAdapter: grpc.aio.UnaryUnaryMultiCallable[residency_pb2.UnloadAdapterRequest, residency_pb2.UnloadAdapterResponse]
    ListResidentAdapters: grpc.aio.UnaryUnaryMultiCallable[residency_pb2.ListResidentAdaptersRequest, residency_pb2.ListResidentAdaptersResponse]
    WatchStatus: grpc.aio.UnaryStreamMultiCallable[residency_pb2.WatchStatusRequest, residency_pb2.WatchStatusResponse]

class ResidencyServiceServicer:
    def LoadAdapter(self, request: residency_pb2.LoadAdapterRequest, context: Any) -> AsyncIterator[residency_pb2.LoadAdapterResponse] | Awaitable[None]: ...
    def UnloadAdapter(self, request: residency_pb2.UnloadAdapterRequest, context: Any) -> Awaitable[residency_pb2.UnloadAdapterResponse]: ...
    def ListResidentAdapters(self, request: residency_pb2.ListResidentAdaptersRequest, context: Any) -> Awaitable[residency_pb2.ListResidentAdaptersResponse]: ...
    def WatchStatus(self, request: residency_pb2.WatchStatusRequest, context: Any) -> AsyncIterator[residency_pb2.WatchStatusResponse] | Awaitable[None]: ...

def add_ResidencyServiceServicer_to_server(servicer: ResidencyServiceServicer, server: grpc.Server | grpc.aio.Server) -> None: ...
