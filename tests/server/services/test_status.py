import inspect
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from hotshoe.registry import errors as registry_errors
from hotshoe.registry.digest import check_digest
from hotshoe.registry.reference import AdapterRef, check_name, check_tag
from hotshoe.registry.remotes.remote_url import RemoteUrl
from hotshoe.registry.store.leases import check_holder
from hotshoe.server import errors as server_errors
from hotshoe.server.services.status import STATUS_TABLE, code_for, row_of, status_of

BASES = {registry_errors.RegistryError, registry_errors.RemoteError, server_errors.ServerError}


def _error_classes() -> list[type[Exception]]:
    return [
        member
        for module in (registry_errors, server_errors)
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Exception) and member.__module__ == module.__name__ and member not in BASES
    ]


def _details(status: status_pb2.Status, kind: type[Message]) -> Message | None:
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            return message
    return None


@pytest.mark.parametrize("error", _error_classes())
def test_every_error_class_has_a_row(error: type[Exception]) -> None:
    assert error in STATUS_TABLE


def test_the_table_has_no_row_for_anything_else() -> None:
    assert set(STATUS_TABLE) == set(_error_classes())


def test_reasons_are_distinct_upper_case_words() -> None:
    reasons = [row.reason for row in STATUS_TABLE.values()]
    assert len(set(reasons)) == len(reasons)
    assert all(reason.replace("_", "").isalpha() and reason.isupper() for reason in reasons)


@pytest.mark.parametrize("error", [error for error, row in STATUS_TABLE.items() if row.code.name == "UNAVAILABLE"])
def test_whoever_is_unavailable_says_when_to_come_back(error: type[Exception]) -> None:
    assert STATUS_TABLE[error].retry_seconds


def test_a_wrong_field_is_named() -> None:
    status = status_of(server_errors.InvalidRequest("sampling.top_p", "2.0 is outside (0, 1]"))
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert status.message == "sampling.top_p: 2.0 is outside (0, 1]"
    violation = _details(status, error_details_pb2.BadRequest).field_violations[0]
    assert (violation.field, violation.description) == ("sampling.top_p", "2.0 is outside (0, 1]")
    info = _details(status, error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason) == ("hotshoe", "INVALID_PARAMETER")


@pytest.mark.parametrize(
    "check, field",
    [
        (lambda: AdapterRef.parse("team/pirate:not a tag"), "reference"),
        (lambda: AdapterRef.parse("team/pirate@sha256:00"), "reference"),
        (lambda: check_name("Not A Name"), "name"),
        (lambda: check_tag("not a tag"), "tag"),
        (lambda: check_digest("sha256:00"), "digest"),
        (lambda: RemoteUrl.parse("file:///etc"), "remote"),
        (lambda: check_holder("two\nlines"), "holder"),
    ],
)
def test_what_is_no_reference_is_named_by_what_it_was_given_as(check: Callable[[], object], field: str) -> None:
    with pytest.raises(registry_errors.InvalidReference) as caught:
        check()
    status = status_of(caught.value)
    violation = _details(status, error_details_pb2.BadRequest).field_violations[0]
    assert (violation.field, violation.description) == (field, status.message)


def test_a_full_queue_gives_its_own_hint_when_to_retry() -> None:
    status = status_of(server_errors.QueueFull("full", retry_after_seconds=2.5))
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert _details(status, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 2500


def test_the_nearest_class_wins() -> None:
    class Nearer(server_errors.PromptTooLong):
        pass

    assert row_of(Nearer("text", "too long")).reason == "PROMPT_TOO_LONG"
    assert row_of(registry_errors.IncompatibleAdapter("base", "other")).code is grpc.StatusCode.FAILED_PRECONDITION


def test_a_lost_tag_says_where_it_points() -> None:
    status = status_of(registry_errors.TagMoved("poet:latest", None, "sha256:1"))
    assert status.code == grpc.StatusCode.ABORTED.value[0]
    assert _details(status, error_details_pb2.ErrorInfo).metadata["actual_digest"] == "sha256:1"


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (registry_errors.BlobCorrupt("x"), grpc.StatusCode.DATA_LOSS),
        (registry_errors.StoreUnavailable("x"), grpc.StatusCode.UNAVAILABLE),
        (registry_errors.StoreReadOnly("x"), grpc.StatusCode.FAILED_PRECONDITION),
        (registry_errors.InvalidAdapter("r", "0"), grpc.StatusCode.FAILED_PRECONDITION),
        (ValueError("x"), grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
def test_a_failed_load_shows_a_cause_that_the_caller_can_act_on(cause: Exception, code: grpc.StatusCode) -> None:
    error = server_errors.AdapterUnusable("poet could not be loaded")
    error.__cause__ = cause
    assert status_of(error).code == code.value[0]
    assert code_for(error) is code  # what logs and metrics say of it


@pytest.mark.parametrize("error", [KeyError("/secret/path"), OSError(5, "secret"), RuntimeError("secret\ntrace")])
def test_a_bug_leaves_with_an_id_and_nothing_else(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("ERROR", logger="hotshoe"):
        status = status_of(error, method="/x/Y")
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in str(status)
    error_id = _details(status, error_details_pb2.ErrorInfo).metadata["error_id"]
    assert status.message == f"internal error {error_id}"
    [record] = [record for record in caplog.records if getattr(record, "fields", {}).get("error_id") == error_id]
    assert record.exc_info[1] is error


def test_the_message_is_short_and_has_no_control_characters() -> None:
    status = status_of(registry_errors.InvalidAdapter("\x1b[31m" + "a" * 100_000, "b" * 100_000))
    assert status.message.isprintable()
    assert status.ByteSize() < 8192
