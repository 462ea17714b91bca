"""Clients of a hotshoe server, and the command line."""

from hotshoe.clients.adapter_files import TransferProgress
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
