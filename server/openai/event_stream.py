"""Answers as server-sent events."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from hotshoe.protos.v1 import generation_pb2
from hotshoe.server.openai import request_body, response_body
from hotshoe.server.openai.errors import Refused
from hotshoe.server.openai.http_context import http_context
from hotshoe.server.openai.response_body import Head
from hotshoe.server.services.rpc import Context

_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

StreamGenerate = Callable[[generation_pb2.StreamGenerateRequest, Context], Awaitable[None]]


class _EventStream(ABC):
    """An answer as server-sent events, begun with its first message: what fails before has a status of its own."""

    def __init__(self, request: web.Request, head: Head, body: Mapping[str, Any]) -> None:
        self._request = request
        self._head = head
        self._tells_usage = request_body.streams_usage(body)
        self._response: web.StreamResponse | None = None

    async def run(self, stream: StreamGenerate, message: generation_pb2.GenerateRequest) -> web.StreamResponse:
        """Has the request answered, and writes what comes. Raises Refused where nothing has come yet."""
        call = generation_pb2.StreamGenerateRequest(request=message)
        try:
            await stream(call, http_context(self._request, self._take))
        except Refused as error:
            if self._response is None:
                raise
            await self._send(error.body)
        assert self._response is not None, "a stream that ends well had a last message"
        await self._write(b"[DONE]")
        return self._response

    async def _take(self, message: generation_pb2.StreamGenerateResponse) -> None:
        if self._response is None:
            self._response = web.StreamResponse(headers=_HEADERS)
            await self._response.prepare(self._request)
            await self._begin()
        await self._tell(message)
        if message.HasField("final") and self._tells_usage:
            usage = {"choices": [], "usage": response_body.usage([message.final])}
            await self._send(self._empty() | usage)

    async def _send(self, body: Mapping[str, Any]) -> None:
        await self._write(json.dumps(body, separators=(",", ":")).encode())

    async def _write(self, event: bytes) -> None:
        assert self._response is not None
        try:
            await self._response.write(b"data: " + event + b"\n\n")
        except ConnectionError:  # seen here before the handler is cancelled for it
            raise asyncio.CancelledError from None

    @abstractmethod
    async def _begin(self) -> None:
        """What comes before the first message's."""

    @abstractmethod
    async def _tell(self, message: generation_pb2.StreamGenerateResponse) -> None:
        """What a message becomes."""

    @abstractmethod
    def _empty(self) -> dict[str, Any]:
        """A body without choices."""


class ChatStream(_EventStream):
    """The chunks of a chat: the role, the text, why it ended."""

    def __init__(self, request: web.Request, head: Head, body: Mapping[str, Any], tells_logprobs: bool) -> None:
        super().__init__(request, head, body)
        self._tells_logprobs = tells_logprobs

    async def _begin(self) -> None:
        await self._send(response_body.chat_chunk(self._head, {"role": "assistant", "content": ""}))

    async def _tell(self, message: generation_pb2.StreamGenerateResponse) -> None:
        logprobs = response_body.chat_logprobs(message.tokens) if self._tells_logprobs else None
        if message.text_delta or (logprobs and message.tokens):
            delta = {"content": message.text_delta}
            await self._send(response_body.chat_chunk(self._head, delta, logprobs=logprobs))
        if message.HasField("final"):
            [answer] = message.final.completions
            await self._send(response_body.chat_chunk(self._head, {}, finish=response_body.finish_reason(answer)))

    def _empty(self) -> dict[str, Any]:
        return self._head.of("chat.completion.chunk")


class CompletionStream(_EventStream):
    """The pieces of a completion."""

    def __init__(self, request: web.Request, head: Head, body: Mapping[str, Any]) -> None:
        super().__init__(request, head, body)
        self._offset = 0

    async def _begin(self) -> None:
        """Nothing does."""

    async def _tell(self, message: generation_pb2.StreamGenerateResponse) -> None:
        finish = response_body.finish_reason(message.final.completions[0]) if message.HasField("final") else None
        if not message.text_delta and not message.tokens and finish is None:
            return
        choice = response_body.completion_choice(0, message.text_delta, message.tokens, finish, self._offset)
        self._offset += sum(len(token.text) for token in message.tokens)
        await self._send(self._empty() | {"choices": [choice]})

    def _empty(self) -> dict[str, Any]:
        return self._head.of("text_completion")
