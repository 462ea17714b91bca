"""An HTTP request as the services see the context of an RPC."""

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from aiohttp import web
from google.rpc import status_pb2

from hotshoe.server.openai.errors import Refused
from hotshoe.server.services.rpc import Metadata
from hotshoe.server.services.status import DETAILS_KEY


class HttpContext:
    """The `Context` of a call that came by HTTP.

    Args:
        metadata: the request's, keys in lower case.
        write: takes each message of a stream; waits while the client does not read.
    """

    def __init__(
        self,
        metadata: Metadata,
        write: Callable[[Any], Awaitable[None]] | None = None,
    ) -> None:
        self._metadata = metadata
        self._write = write
        self._trailing: Metadata = ()

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def time_remaining(self) -> None:
        """HTTP has no deadline: a client that waits no longer goes away."""

    def code(self) -> int:
        return int(grpc.StatusCode.OK.value[0])

    def trailing_metadata(self) -> Metadata:
        return self._trailing

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        self._trailing = trailing_metadata

    async def write(self, message: Any) -> None:
        assert self._write is not None, "only a streaming method writes"
        await self._write(message)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """Raises Refused, with what the status' details say."""
        packed = next((value for key, value in trailing_metadata if key == DETAILS_KEY), None)
        status = status_pb2.Status(code=code.value[0], message=details)
        if packed is not None:
            status.ParseFromString(packed)
        raise Refused(status)


def http_context(request: web.Request, write: Callable[[Any], Awaitable[None]] | None = None) -> HttpContext:
    """That of a request."""
    return HttpContext([(name.lower(), value) for name, value in request.headers.items()], write)
