import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from hotshoe.protos.v1 import registry_pb2, registry_pb2_grpc
from hotshoe.registry.errors import AdapterNotFound
from hotshoe.server.errors import QueueFull
from hotshoe.server.metrics import Metrics
from hotshoe.server.services.endings import current_ending
from hotshoe.server.services.interceptors import RpcInterceptor


class Service(registry_pb2_grpc.RegistryServiceServicer):
    """Raises what it is told to, in a unary and in a streaming method."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.begun = asyncio.Event()
        self.release = asyncio.Event()
        self.ended = asyncio.Event()
        self.told: grpc.StatusCode | None = None  # how a lingering call ended

    async def GetAdapter(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        context.set_trailing_metadata((("x-request-id", "r1"),))
        if request.reference == "wait":
            self.begun.set()
            try:
                await self.release.wait()
            finally:
                self.ended.set()
        if request.reference == "linger":
            self.begun.set()
            try:
                await self.release.wait()
            finally:
                self.told = current_ending.get().cancelled()
                while context.time_remaining() > 0:
                    await asyncio.sleep(0.01)
                self.ended.set()
        if self.error:
            raise self.error
        return registry_pb2.GetAdapterResponse()

    async def DownloadBlob(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            yield registry_pb2.DownloadBlobResponse(data=b"1")
            if self.error:
                raise self.error
            yield registry_pb2.DownloadBlobResponse(data=b"2")
        finally:
            self.ended.set()

    async def UploadBlob(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:
        sizes = [len(message.data) async for message in requests]
        return registry_pb2.UploadBlobResponse(committed_bytes=sum(sizes))


class Running:
    def __init__(self, service: Service, interceptor: RpcInterceptor, metrics: Metrics, stub: Any) -> None:
        self.service = service
        self.interceptor = interceptor
        self.metrics = metrics
        self.stub = stub

    async def handled(self, method: str, code: str, type: str = "unary") -> float | None:
        await self.interceptor.wait_idle()  # an answer may be here before it is counted
        labels = {
            "grpc_type": type,
            "grpc_service": "hotshoe.v1.RegistryService",
            "grpc_method": method,
            "grpc_code": code,
        }
        return self.metrics.registry.get_sample_value("grpc_server_handled_total", labels)


@asynccontextmanager
async def _running() -> AsyncIterator[Running]:
    metrics = Metrics()
    interceptor = RpcInterceptor(metrics)
    server = grpc.aio.server(interceptors=(interceptor,))
    service = Service()
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Running(service, interceptor, metrics, registry_pb2_grpc.RegistryServiceStub(channel))
    await server.stop(0)


def _run(body: Callable[[Running], Any]) -> None:
    async def main() -> None:
        async with asyncio.timeout(100), _running() as running:
            await body(running)

    asyncio.run(main())


def test_what_a_unary_handler_raises_gets_its_status_and_keeps_the_trailing_metadata() -> None:
    async def body(running: Running) -> None:
        running.service.error = AdapterNotFound("no adapter poet:latest")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.GetAdapter(registry_pb2.GetAdapterRequest())
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "no adapter poet:latest"
        assert ("x-request-id", "r1") in tuple(caught.value.trailing_metadata())
        status = rpc_status.from_call(caught.value)
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason == "ADAPTER_NOT_FOUND"
        assert await running.handled("GetAdapter", "NOT_FOUND") == 1

    _run(body)


def test_what_a_streaming_handler_raises_comes_after_what_it_gave() -> None:
    async def body(running: Running) -> None:
        running.service.error = QueueFull("full")
        call = running.stub.DownloadBlob(registry_pb2.DownloadBlobRequest())
        got = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for message in call:
                got.append(message.data)
        assert got == [b"1"]
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await running.handled("DownloadBlob", "RESOURCE_EXHAUSTED", "server_stream") == 1

    _run(body)


def test_a_bug_leaks_nothing() -> None:
    async def body(running: Running) -> None:
        running.service.error = KeyError("/secret/path")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.GetAdapter(registry_pb2.GetAdapterRequest())
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in f"{caught.value.details()}{caught.value.trailing_metadata()}"

    _run(body)


def test_not_implemented_inside_a_handler_is_a_bug_and_not_a_missing_method() -> None:
    async def body(running: Running) -> None:
        running.service.error = NotImplementedError("some library")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.GetAdapter(registry_pb2.GetAdapterRequest())
        assert caught.value.code() is grpc.StatusCode.INTERNAL

    _run(body)


def test_what_the_base_class_answers_is_unimplemented() -> None:
    async def body(running: Running) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.MergeAdapters(registry_pb2.MergeAdaptersRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await running.handled("MergeAdapters", "UNIMPLEMENTED") == 1

    _run(body)


def test_success_passes_through_whole() -> None:
    async def body(running: Running) -> None:
        await running.stub.GetAdapter(registry_pb2.GetAdapterRequest())
        call = running.stub.DownloadBlob(registry_pb2.DownloadBlobRequest())
        assert [message.data async for message in call] == [b"1", b"2"]
        chunks = [registry_pb2.UploadBlobRequest(data=b"abc"), registry_pb2.UploadBlobRequest(data=b"de")]
        assert (await running.stub.UploadBlob(iter(chunks))).committed_bytes == 5
        assert await running.handled("GetAdapter", "OK") == 1
        assert await running.handled("DownloadBlob", "OK", "server_stream") == 1
        assert await running.handled("UploadBlob", "OK", "client_stream") == 1

    _run(body)


def test_a_cancelled_call_ends_its_handler_and_counts_as_cancelled() -> None:
    async def body(running: Running) -> None:
        call = running.stub.GetAdapter(registry_pb2.GetAdapterRequest(reference="wait"))
        await running.service.begun.wait()
        call.cancel()
        await running.service.ended.wait()
        assert await running.handled("GetAdapter", "CANCELLED") == 1

    _run(body)


def test_a_passed_deadline_ends_the_handler_and_counts_as_such() -> None:
    async def body(running: Running) -> None:
        milliseconds = 100
        while not running.service.begun.is_set():  # on a busy machine it may have passed by then
            milliseconds *= 2
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                # Known to the server alone: a client's own passes a moment earlier, and cancels the call.
                deadline = (("grpc-timeout", f"{milliseconds}m"),)
                await running.stub.GetAdapter(registry_pb2.GetAdapterRequest(reference="wait"), metadata=deadline)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await running.service.ended.wait()
        assert await running.handled("GetAdapter", "DEADLINE_EXCEEDED") == 1

    _run(body)


def test_a_cancelled_call_whose_deadline_passes_while_it_ends_is_one_thing_to_all() -> None:
    async def body(running: Running) -> None:
        call = running.stub.GetAdapter(registry_pb2.GetAdapterRequest(reference="linger"), timeout=0.5)
        await running.service.begun.wait()
        call.cancel()
        await running.service.ended.wait()
        assert running.service.told is not None
        assert await running.handled("GetAdapter", running.service.told.name) == 1

    _run(body)


def test_while_draining_new_calls_are_refused_and_old_ones_finish() -> None:
    async def body(running: Running) -> None:
        old = running.stub.GetAdapter(registry_pb2.GetAdapterRequest(reference="wait"))
        await running.service.begun.wait()
        running.interceptor.begin_drain()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.GetAdapter(registry_pb2.GetAdapterRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in rpc_status.from_call(caught.value).details)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(running.interceptor.wait_idle(), 0.1)
        running.service.release.set()
        await old
        await running.interceptor.wait_idle()

    _run(body)
