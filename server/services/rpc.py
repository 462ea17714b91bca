"""gRPC's generic types under short names, and calls of what blocks on the disk."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeAlias, TypeVar

import grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_T = TypeVar("_T")
_P = ParamSpec("_P")


async def call(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Calls it in the event loop's executor."""
    return await asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))


async def call_to_its_end(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """As `call`, but a cancelled caller waits too: for what is used by one thread at a time."""
    calling = asyncio.ensure_future(call(function, *args, **kwargs))
    try:
        return await asyncio.shield(calling)
    except asyncio.CancelledError:
        await asyncio.wait([calling])
        raise
