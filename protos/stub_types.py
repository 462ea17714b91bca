"""Types of the generated services, which protoc's plugin leaves out: *_pb2_grpc.pyi beside *_pb2_grpc.py."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto

_SHAPES = {
    (False, False): "UnaryUnary",
    (False, True): "UnaryStream",
    (True, False): "StreamUnary",
    (True, True): "StreamStream",
}


def stub_types(files: FileDescriptorSet, package: str) -> dict[str, str]:
    """File name → its text, for each of the files that has services; `package` is the modules', with dots."""
    messages = {
        f".{file.package}.{message.name}": f"{_module(file)}.{message.name}"
        for file in files.file
        for message in file.message_type
    }
    return {
        f"{_module(file)}_grpc.pyi": "\n".join(_lines(file, messages, package)) for file in files.file if file.service
    }


def _lines(file: FileDescriptorProto, messages: dict[str, str], package: str) -> Iterator[str]:
    methods = [method for service in file.service for method in service.method]
    used = {messages[name].split(".")[0] for one in methods for name in (one.input_type, one.output_type)}
    yield from ("from collections.abc import AsyncIterator, Awaitable", "from typing import Any, overload", "")
    yield from ("import grpc", "import grpc.aio", "", f"from {package} import {', '.join(sorted(used))}")
    for service in file.service:
        stub, async_stub, servicer = f"{service.name}Stub", f"{service.name}AsyncStub", f"{service.name}Servicer"
        yield from ("", f"class {stub}:")
        for channel, made in (("grpc.Channel", stub), ("grpc.aio.Channel", async_stub)):
            yield from ("    @overload", f"    def __new__(cls, channel: {channel}) -> {made}: ...")
        yield from (f"    {one.name}: {_callable('grpc', one, messages)}" for one in service.method)
        yield from ("", f"class {async_stub}({stub}):  # only a type: what {stub} is on grpc.aio's channels")
        yield from (f"    {one.name}: {_callable('grpc.aio', one, messages)}" for one in service.method)
        yield from ("", f"class {servicer}:")
        yield from (f"    {_handler(one, messages)}" for one in service.method)
        yield from (
            "",
            f"def add_{servicer}_to_server(servicer: {servicer}, server: grpc.Server | grpc.aio.Server) -> None: ...",
        )
    yield ""


def _callable(module: str, method: MethodDescriptorProto, messages: dict[str, str]) -> str:
    shape = _SHAPES[method.client_streaming, method.server_streaming]
    return f"{module}.{shape}MultiCallable[{messages[method.input_type]}, {messages[method.output_type]}]"


def _handler(method: MethodDescriptorProto, messages: dict[str, str]) -> str:
    """As grpc.aio calls it; a stream of answers is given, or written by the handler."""
    request, response = messages[method.input_type], messages[method.output_type]
    taken = f"request_iterator: AsyncIterator[{request}]" if method.client_streaming else f"request: {request}"
    given = f"AsyncIterator[{response}] | Awaitable[None]" if method.server_streaming else f"Awaitable[{response}]"
    return f"def {method.name}(self, {taken}, context: Any) -> {given}: ..."


def _module(file: FileDescriptorProto) -> str:
    return f"{PurePosixPath(file.name).stem}_pb2"
