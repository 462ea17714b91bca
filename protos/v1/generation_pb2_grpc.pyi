from collections.abc import AsyncIterator, Awaitable
from typing import Any, overload

import grpc
import grpc.aio

from hotshoe.protos.v1 import generation_pb2

class GenerationServiceStub:
    @overload
    def __new__(cls, channel: grpc.Channel) -> GenerationServiceStub: ...
    @overload
    def __new__(cls, channel: grpc.aio.Channel) -> GenerationServiceAsyncStub: ...
    Generate: grpc.UnaryUnaryMultiCallable[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]
    StreamGenerate: grpc.UnaryStreamMultiCallable[generation_pb2.StreamGenerateRequest, generation_pb2.StreamGenerateResponse]
    Score: grpc.UnaryUnaryMultiCallable[generation_pb2.ScoreRequest, generation_pb2.ScoreResponse]
    Tokenize: grpc.UnaryUnaryMultiCallable[generation_pb2.TokenizeRequest, generation_pb2.TokenizeResponse]
    GetModelInfo: grpc.UnaryUnaryMultiCallable[generation_pb2.GetModelInfoRequest, generation_pb2.GetModelInfoResponse]

class GenerationServiceAsyncStub(GenerationServiceStub):  # only a type: what GenerationServiceStub is on grpc.aio's channels
    Generate: grpc.aio.UnaryUnaryMultiCallable[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]
    StreamGenerate: grpc.aio.UnaryStreamMultiCallable[generation_pb2.StreamGenerateRequest, generation_pb2.StreamGenerateResponse]
    Score: grpc.aio.UnaryUnaryMultiCallable[generation_pb2.ScoreRequest, generation_pb2.ScoreResponse]
    Tokenize: grpc.aio.UnaryUnaryMultiCallable[generation_pb2.TokenizeRequest, generation_pb2.TokenizeResponse]
    GetModelInfo: grpc.aio.UnaryUnaryMultiCallable[generation_pb2.GetModelInfoRequest, generation_pb2.GetModelInfoResponse]

class GenerationServiceServicer:
    def Generate(self, request: generation_pb2.GenerateRequest, context: Any) -> Awaitable[generation_pb2.GenerateResponse]: ...
    def StreamGenerate(self, request: generation_pb2.StreamGenerateRequest, context: Any) -> AsyncIterator[generation_pb2.StreamGenerateResponse] | Awaitable[None]: ...
    def Score(self, request: generation_pb2.ScoreRequest, context: Any) -> Awaitable[generation_pb2.ScoreResponse]: ...
    def Tokenize(self, request: generation_pb2.TokenizeRequest, context: Any) -> Awaitable[generation_pb2.TokenizeResponse]: ...
    def GetModelInfo(self, request: generation_pb2.GetModelInfoRequest, context: Any) -> Awaitable[generation_pb2.GetModelInfoResponse]: ...

def add_GenerationServiceServicer_to_server(servicer: GenerationServiceServicer, server: grpc.Server | grpc.aio.Server) -> None: ...
