"""The one table from what we raise to what a caller sees: status code, reason, details.

Nearest class in the MRO wins. What has no row is a bug of ours: it leaves as INTERNAL with an id and nothing else.
"""

import logging
import uuid
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from hotshoe.registry import errors as registry_errors
from hotshoe.server import errors as server_errors
from hotshoe.server.logs import escape, log_event

DOMAIN = "hotshoe"
DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"
_MAX_TEXT_CHARS = 1500  # trailers together must stay under gRPC's 16 KiB


@dataclass(frozen=True, slots=True)
class StatusRow:
    """How one error class leaves the server; `retry_seconds` adds RetryInfo."""

    code: grpc.StatusCode
    reason: str
    retry_seconds: float | None = None


_Code = grpc.StatusCode
STATUS_TABLE: dict[type[Exception], StatusRow] = {
    registry_errors.InvalidAdapter: StatusRow(_Code.INVALID_ARGUMENT, "INVALID_ADAPTER"),
    registry_errors.IncompatibleAdapter: StatusRow(_Code.FAILED_PRECONDITION, "ADAPTER_INCOMPATIBLE"),
    registry_errors.InvalidDocument: StatusRow(_Code.INVALID_ARGUMENT, "INVALID_DOCUMENT"),
    registry_errors.SignaturesMissing: StatusRow(_Code.FAILED_PRECONDITION, "SIGNATURES_MISSING"),
    registry_errors.InvalidReference: StatusRow(_Code.INVALID_ARGUMENT, "INVALID_REFERENCE"),
    registry_errors.InvalidUpload: StatusRow(_Code.INVALID_ARGUMENT, "INVALID_UPLOAD"),
    registry_errors.AdapterNotFound: StatusRow(_Code.NOT_FOUND, "ADAPTER_NOT_FOUND"),
    registry_errors.BlobNotFound: StatusRow(_Code.NOT_FOUND, "BLOB_NOT_FOUND"),
    registry_errors.TagMoved: StatusRow(_Code.ABORTED, "TAG_CONFLICT"),
    registry_errors.TagImmutable: StatusRow(_Code.ALREADY_EXISTS, "TAG_IMMUTABLE"),
    registry_errors.QuotaExceeded: StatusRow(_Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    registry_errors.BlobCorrupt: StatusRow(_Code.DATA_LOSS, "DIGEST_MISMATCH"),
    registry_errors.StoreUnavailable: StatusRow(_Code.UNAVAILABLE, "STORE_UNAVAILABLE", retry_seconds=5.0),
    registry_errors.StoreReadOnly: StatusRow(_Code.FAILED_PRECONDITION, "STORE_READ_ONLY"),
    registry_errors.RemoteUnavailable: StatusRow(_Code.UNAVAILABLE, "REMOTE_UNAVAILABLE", retry_seconds=5.0),
    registry_errors.RemoteRefused: StatusRow(_Code.FAILED_PRECONDITION, "REMOTE_REFUSED"),
    registry_errors.RemoteDamaged: StatusRow(_Code.DATA_LOSS, "REMOTE_DAMAGED"),
    server_errors.InvalidRequest: StatusRow(_Code.INVALID_ARGUMENT, "INVALID_PARAMETER"),
    server_errors.PromptTooLong: StatusRow(_Code.INVALID_ARGUMENT, "PROMPT_TOO_LONG"),
    server_errors.UnsupportedModel: StatusRow(_Code.FAILED_PRECONDITION, "UNSUPPORTED_MODEL"),
    server_errors.Unauthenticated: StatusRow(_Code.UNAUTHENTICATED, "UNAUTHENTICATED"),
    server_errors.NotPermitted: StatusRow(_Code.PERMISSION_DENIED, "SCOPE_MISSING"),
    server_errors.QueueFull: StatusRow(_Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_seconds=1.0),
    server_errors.AdapterSlotsFull: StatusRow(_Code.RESOURCE_EXHAUSTED, "ADAPTER_SLOTS_FULL", retry_seconds=1.0),
    server_errors.AdapterUnusable: StatusRow(_Code.FAILED_PRECONDITION, "ADAPTER_UNUSABLE"),
    server_errors.OnlyMergedServed: StatusRow(_Code.FAILED_PRECONDITION, "ADAPTER_MERGED"),
    server_errors.AdapterRefused: StatusRow(_Code.FAILED_PRECONDITION, "DOCTOR_REFUSED"),
    server_errors.Draining: StatusRow(_Code.UNAVAILABLE, "SHUTTING_DOWN", retry_seconds=1.0),
    server_errors.EngineDead: StatusRow(_Code.UNAVAILABLE, "ENGINE_DEAD", retry_seconds=5.0),
    server_errors.DeadlinePassed: StatusRow(_Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    server_errors.SlowReader: StatusRow(_Code.RESOURCE_EXHAUSTED, "SLOW_READER"),
}

# An adapter that failed to load for one of these reasons says so, and not just that it cannot be used.
_CAUSES_THAT_SHOW = (
    registry_errors.AdapterNotFound,
    registry_errors.BlobCorrupt,
    registry_errors.BlobNotFound,
    registry_errors.IncompatibleAdapter,
    registry_errors.RemoteUnavailable,
    registry_errors.SignaturesMissing,
    registry_errors.StoreUnavailable,
    server_errors.QueueFull,
)

_NAMES_A_FIELD = (
    registry_errors.InvalidAdapter,
    registry_errors.InvalidDocument,
    registry_errors.InvalidReference,
    server_errors.InvalidRequest,
)


def status_of(error: Exception, *, method: str = "") -> status_pb2.Status:
    """The google.rpc.Status for `error`. One without a row is logged with its traceback under the id it leaves with."""
    shown = _cause_that_shows(error)
    row = row_of(shown)
    if row is None:
        return _internal_status(error, method)
    status = status_pb2.Status(code=row.code.value[0], message=_short(str(error)))
    metadata = {key: _short(value) for key, value in _metadata_of(shown).items()}
    _attach(status, error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN, metadata=metadata))
    if isinstance(shown, _NAMES_A_FIELD) and row.code is grpc.StatusCode.INVALID_ARGUMENT:
        problem = getattr(shown, "problem", str(shown))
        violation = error_details_pb2.BadRequest.FieldViolation(field=_short(shown.field), description=_short(problem))
        _attach(status, error_details_pb2.BadRequest(field_violations=[violation]))
    if row.retry_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(1e9 * getattr(shown, "retry_after_seconds", row.retry_seconds)))
        _attach(status, retry)
    return status


def row_of(error: Exception) -> StatusRow | None:
    """The row of the nearest class in the error's MRO, or None."""
    return next((STATUS_TABLE[kind] for kind in type(error).__mro__ if kind in STATUS_TABLE), None)


def code_for(error: Exception) -> grpc.StatusCode:
    """The code that `status_of` gives an error."""
    row = row_of(_cause_that_shows(error))
    return grpc.StatusCode.INTERNAL if row is None else row.code


def code_of(status: status_pb2.Status) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == status.code)


def _internal_status(error: Exception, method: str) -> status_pb2.Status:
    error_id = uuid.uuid4().hex
    log_event(logging.ERROR, "internal_error", error=error, error_id=error_id, method=method)
    status = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message=f"internal error {error_id}")
    _attach(status, error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"error_id": error_id}))
    return status


def _cause_that_shows(error: Exception) -> Exception:
    cause = error.__cause__
    if isinstance(error, server_errors.AdapterUnusable) and isinstance(cause, _CAUSES_THAT_SHOW):
        return cause
    return error


def _metadata_of(error: Exception) -> dict[str, str]:
    if isinstance(error, registry_errors.InvalidAdapter):
        return {"field": error.field}
    if isinstance(error, registry_errors.TagMoved | registry_errors.TagImmutable):
        return {"actual_digest": error.actual or ""}
    if isinstance(error, registry_errors.RemoteError):
        return {"remote": error.remote}
    if isinstance(error, registry_errors.BlobNotFound):
        return {"digests": ",".join(error.digests)}
    return {}


def _short(text: str) -> str:
    """Callers print this: no control characters, and not more than a screenful."""
    text = escape(text)
    return text if len(text) <= _MAX_TEXT_CHARS else text[: _MAX_TEXT_CHARS - 1] + "…"


def _attach(status: status_pb2.Status, detail: Message) -> None:
    status.details.add().Pack(detail)
