"""GenerationService: message ⇄ core type. Text in and out happens here, tokens are the engine's business."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import grpc

from hotshoe.protos.v1 import generation_pb2, generation_pb2_grpc
from hotshoe.server.engine.engine import Engine
from hotshoe.server.engine.request import Request
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.logs import log_event
from hotshoe.server.metrics import Metrics
from hotshoe.server.model.tokenizer import Tokenizer
from hotshoe.server.services.answers import RequestAnswers, resolved_adapters
from hotshoe.server.services.callers import current_caller
from hotshoe.server.services.dispatcher import Dispatcher, OutputQueue
from hotshoe.server.services.endings import current_ending
from hotshoe.server.services.output_formats import OutputFormats
from hotshoe.server.services.pull_through import PullThrough
from hotshoe.server.services.requests import MAX_ADAPTERS, RequestMapper, request_id_of
from hotshoe.server.services.rpc import Context, call_in
from hotshoe.server.services.status import REQUEST_ID_KEY, code_for

MAX_TOKENIZE_BYTES = 1 << 20
LONG_BYTES = 1 << 16
MAX_TENANT_CHARS = 128

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class GenerationParts:
    """What the service stands on."""

    engine: Engine
    dispatcher: Dispatcher
    mapper: RequestMapper
    pull_through: PullThrough
    tokenizer: Tokenizer
    metrics: Metrics
    model_info: generation_pb2.GetModelInfoResponse
    tenant_metadata: str  # the key that names a request's tenant where no token does; "": all are one tenant's
    stream_buffer_tokens: int
    executor: Executor  # for what checks and tokenizes
    long_executor: Executor  # the same, of what takes long: no other request waits behind it
    formats: OutputFormats


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    """Generates, streams and scores. Errors leave as exceptions; the interceptor gives them their status."""

    def __init__(self, parts: GenerationParts) -> None:
        self._parts = parts
        self._engine = parts.engine

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> generation_pb2.GenerateResponse:
        request_id = _identify(request.request_id, context)
        await self._bring(request.adapters)
        mapping = partial(self._parts.mapper.generate, request)
        answers = await self._map(mapping, request.ByteSize(), request_id, context, format=_format(request))
        with self._running(answers, limit=None) as queue:
            while not answers.finished:
                await self._take(queue, answers)
        response = answers.final(request_id)
        for answer, completion in zip(answers, response.completions, strict=True):
            completion.text = answer.text
            completion.tokens.extend(answer.tokens)
        return response

    async def StreamGenerate(self, request: generation_pb2.StreamGenerateRequest, context: Context) -> None:
        """Writes by itself, so that a write that blocks is inside `_running`."""
        request_id = _identify(request.request.request_id, context)
        await self._bring(request.request.adapters)
        mapping = partial(self._parts.mapper.generate, request.request, streaming=True)
        asked = _format(request.request)
        answers = await self._map(mapping, request.ByteSize(), request_id, context, format=asked)
        with self._running(answers, limit=self._parts.stream_buffer_tokens) as queue:
            while not answers.finished:
                message = generation_pb2.StreamGenerateResponse()
                sent = len(answers[0].tokens)
                message.text_delta = await self._take(queue, answers)
                message.tokens.extend(answers[0].tokens[sent:])
                if answers.finished:
                    message.final.CopyFrom(answers.final(request_id))
                await context.write(message)

    async def Score(self, request: generation_pb2.ScoreRequest, context: Context) -> generation_pb2.ScoreResponse:
        request_id = _identify(request.request_id, context)
        await self._bring(request.adapters)
        mapping = partial(self._parts.mapper.score, request)
        answers = await self._map(mapping, request.ByteSize(), request_id, context)
        with self._running(answers, limit=None) as queue:
            while not answers.finished:
                await self._take(queue, answers)
        choices = [
            generation_pb2.ScoredChoice(text=text, tokens=answer.tokens, logprob=answer.logprob)
            for text, answer in zip(request.choices, answers, strict=True)
        ]
        if request.length_normalized:
            for choice in choices:
                choice.logprob /= len(choice.tokens)
        for choice, probability in zip(choices, _softmax([choice.logprob for choice in choices]), strict=True):
            choice.probability = probability
        return generation_pb2.ScoreResponse(
            choices=choices,
            adapters=resolved_adapters(answers.request.named_adapters),
            usage=answers.usage(),
            request_id=request_id,
        )

    async def Tokenize(
        self, request: generation_pb2.TokenizeRequest, context: Context
    ) -> generation_pb2.TokenizeResponse:
        if len(request.text.encode()) > MAX_TOKENIZE_BYTES:
            raise InvalidRequest("text", f"at most {MAX_TOKENIZE_BYTES} bytes of UTF-8")
        return await self._in_executor(partial(self._tokenize, request), request.ByteSize())

    async def GetModelInfo(
        self, request: generation_pb2.GetModelInfoRequest, context: Context
    ) -> generation_pb2.GetModelInfoResponse:
        return self._parts.model_info

    def _tokenize(self, request: generation_pb2.TokenizeRequest) -> generation_pb2.TokenizeResponse:
        tokenizer = self._parts.tokenizer
        ids = tokenizer.encode(request.text, add_special_tokens=request.add_special_tokens)
        return generation_pb2.TokenizeResponse(token_ids=ids, tokens=[tokenizer.token_text(token) for token in ids])

    async def _bring(self, adapters: Sequence[generation_pb2.AdapterSelection]) -> None:
        """Has what is named by digest fetched if it is elsewhere; the mapper refuses more than a request may have."""
        await self._parts.pull_through.bring(selection.reference for selection in adapters[:MAX_ADAPTERS])

    async def _map(
        self,
        mapping: Callable[..., Request],
        size_bytes: int,
        request_id: str,
        context: Context,
        *,
        format: generation_pb2.OutputFormat | None = None,
    ) -> RequestAnswers:
        """Checks, tokenizes and resolves in the executor, and compiles the format in its own: all of it may block."""
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        request = await self._in_executor(partial(mapping, request_id=request_id, deadline=deadline), size_bytes)
        grammar = None if format is None else await self._parts.formats.grammar(format)
        request = replace(request, tenant=self._tenant(context), grammar=grammar)
        unused = self._parts.dispatcher.unused_id(request_id)
        if unused != request_id:
            request = replace(request, request_id=unused)
        return RequestAnswers(request, self._parts.tokenizer)

    def _tenant(self, context: Context) -> str:
        """Whom the token, or else the metadata, names; "" if neither. Raises InvalidRequest if that names two."""
        caller, key = current_caller.get(), self._parts.tenant_metadata
        if caller is not None:
            return caller.tenant
        named = {value for name, value in context.invocation_metadata() or () if key and name == key}
        if len(named) > 1:
            raise InvalidRequest(key, "names more than one tenant")  # whose would it be?
        tenant = str(named.pop()) if named else ""
        if len(tenant) > MAX_TENANT_CHARS:
            raise InvalidRequest(key, f"at most {MAX_TENANT_CHARS} characters")
        return tenant

    async def _in_executor(self, function: Callable[[], _T], size_bytes: int) -> _T:
        executor = self._parts.executor if size_bytes < LONG_BYTES else self._parts.long_executor
        return await call_in(executor, function)

    @contextmanager
    def _running(self, answers: RequestAnswers, *, limit: int | None) -> Iterator[OutputQueue]:
        """Submits the request; whatever happens then, the engine forgets it and it is counted once."""
        code = grpc.StatusCode.OK.name
        submitted = False
        request_id = answers.request.request_id
        try:
            with self._parts.dispatcher.queue(answers.request, limit=limit) as queue:
                self._engine.submit(answers.request)
                submitted = True
                queue.submitted()
                with _cancelled_by(queue):
                    yield queue
        except asyncio.CancelledError:
            code = current_ending.get().cancelled().name
            raise
        except Exception as error:
            code = code_for(error).name
            raise
        finally:
            if submitted and not answers.engine_is_done:
                self._engine.cancel(request_id)
            self._parts.metrics.request_finished(answers.summary(code, admitted=submitted))
            _log(answers, code, admitted=submitted)

    async def _take(self, queue: OutputQueue, answers: RequestAnswers) -> str:
        """Waits for output, adds all there is and returns the new text of the first answer."""
        text = ""
        for output in await queue.take():
            delta = answers.add(output)
            if output.index == 0:
                text += delta
            if answers.engine_may_drop(output):
                self._engine.cancel(answers.request.request_id, output.index)
        return text


@contextmanager
def _cancelled_by(queue: OutputQueue) -> Iterator[None]:
    """A cancellation that the queue asked for becomes the queue's error."""
    try:
        yield
    except asyncio.CancelledError:
        if queue.error is None:
            raise
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        raise queue.error from None


def _identify(given: str, context: Context) -> str:
    """The request's id, which the trailing metadata carries whatever the end."""
    request_id = request_id_of(given)
    context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
    return request_id


def _format(request: generation_pb2.GenerateRequest) -> generation_pb2.OutputFormat | None:
    return request.format if request.HasField("format") else None


def _softmax(logprobs: list[float]) -> list[float]:
    largest = max(logprobs)
    if math.isinf(largest):
        return [1 / len(logprobs)] * len(logprobs)
    powers = [math.exp(logprob - largest) for logprob in logprobs]
    return [power / sum(powers) for power in powers]


def _log(answers: RequestAnswers, code: str, *, admitted: bool) -> None:
    """One line for each request; never its text."""
    request = answers.request
    log_event(
        logging.INFO,
        "request",
        request_id=request.request_id,
        code=code,
        admitted=admitted,
        adapters=",".join(use.key for use in request.named_adapters) or "-",
        prompt_tokens=len(request.prompt_token_ids),
        new_tokens=answers.num_tokens,
        seconds=time.monotonic() - request.arrival,
    )
