"""What a client raises, one class per status that a caller acts on.

HotshoeError
├── InvalidAdapterDirectory    not an adapter as PEFT saves it; nothing was sent
├── InvalidLayout              not an OCI layout that holds one whole adapter; nothing was sent
├── NotVerified                an adapter without the signatures that were asked for
├── HubError                   an adapter could not be fetched from the Hugging Face hub; nothing was sent
│   ├── HubNotFound            no such repository, revision or file there
│   └── HubRefused             it is gated, or the token is not taken
└── CallError                  a call ended with a status other than OK
    ├── InvalidArgument        a field is wrong: `field_violations` says which; do not retry
    ├── NotFound               no adapter has that name, tag or digest
    ├── AlreadyExists          the name or tag is taken
    ├── PermissionDenied       not for this caller (PERMISSION_DENIED, UNAUTHENTICATED)
    ├── FailedPrecondition     sound, but does not fit this server, such as an adapter of another base model
    ├── Aborted                a compare-and-set lost: read again, then retry
    ├── ResourceExhausted      the server is full; retry after `retry_after` seconds
    ├── Unavailable            not reachable, starting or shutting down; retry, here or elsewhere
    ├── DeadlineExceeded       the call's timeout passed
    ├── Cancelled              the call was cancelled, here or by a server that ended
    ├── DataLoss               bytes do not match their digest
    ├── Unimplemented          this server does not have that call
    └── Internal               a fault of the server; `error_id` finds it in the server's log
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import grpc

DETAILS_KEY = "grpc-status-details-bin"


class FieldViolation(NamedTuple):
    """A field of a request, as the proto names it ("sampling.top_p"), and what was expected of it."""

    field: str
    description: str


class HotshoeError(Exception):
    """Base of everything that the clients raise on purpose."""


class InvalidAdapterDirectory(HotshoeError):
    """A directory that does not hold an adapter as PEFT saves it."""


class InvalidLayout(HotshoeError):
    """An OCI layout, or an archive of one, that holds no adapter, or a damaged one."""


class NotVerified(HotshoeError):
    """An adapter does not have the signatures that were asked for; the message says which are missing."""


class HubError(HotshoeError):
    """An adapter could not be fetched from the Hugging Face hub; the message names repository, revision and file."""


class HubNotFound(HubError):
    """The hub has no such repository, revision or file, or does not show it without a token."""


class HubRefused(HubError):
    """The hub does not let us have it: it is gated, or the token is not taken."""


class CallError(HotshoeError):
    """A call that ended with a status other than OK.

    Attributes:
        status: the gRPC status.
        message: the server's words.
        reason: the ErrorInfo's reason, such as "ADAPTER_NOT_FOUND"; empty if the status did not come from hotshoe.
        metadata: the ErrorInfo's metadata.
        field_violations: the fields that were wrong.
        retry_after: seconds after which the server invites a retry, None if it does not.
        error_id: of an internal fault, to find it in the server's log; empty otherwise.
        details: all details of the google.rpc.Status, each as its own message.
    """

    def __init__(
        self,
        message: str,
        *,
        status: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        field_violations: Iterable[FieldViolation] = (),
        retry_after: float | None = None,
        error_id: str = "",
        details: Iterable[Any] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.field_violations = tuple(field_violations)
        self.retry_after = retry_after
        self.error_id = error_id
        self.details = tuple(details)


class InvalidArgument(CallError):
    """A field of the request is wrong."""


class NotFound(CallError):
    """No adapter, tag, blob or service has that name."""


class AlreadyExists(CallError):
    """The name is taken."""


class PermissionDenied(CallError):
    """The caller may not do that, or is not known."""


class FailedPrecondition(CallError):
    """The request is sound, but not in the server's present state."""


class Aborted(CallError):
    """A compare-and-set lost; read again before a retry."""


class ResourceExhausted(CallError):
    """The server, or a quota, is full."""


class Unavailable(CallError):
    """The server cannot be reached, or takes no work."""


class DeadlineExceeded(CallError):
    """The call's timeout passed."""


class Cancelled(CallError):
    """The call was cancelled, by either side."""


class DataLoss(CallError):
    """Stored or transferred bytes do not match their digest."""


class Unimplemented(CallError):
    """The server does not have that call."""


class Internal(CallError):
    """A fault of the server."""


ERRORS: Mapping[grpc.StatusCode, type[CallError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.DATA_LOSS: DataLoss,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNKNOWN: Internal,
}


def from_rpc_error(error: grpc.RpcError) -> CallError:
    """The error of this module that says what `error`, of grpc or grpc.aio, says; details are kept, not lost."""
    # What grpc raises is also the call, and the call knows the status; grpc's own types do not say so.
    call: Any = error
    status: grpc.StatusCode = call.code()
    fields: dict[str, Any] = {}
    details = _details(call)
    for detail in details:
        match detail.DESCRIPTOR.full_name:
            case "google.rpc.ErrorInfo":
                fields |= {"reason": detail.reason, "metadata": dict(detail.metadata)}
                fields["error_id"] = detail.metadata.get("error_id", "")
            case "google.rpc.BadRequest":
                fields["field_violations"] = [FieldViolation(v.field, v.description) for v in detail.field_violations]
            case "google.rpc.RetryInfo":
                fields["retry_after"] = detail.retry_delay.ToTimedelta().total_seconds()
    error_class = ERRORS.get(status, CallError)
    return error_class(call.details() or status.name, status=status, details=details, **fields)


def _details(call: Any) -> list[Any]:
    """The details of the call's google.rpc.Status, unpacked; none if it has no such status or a garbled one."""
    if not any(key == DETAILS_KEY for key, _ in call.trailing_metadata() or ()):
        return []
    # Imported here: only failed calls pay for it.
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    try:
        rich_status = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # a proxy changed the status or the details: what the call itself says holds
        return []
    details = []
    for packed in rich_status.details if rich_status else ():
        message_class = getattr(error_details_pb2, packed.type_url.rpartition(".")[2], None)
        if message_class is not None and packed.Is(message_class.DESCRIPTOR):
            message = message_class()
            packed.Unpack(message)
            details.append(message)
    return details
