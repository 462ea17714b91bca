"""The outermost layer of every RPC: counts it, asks who calls, and turns what it raises into a status."""

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from hotshoe.protos.v1 import chunks
from hotshoe.server.errors import Draining, InvalidRequest
from hotshoe.server.metrics import Metrics
from hotshoe.server.services.admission import Admission
from hotshoe.server.services.callers import current_caller
from hotshoe.server.services.rpc import Context, Handler
from hotshoe.server.services.status import code_of, status_of

# Probes and tools: answered while draining, and not waited for; anybody's.
_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.")
# Messages with megabytes in them, which the generated code would copy.
_DECODERS: Mapping[str, Callable[[bytes], Any]] = {chunks.UPLOAD: chunks.read_upload}
_ENCODERS: Mapping[str, Callable[[Any], bytes]] = {chunks.DOWNLOAD: chunks.encode}
# (requests stream, responses stream) → the handler's attribute, and the type that dashboards know
_SHAPES = {
    (False, False): ("unary_unary", "unary"),
    (False, True): ("unary_stream", "server_stream"),
    (True, False): ("stream_unary", "client_stream"),
    (True, True): ("stream_stream", "bidi_stream"),
}

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class RpcMethod:
    """One method, as the metrics label it."""

    path: str
    service: str
    name: str
    type: str  # unary, client_stream, server_stream, bidi_stream

    @property
    def is_infrastructure(self) -> bool:
        return self.path.startswith(_INFRASTRUCTURE)


class RpcInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs alone
    """Wraps every handler once; unary and streaming alike."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._wrapped: dict[str, Handler] = {}
        self._admission: Admission | None = None
        self._draining = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def admit_by(self, admission: Admission) -> None:
        """Asks every call for a token from now on."""
        self._admission = admission

    def begin_drain(self) -> None:
        """Refuses new RPCs from now on; those under way go on."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Returns once no RPC is under way, but for health and reflection."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        path = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if path not in self._wrapped:  # known methods only, so it stays small
            self._wrapped[path] = self._wrap(path, handler)
        return self._wrapped[path]

    def direct(
        self, path: str, behaviour: Callable[[_Request, Context], Awaitable[_Response]]
    ) -> Callable[[_Request, Context], Coroutine[Any, Any, _Response]]:
        """`behaviour` as an RPC of that path runs it: for messages that come by other ways than gRPC."""
        method = _method(path, requests_stream=False, responses_stream=False)
        return self._guard_unary(method, self._reading(method, behaviour, lambda message: message, streams=False))

    def direct_stream(
        self, path: str, behaviour: Callable[[_Request, Context], Awaitable[None]]
    ) -> Callable[[_Request, Context], Awaitable[None]]:
        """As `direct`, of one that answers with a stream, which goes to its context's `write`."""
        method = _method(path, requests_stream=False, responses_stream=True)
        return self._guard_stream(method, self._reading(method, behaviour, lambda message: message, streams=False))

    def _wrap(self, path: str, handler: Handler) -> Handler:
        method = _method(path, requests_stream=handler.request_streaming, responses_stream=handler.response_streaming)
        slot = _SHAPES[handler.request_streaming, handler.response_streaming][0]
        decode = _DECODERS.get(path, handler.request_deserializer)
        behaviour = self._reading(method, getattr(handler, slot), decode, streams=handler.request_streaming)
        guard = self._guard_stream if handler.response_streaming else self._guard_unary
        guarded: dict[str, Any] = {slot: guard(method, behaviour), "request_deserializer": None}
        if path in _ENCODERS:
            guarded["response_serializer"] = _ENCODERS[path]
        replaced: Handler = handler._replace(**guarded)  # type: ignore[attr-defined]  # a named tuple
        return replaced

    def _reading(
        self, method: RpcMethod, behaviour: Callable[..., Any], decode: Callable[[Any], Any] | None, *, streams: bool
    ) -> Callable[..., Any]:
        """`behaviour` on undecoded bytes: gRPC's own decoding answers UNKNOWN, with the name of a Python class."""
        if decode is None:
            return behaviour

        def decoded(data: bytes) -> Any:
            try:
                message = decode(data)
            except DecodeError:
                raise InvalidRequest("message", "is not a message of this method's request type") from None
            if self._admission and not method.is_infrastructure:
                self._admission.check(method.path, message)
            return message

        if streams:
            return lambda requests, context: behaviour((decoded(data) async for data in requests), context)
        return lambda request, context: behaviour(decoded(request), context)

    def _guard_unary(self, method: RpcMethod, behaviour: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def guarded(request: Any, context: Context) -> Any:
            async with self._rpc(method, context):
                response = behaviour(request, context)
                return await response if inspect.isawaitable(response) else response

        return guarded

    def _guard_stream(self, method: RpcMethod, behaviour: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
        async def guarded(request: Any, context: Context) -> None:
            async with self._rpc(method, context):
                responses = behaviour(request, context)
                if inspect.isawaitable(responses):  # it writes by itself
                    await responses
                    return
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        await context.write(response)

        return guarded

    @contextlib.asynccontextmanager
    async def _rpc(self, method: RpcMethod, context: Context) -> AsyncIterator[None]:
        started = time.perf_counter()
        self._metrics.rpc_started(method)
        self._enter(method)
        code = grpc.StatusCode.OK
        try:
            if self._draining and not method.is_infrastructure:
                raise Draining("the server is shutting down")
            if self._admission and not method.is_infrastructure:
                current_caller.set(self._admission.admit(context.invocation_metadata() or ()))
            yield
        except grpc.aio.AbortError:
            code = _code_set(context)
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.DEADLINE_EXCEEDED if _deadline_passed(context) else grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            if _left_to_base_class(error, context):
                code = grpc.StatusCode.UNIMPLEMENTED
                await context.abort(code, f"{method.name} is not implemented by this server")
            status = status_of(error, method=method.path)
            code = code_of(status)
            await _abort(context, status)
        finally:
            self._leave(method)
            self._metrics.rpc_handled(method, code.name, time.perf_counter() - started)

    def _enter(self, method: RpcMethod) -> None:
        if not method.is_infrastructure:
            self._in_flight += 1
            self._idle.clear()

    def _leave(self, method: RpcMethod) -> None:
        if not method.is_infrastructure:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()


def _method(path: str, *, requests_stream: bool, responses_stream: bool) -> RpcMethod:
    service, _, name = path.lstrip("/").rpartition("/")
    return RpcMethod(path=path, service=service, name=name, type=_SHAPES[requests_stream, responses_stream][1])


async def _abort(context: Context, status: Any) -> None:
    """Ends the RPC with `status`, keeping the trailing metadata that the handler set."""
    rich = rpc_status.to_status(status)
    kept = tuple(context.trailing_metadata() or ())
    await context.abort(rich.code, rich.details, (*rich.trailing_metadata, *kept))


def _left_to_base_class(error: Exception, context: Context) -> bool:
    """True if the generated servicer answered, which sets the code before it raises."""
    return isinstance(error, NotImplementedError) and _code_set(context) is grpc.StatusCode.UNIMPLEMENTED


def _code_set(context: Context) -> grpc.StatusCode:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN)


def _deadline_passed(context: Context) -> bool:
    remaining = context.time_remaining()
    return remaining is not None and remaining <= 0
