"""Statuses become errors of the class that a caller acts on, and lose nothing."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from scripted_server import Failure, ScriptedServer, error_info, retry_info

from hotshoe.clients import AsyncClient, Client, errors
from hotshoe.clients.retry import NO_RETRY

METHOD = "GenerationService/GetModelInfo"


def blocking_error(address: str) -> errors.CallError:
    with Client(address, retry=NO_RETRY) as client, pytest.raises(errors.CallError) as caught:
        client.model_info(timeout=60)
    return caught.value


def asyncio_error(address: str) -> errors.CallError:
    async def ask() -> None:
        async with AsyncClient(address, retry=NO_RETRY) as client:
            await client.model_info(timeout=60)

    with pytest.raises(errors.CallError) as caught:
        asyncio.run(ask())
    return caught.value


both = pytest.mark.parametrize("error_of", [blocking_error, asyncio_error])


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
def test_every_status_has_its_class(scripted: ScriptedServer, status: grpc.StatusCode) -> None:
    scripted.answer(METHOD, Failure(status, "why"))
    error = blocking_error(scripted.address)
    assert type(error) is errors.ERRORS[status]
    assert error.status is status
    assert str(error) == error.message == "why"
    assert (error.reason, error.details, error.retry_after) == ("", (), None)


@both
def test_reason_violations_and_all_details_are_kept(scripted: ScriptedServer, error_of) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="sampling.top_p", description="3 is outside (0, 1]")
    bad_request = error_details_pb2.BadRequest(field_violations=[violation])
    help_links = error_details_pb2.Help(links=[error_details_pb2.Help.Link(url="about:blank")])
    details = (error_info("INVALID_PARAMETER", field="sampling.top_p"), bad_request, help_links)
    scripted.answer(METHOD, Failure(grpc.StatusCode.INVALID_ARGUMENT, "sampling.top_p: too much", details))
    error = error_of(scripted.address)
    assert isinstance(error, errors.InvalidArgument)
    assert error.reason == "INVALID_PARAMETER"
    assert error.metadata == {"field": "sampling.top_p"}
    assert error.field_violations == (errors.FieldViolation("sampling.top_p", "3 is outside (0, 1]"),)
    assert error.details == details


@both
def test_the_delay_that_the_server_asks_for_is_told(scripted: ScriptedServer, error_of) -> None:
    details = (error_info("QUEUE_FULL"), retry_info(2.5))
    scripted.answer(METHOD, Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", details))
    error = error_of(scripted.address)
    assert isinstance(error, errors.ResourceExhausted)
    assert error.retry_after == 2.5


def test_an_internal_fault_tells_its_id(scripted: ScriptedServer) -> None:
    scripted.answer(METHOD, Failure(grpc.StatusCode.INTERNAL, "oops", (error_info("INTERNAL", error_id="4f2a"),)))
    error = blocking_error(scripted.address)
    assert isinstance(error, errors.Internal)
    assert error.error_id == "4f2a"


@both
def test_a_server_that_is_not_there_is_unavailable(error_of) -> None:
    assert isinstance(error_of("127.0.0.1:1"), errors.Unavailable)


@both
def test_a_method_that_the_server_lacks_is_unimplemented(scripted: ScriptedServer, error_of) -> None:
    assert isinstance(error_of(scripted.address), errors.Unimplemented)


def test_details_that_contradict_the_status_do_not_hide_it() -> None:
    class Garbled(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.NOT_FOUND

        def details(self) -> str:
            return "no such adapter"

        def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
            return ((errors.DETAILS_KEY, b"\xff\xffnot a message"),)

    error = errors.from_rpc_error(Garbled())
    assert isinstance(error, errors.NotFound)
    assert (str(error), error.details) == ("no such adapter", ())
