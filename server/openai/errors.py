"""A gRPC status as OpenAI's clients know errors: an HTTP status, and a body that names type, parameter and code."""

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

_Code = grpc.StatusCode
# status → HTTP status, type
_HTTP: dict[grpc.StatusCode, tuple[int, str]] = {
    _Code.INVALID_ARGUMENT: (400, "invalid_request_error"),
    _Code.OUT_OF_RANGE: (400, "invalid_request_error"),
    _Code.UNAUTHENTICATED: (401, "authentication_error"),
    _Code.PERMISSION_DENIED: (403, "permission_error"),
    _Code.NOT_FOUND: (404, "not_found_error"),
    _Code.FAILED_PRECONDITION: (409, "conflict_error"),
    _Code.ABORTED: (409, "conflict_error"),
    _Code.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    _Code.CANCELLED: (499, "cancelled_error"),
    _Code.UNAVAILABLE: (503, "service_unavailable_error"),
    _Code.DEADLINE_EXCEEDED: (504, "timeout_error"),
}
_RENAMED = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "prompt_logprobs": "logprobs",
    "text": "prompt",
}
_FAULT = (500, "internal_error")


class Refused(Exception):
    """A call that ended with another status than OK."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        code = next((one for one in grpc.StatusCode if one.value[0] == status.code), grpc.StatusCode.UNKNOWN)
        self.http_status, kind = _HTTP.get(code, _FAULT)
        self.headers: dict[str, str] = {}
        reason, param = "", None
        info, wrong, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        for detail in status.details:
            if detail.Unpack(info):
                reason = info.reason.lower()
            elif detail.Unpack(wrong) and wrong.field_violations:
                param = _parameter(wrong.field_violations[0].field)
            elif detail.Unpack(retry):
                self.headers["Retry-After"] = str(max(1, round(retry.retry_delay.ToTimedelta().total_seconds())))
        if self.http_status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"
        self.body = error_body(status.message, kind, param=param, code=reason or code.name.lower())


def _parameter(field: str) -> str:
    """What OpenAI calls a field of the wire's messages."""
    if field.partition(".")[0] == "format":
        return "response_format"
    name = field.removeprefix("sampling.").removeprefix("stopping.").removeprefix("chat.")
    renamed = {
        "max_new_tokens": "max_tokens",
        "min_new_tokens": "min_tokens",
        "text": "prompt",
        "prompt_logprobs": "logprobs",
    }
    return "prompt" if name.startswith("token_ids") else renamed.get(name, name)


def error_body(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
