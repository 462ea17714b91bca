"""OpenAI's HTTP API: /v1/chat/completions, /v1/completions and /v1/models, on the server's event loop.

Each request is carried out as an RPC: the same admission, limits, metrics and drain hold.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from aiohttp import web

from hotshoe.protos.v1 import generation_pb2, registry_pb2
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.openai import request_body, response_body
from hotshoe.server.openai.errors import Refused, error_body
from hotshoe.server.openai.event_stream import ChatStream, CompletionStream
from hotshoe.server.openai.http_context import http_context
from hotshoe.server.openai.response_body import Head
from hotshoe.server.services.generation import GenerationService
from hotshoe.server.services.interceptors import RpcInterceptor
from hotshoe.server.services.registry import RegistryService
from hotshoe.server.services.requests import request_id_of
from hotshoe.server.services.status import status_of

MAX_BODY_BYTES = 4 << 20
BODY_SECONDS = 30.0
_GENERATION, _REGISTRY = "/hotshoe.v1.GenerationService", "/hotshoe.v1.RegistryService"
_LIST_PAGE = 1000

_T = TypeVar("_T")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class OpenAiApi:
    """The API's routes.

    Args:
        base_model: the base model's name, which requests may call it by, as by "base".
        health: whether the server can answer, and what to say about it.
    """

    def __init__(
        self,
        interceptor: RpcInterceptor,
        generation: GenerationService,
        registry: RegistryService,
        *,
        base_model: str,
        health: Callable[[], tuple[bool, Mapping[str, Any]]],
    ) -> None:
        self._generate = interceptor.direct(f"{_GENERATION}/Generate", generation.Generate)
        self._stream = interceptor.direct_stream(f"{_GENERATION}/StreamGenerate", generation.StreamGenerate)
        self._list = interceptor.direct(f"{_REGISTRY}/ListAdapters", registry.ListAdapters)
        self._get = interceptor.direct(f"{_REGISTRY}/GetAdapter", registry.GetAdapter)
        self._base_model = base_model
        self._health = health
        self._started = int(time.time())

    def application(self) -> web.Application:
        """The routes, for an aiohttp runner."""
        application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_json])
        application.router.add_post("/v1/chat/completions", self._chat)
        application.router.add_post("/v1/completions", self._complete)
        application.router.add_get("/v1/models", self._models)
        application.router.add_get("/v1/models/{model:.+}", self._model)
        application.router.add_get("/health", self._tell_health)
        return application

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        message = request_body.chat_request(body, self._base_model)
        head = self._head(message, body, "chatcmpl")
        tells_logprobs = message.HasField("logprobs")
        if request_body.streams(body):
            return await ChatStream(request, head, body, tells_logprobs).run(self._stream, message)
        response = await self._generate(message, http_context(request))
        return web.json_response(response_body.chat_completion(head, response, logprobs=tells_logprobs))

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        messages = request_body.completion_requests(body, self._base_model)
        head = self._head(messages[0], body, "cmpl")
        echoes = request_body.echoes(body)
        if request_body.streams(body):
            if len(messages) > 1 or echoes:
                raise InvalidRequest("stream", "expected one prompt, and no echo")
            return await CompletionStream(request, head, body).run(self._stream, messages[0])
        responses = await _together(self._generate(message, http_context(request)) for message in messages)
        prompts = [_prompt_text(*pair) if echoes else None for pair in zip(messages, responses, strict=True)]
        told = 0 if echoes and body.get("max_tokens") == 0 else None
        return web.json_response(response_body.completion(head, responses, prompts, told=told))

    async def _models(self, request: web.Request) -> web.Response:
        models, token = [self._model_of_base()], ""
        while True:
            page = registry_pb2.ListAdaptersRequest(page_size=_LIST_PAGE, page_token=token)
            response = await self._list(page, http_context(request))
            models += [
                self._model_of(f"{adapter.name}:{tag}", adapter)
                for adapter in response.adapters
                for tag in adapter.tags
            ]
            token = response.next_page_token
            if not token:
                return web.json_response({"object": "list", "data": models})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if name in (request_body.BASE, self._base_model):
            return web.json_response(self._model_of_base())
        found = await self._get(registry_pb2.GetAdapterRequest(reference=name.partition("#")[0]), http_context(request))
        return web.json_response(self._model_of(name, found.adapter))

    def _model_of_base(self) -> dict[str, Any]:
        return {"id": self._base_model, "object": "model", "created": self._started, "owned_by": "hotshoe"}

    def _model_of(self, name: str, adapter: registry_pb2.Adapter) -> dict[str, Any]:
        """As vLLM tells of adapters: `root` is what it is, `parent` the base."""
        model = {"id": name, "object": "model", "created": self._started, "owned_by": "hotshoe"}
        return model | {"root": adapter.digest, "parent": self._base_model}

    async def _tell_health(self, request: web.Request) -> web.Response:
        serving, details = self._health()
        return web.json_response(dict(details), status=200 if serving else 503)

    def _head(self, message: generation_pb2.GenerateRequest, body: Mapping[str, Any], kind: str) -> Head:
        message.request_id = request_id_of(message.request_id)
        return Head(f"{kind}-{message.request_id}", int(time.time()), body["model"])


@web.middleware
async def _errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        kind = "invalid_request_error" if error.status < 500 else "internal_error"
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return web.json_response(error_body(error.text or error.reason, kind), status=error.status, headers=allowed)
    except Refused as error:
        refused = error
    except asyncio.CancelledError:
        raise
    except Exception as error:  # a field that is wrong, or a bug, which leaves with an id alone
        refused = Refused(status_of(error, method=request.path))
    return web.json_response(refused.body, status=refused.http_status, headers=refused.headers)


async def _json(request: web.Request) -> dict[str, Any]:
    """The body. JSON must say that it is: else any page in a browser on this machine could send it."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="expected Content-Type: application/json")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            data = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not come within {BODY_SECONDS:g} seconds") from None
    except web.RequestPayloadError:
        raise InvalidRequest("body", "is not encoded as its headers say") from None
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidRequest("body", "is not JSON") from None
    if not isinstance(body, dict):
        raise InvalidRequest("body", "expected a JSON object")
    return body


async def _together(calls: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """What they give; the first that fails ends all, and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _prompt_text(message: generation_pb2.GenerateRequest, response: generation_pb2.GenerateResponse) -> str:
    """The prompt as its answer repeats it: its text, or that of its tokens where those were given."""
    if message.WhichOneof("prompt") == "text":
        return message.text
    return "".join(token.text for token in response.prompt_tokens)
