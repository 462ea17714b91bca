"""What a service sees of a call, and calls of what blocks on the disk."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NoReturn, ParamSpec, Protocol, TypeAlias, TypeVar

import grpc

from hotshoe.registry.errors import BlobCorrupt
from hotshoe.registry.store.healing import BlobBeingHealed, healing_elsewhere

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

_T = TypeVar("_T")
_P = ParamSpec("_P")


class Context(Protocol):
    """What of grpc.aio.ServicerContext services use: calls that come by other ways have contexts of their own."""

    def invocation_metadata(self) -> Metadata | None:
        """The caller's."""

    def time_remaining(self) -> float | None:
        """Seconds to the caller's deadline; None without one."""

    def code(self) -> grpc.StatusCode | int | None:
        """What was set."""

    def trailing_metadata(self) -> Metadata | None:
        """What was set."""

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """Goes to the caller with the status."""

    async def write(self, message: Any) -> None:
        """Sends one message of a stream; waits while the caller does not read."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """Ends the call with a status, by raising."""


async def call(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Calls it in the event loop's executor. As `call_in`."""
    return await call_in(None, function, *args, **kwargs)


async def call_in(executor: Executor | None, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Calls it in an executor, and once more for each damaged blob that it comes upon and that is healed meanwhile: no
    thread is kept waiting for a remote. So it must read first, and write after.
    """
    given_up: dict[str, BlobCorrupt] = {}

    def work() -> _T:
        with healing_elsewhere(given_up):
            return function(*args, **kwargs)

    while True:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, work)
        except BlobBeingHealed as blob:
            given_up[blob.digest] = blob.damage
            await asyncio.shield(asyncio.wrap_future(blob.healed))


async def call_to_its_end(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """As `call`, but a cancelled caller waits too: for what is used by one thread at a time."""
    calling = asyncio.ensure_future(call(function, *args, **kwargs))
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        await asyncio.wait([calling])
        raise
