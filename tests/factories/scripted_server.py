"""A gRPC server on 127.0.0.1 whose every answer is written down beforehand: what a client does on a faulty network.

It speaks the wire's messages and statuses, and knows nothing of adapters: the real server is what other tests run.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from hotshoe.protos.v1 import generation_pb2, registry_pb2, residency_pb2

_METHODS = {
    f"/{service.full_name}/{method.name}": method
    for module in (generation_pb2, registry_pb2, residency_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A status that ends a call, with its details."""

    code: grpc.StatusCode
    message: str = "as scripted"
    details: tuple[Message, ...] = ()


def retry_info(seconds: float) -> Message:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(seconds * 1e9))
    return info


def error_info(reason: str, **metadata: str) -> Message:
    return error_details_pb2.ErrorInfo(reason=reason, domain="hotshoe", metadata=metadata)


# A message, a failure, or for a stream of responses any number of messages and perhaps a failure at the end.
Answer = Message | Failure | Sequence[Message | Failure]
# What a call gets: an answer, or a function of the requests that gives one.
Step = Answer | Callable[[list[Any]], Answer]


@dataclass(slots=True)
class ScriptedServer:
    """Answers each method's calls with its steps in order, the last one for ever; `requests` keeps what came."""

    requests: dict[str, list[Any]] = field(default_factory=dict)
    address: str = ""
    _steps: dict[str, list[Step]] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock)
    _server: Any = None

    def answer(self, method: str, *steps: Step) -> None:
        """Sets the steps of a method, named without its package: "GenerationService/Generate"."""
        self._steps[f"/hotshoe.v1.{method}"] = list(steps)

    def calls(self, method: str) -> list[Any]:
        """The requests of each call of a method: one message, or the list of a stream's messages."""
        return self.requests.get(f"/hotshoe.v1.{method}", [])

    def __enter__(self) -> Self:
        self._server = grpc.server(ThreadPoolExecutor(8), options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if call.method not in self._steps:
            return None
        method = _METHODS[call.method]
        input_class, output_class = method.input_type._concrete_class, method.output_type._concrete_class
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        one, many = (self._one, self._many) if not method.client_streaming else (self._one_of_stream, self._many)
        behaviour = many if method.server_streaming else one

        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            return behaviour(call.method, request, context)

        return getattr(grpc, f"{kind}_rpc_method_handler")(
            handle, request_deserializer=input_class.FromString, response_serializer=output_class.SerializeToString
        )

    def _one(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        with self._lock:
            self.requests.setdefault(method, []).append(request)
        answer = self._next(method, [request])
        return _abort(context, answer) if isinstance(answer, Failure) else answer

    def _one_of_stream(self, method: str, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        received: list[Any] = []
        with self._lock:
            self.requests.setdefault(method, []).append(received)
        received.extend(requests)
        answer = self._next(method, received)
        return _abort(context, answer) if isinstance(answer, Failure) else answer

    def _many(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with self._lock:
            self.requests.setdefault(method, []).append(request)
        answer = self._next(method, [request])
        for item in answer if isinstance(answer, Sequence) else [answer]:
            if isinstance(item, Failure):
                _abort(context, item)
            yield item

    def _next(self, method: str, requests: list[Any]) -> Any:
        with self._lock:
            steps = self._steps[method]
            step = steps.pop(0) if len(steps) > 1 else steps[0]
        return step(requests) if callable(step) else step


def _abort(context: grpc.ServicerContext, failure: Failure) -> None:
    if not failure.details:
        context.abort(failure.code, failure.message)
    status = status_pb2.Status(code=failure.code.value[0], message=failure.message)
    for detail in failure.details:
        status.details.add().Pack(detail)
    context.abort_with_status(rpc_status.to_status(status))
