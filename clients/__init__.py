"""Clients of a hotshoe server, and the command line.

What is named here is imported when it is first used: gRPC takes longer than the command line's help.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hotshoe.clients.aio import AsyncClient
    from hotshoe.clients.client import Client
    from hotshoe.clients.errors import (
        Aborted,
        AlreadyExists,
        CallError,
        Cancelled,
        DataLoss,
        DeadlineExceeded,
        FailedPrecondition,
        FieldViolation,
        HotshoeError,
        HubError,
        HubNotFound,
        HubRefused,
        Internal,
        InvalidAdapterDirectory,
        InvalidArgument,
        InvalidLayout,
        NotFound,
        NotVerified,
        PermissionDenied,
        ResourceExhausted,
        Unavailable,
        Unimplemented,
    )
    from hotshoe.clients.messages import AdapterSelection, ChatMessage, GenerateOptions
    from hotshoe.clients.progress import TransferProgress
    from hotshoe.clients.retry import NO_RETRY, RetryPolicy
    from hotshoe.clients.streams import AnswerStream, AsyncAnswerStream, AsyncResponseStream, ResponseStream

__all__ = [
    "NO_RETRY",
    "Aborted",
    "AdapterSelection",
    "AlreadyExists",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "AsyncResponseStream",
    "CallError",
    "Cancelled",
    "ChatMessage",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "GenerateOptions",
    "HotshoeError",
    "HubError",
    "HubNotFound",
    "HubRefused",
    "Internal",
    "InvalidAdapterDirectory",
    "InvalidArgument",
    "InvalidLayout",
    "NotFound",
    "NotVerified",
    "PermissionDenied",
    "ResourceExhausted",
    "ResponseStream",
    "RetryPolicy",
    "TransferProgress",
    "Unavailable",
    "Unimplemented",
]

# Where they are; the others are errors.
_MODULES = {
    "NO_RETRY": "retry",
    "AdapterSelection": "messages",
    "AnswerStream": "streams",
    "AsyncAnswerStream": "streams",
    "AsyncClient": "aio",
    "AsyncResponseStream": "streams",
    "ChatMessage": "messages",
    "Client": "client",
    "GenerateOptions": "messages",
    "ResponseStream": "streams",
    "RetryPolicy": "retry",
    "TransferProgress": "progress",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
