"""The messages of one streaming call, blocking and asyncio.

A call is tried again as its attempts allow until the first message has come, never after: what was delivered once is
not delivered twice.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Generic, Protocol, Self, TypeVar

import grpc

from hotshoe.clients.errors import Internal, from_rpc_error
from hotshoe.clients.retry import Attempts
from hotshoe.protos.v1 import generation_pb2 as generation

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class StreamCall(Protocol[T_co]):
    """A streaming call of grpc."""

    def __iter__(self) -> Iterator[T_co]: ...
    def cancel(self) -> object: ...


class AsyncStreamCall(Protocol[T_co]):
    """A streaming call of grpc.aio."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...
    def cancel(self) -> object: ...


class ResponseStream(Generic[T]):
    """The messages of one call; iterate over it. Leaving its `with` block, or `cancel()`, ends the call."""

    def __init__(self, start: Callable[[float | None], StreamCall[T]], attempts: Attempts) -> None:
        """`start` begins the call, with the seconds that are left."""
        self._start = start
        self._attempts = attempts
        self._delivered = False
        self._open()

    def _open(self) -> None:
        self._call = self._start(self._attempts.remaining())
        self._messages = iter(self._call)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while True:
            try:
                message = next(self._messages)
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            else:
                self._delivered = True
                return message
            if self._delivered:
                raise failure
            time.sleep(self._attempts.wait_after(failure))
            self._open()

    def cancel(self) -> None:
        """Ends the call; the server stops working on it. May be called from any thread."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class AsyncResponseStream(Generic[T]):
    """The messages of one call; iterate over it. Leaving its `async with` block, or `cancel()`, ends the call."""

    def __init__(self, start: Callable[[float | None], AsyncStreamCall[T]], attempts: Attempts) -> None:
        """`start` begins the call, with the seconds that are left."""
        self._start = start
        self._attempts = attempts
        self._delivered = False
        self._open()

    def _open(self) -> None:
        self._call = self._start(self._attempts.remaining())
        self._messages = self._call.__aiter__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            try:
                message = await anext(self._messages)
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
            else:
                self._delivered = True
                return message
            if self._delivered:
                raise failure
            await asyncio.sleep(self._attempts.wait_after(failure))
            self._open()

    def cancel(self) -> None:
        """Ends the call; the server stops working on it."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


class _Answer:
    """Keeps the final message of an answer's stream."""

    _final: generation.GenerateResponse | None = None

    @property
    def final(self) -> generation.GenerateResponse:
        """Usage, finish reason and resolved adapters. Raises RuntimeError before the stream has ended."""
        if self._final is None:
            raise RuntimeError("the answer has not ended: iterate over the stream first")
        return self._final

    def _keep(self, message: generation.StreamGenerateResponse) -> generation.StreamGenerateResponse:
        if message.HasField("final"):
            self._final = message.final
        return message

    def _require_final(self) -> None:
        if self._final is None:
            raise Internal("the server ended the answer's stream without its final message")


class AnswerStream(_Answer, ResponseStream[generation.StreamGenerateResponse]):
    """The deltas of one answer: `text_delta` and `tokens` of each message. `final` has the rest once it has ended."""

    def __next__(self) -> generation.StreamGenerateResponse:
        try:
            return self._keep(super().__next__())
        except StopIteration:
            self._require_final()
            raise


class AsyncAnswerStream(_Answer, AsyncResponseStream[generation.StreamGenerateResponse]):
    """The deltas of one answer: `text_delta` and `tokens` of each message. `final` has the rest once it has ended."""

    async def __anext__(self) -> generation.StreamGenerateResponse:
        try:
            return self._keep(await super().__anext__())
        except StopAsyncIteration:
            self._require_final()
            raise
