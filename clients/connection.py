"""A connection to one server, blocking and asyncio: its stubs, and calls, tried again as their attempts allow."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Self

import grpc

from hotshoe.clients.channels import DEFAULT_SERVER, open_aio_channel, open_channel, registry_stub
from hotshoe.clients.errors import from_rpc_error
from hotshoe.clients.retry import DEFAULT_RETRY, Attempts, RetryPolicy
from hotshoe.clients.tokens import Token
from hotshoe.protos.v1.generation_pb2_grpc import GenerationServiceStub
from hotshoe.protos.v1.residency_pb2_grpc import ResidencyServiceStub


def call(method: Any, request: Any, attempts: Attempts) -> Any:
    """The answer to a request."""
    while True:
        try:
            return method(request, timeout=attempts.remaining())
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
        time.sleep(attempts.wait_after(failure))


async def call_aio(method: Any, request: Any, attempts: Attempts) -> Any:
    """The same on the running event loop."""
    while True:
        try:
            return await method(request, timeout=attempts.remaining())
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
        await asyncio.sleep(attempts.wait_after(failure))


class _Stubs:
    """A channel, the services behind it, and what a call of them needs."""

    _open_channel: Callable[..., Any]

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        token: Token | None = None,
    ) -> None:
        """Connects on the first call, in the clear unless there are `credentials` or `server` is "tls://host:port".

        `token`, or what gives one for each call, says who calls; without it the environment's HOTSHOE_TOKEN, or the
        file that HOTSHOE_TOKEN_FILE names. Raises ValueError where it would go to another machine in the clear.
        """
        self._channel = self._open_channel(server, credentials, token)
        self.server = server
        self._retry = retry
        self._generation: Any = GenerationServiceStub(self._channel)
        self._registry: Any = registry_stub(self._channel)
        self._residency: Any = ResidencyServiceStub(self._channel)

    def _opening(
        self, method: Any, request: Any, timeout: float | None
    ) -> tuple[Callable[[float | None], Any], Attempts]:
        """What a stream of answers begins with, and begins anew with."""
        return lambda remaining: method(request, timeout=remaining), Attempts(self._retry, timeout)


class Connection(_Stubs):
    """What the blocking client's methods call."""

    _open_channel = staticmethod(open_channel)

    def close(self) -> None:
        """Ends what is under way and closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _call(self, method: Any, request: Any, timeout: float | None, *, idempotent: bool = True) -> Any:
        return call(method, request, Attempts(self._retry, timeout, idempotent=idempotent))


class AsyncConnection(_Stubs):
    """What the asyncio client's methods call."""

    _open_channel = staticmethod(open_aio_channel)

    async def close(self) -> None:
        """Ends what is under way and closes the connection."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _call(self, method: Any, request: Any, timeout: float | None, *, idempotent: bool = True) -> Any:
        return await call_aio(method, request, Attempts(self._retry, timeout, idempotent=idempotent))
