"""A connection to one server, blocking and asyncio: its stubs, and calls, tried again as their attempts allow."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import grpc

from hotshoe.clients.channels import DEFAULT_SERVER, open_aio_channel, open_channel, registry_stub
from hotshoe.clients.errors import from_rpc_error
from hotshoe.clients.retry import DEFAULT_RETRY, Attempts, RetryPolicy
from hotshoe.clients.tokens import Token
from hotshoe.protos.v1.generation_pb2_grpc import GenerationServiceStub
from hotshoe.protos.v1.residency_pb2_grpc import ResidencyServiceStub

if TYPE_CHECKING:
    from hotshoe.protos.v1.generation_pb2_grpc import GenerationServiceAsyncStub
    from hotshoe.protos.v1.registry_pb2_grpc import RegistryServiceAsyncStub, RegistryServiceStub
    from hotshoe.protos.v1.residency_pb2_grpc import ResidencyServiceAsyncStub

Q = TypeVar("Q")
Q_contra = TypeVar("Q_contra", contravariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Method(Protocol[Q_contra, R_co]):
    """A method of a stub: calling it gives an answer, what awaits one, or a stream of answers."""

    def __call__(self, request: Q_contra, timeout: float | None = None) -> R_co: ...


def call(method: Method[Q, R], request: Q, attempts: Attempts) -> R:
    """The answer to a request."""
    while True:
        try:
            return method(request, timeout=attempts.remaining())
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
        time.sleep(attempts.wait_after(failure))


async def call_aio(method: Method[Q, Awaitable[R]], request: Q, attempts: Attempts) -> R:
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
        self, method: Method[Q, R], request: Q, timeout: float | None
    ) -> tuple[Callable[[float | None], R], Attempts]:
        """What a stream of answers begins with, and begins anew with."""
        return lambda remaining: method(request, timeout=remaining), Attempts(self._retry, timeout)


class Connection(_Stubs):
    """What the blocking client's methods call."""

    _open_channel = staticmethod(open_channel)
    _generation: "GenerationServiceStub"
    _registry: "RegistryServiceStub"
    _residency: "ResidencyServiceStub"

    def close(self) -> None:
        """Ends what is under way and closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _call(self, method: Method[Q, R], request: Q, timeout: float | None, *, idempotent: bool = True) -> R:
        return call(method, request, Attempts(self._retry, timeout, idempotent=idempotent))


class AsyncConnection(_Stubs):
    """What the asyncio client's methods call."""

    _open_channel = staticmethod(open_aio_channel)
    _generation: "GenerationServiceAsyncStub"
    _registry: "RegistryServiceAsyncStub"
    _residency: "ResidencyServiceAsyncStub"

    async def close(self) -> None:
        """Ends what is under way and closes the connection."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _call(
        self, method: Method[Q, Awaitable[R]], request: Q, timeout: float | None, *, idempotent: bool = True
    ) -> R:
        return await call_aio(method, request, Attempts(self._retry, timeout, idempotent=idempotent))
