"""What is tried again, when, and what never is."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from scripted_server import Failure, ScriptedServer, error_info, retry_info

from hotshoe.clients import (
    Aborted,
    AsyncClient,
    CallError,
    Cancelled,
    Client,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    RetryPolicy,
    Unavailable,
)
from hotshoe.clients.retry import Attempts
from hotshoe.protos.v1.generation_pb2 import GenerateResponse, GetModelInfoResponse, StreamGenerateResponse
from hotshoe.protos.v1.registry_pb2 import UpdateTagResponse

QUICK = RetryPolicy(max_attempts=3, initial_backoff_seconds=0.01)
INFO = "GenerationService/GetModelInfo"
STREAM = "GenerationService/StreamGenerate"
UPDATE_TAG = "RegistryService/UpdateTag"
GONE = Failure(grpc.StatusCode.UNAVAILABLE, "gone for a moment")
DROPPED = Failure(grpc.StatusCode.CANCELLED, "CANCELLED")
FULL = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (error_info("QUEUE_FULL"), retry_info(0.05)))
END = StreamGenerateResponse(text_delta="!", final=GenerateResponse(request_id="r"))


def blocking_info(address: str) -> str:
    with Client(address, retry=QUICK) as client:
        return client.model_info().base_model


def asyncio_info(address: str) -> str:
    async def ask() -> str:
        async with AsyncClient(address, retry=QUICK) as client:
            return (await client.model_info()).base_model

    return asyncio.run(ask())


def blocking_text(address: str) -> str:
    with Client(address, retry=QUICK) as client:
        return "".join(delta.text_delta for delta in client.stream("hi"))


def asyncio_text(address: str) -> str:
    async def ask() -> str:
        async with AsyncClient(address, retry=QUICK) as client:
            return "".join([delta.text_delta async for delta in client.stream("hi")])

    return asyncio.run(ask())


both_infos = pytest.mark.parametrize("info", [blocking_info, asyncio_info])
both_texts = pytest.mark.parametrize("text", [blocking_text, asyncio_text])
Ask = Callable[[str], str]


@both_infos
def test_an_unavailable_server_is_asked_again(scripted: ScriptedServer, info: Ask) -> None:
    scripted.answer(INFO, GONE, GONE, GetModelInfoResponse(base_model="tiny"))
    assert info(scripted.address) == "tiny"
    assert len(scripted.calls(INFO)) == 3


@both_infos
def test_a_call_that_an_ending_server_dropped_is_asked_again(scripted: ScriptedServer, info: Ask) -> None:
    scripted.answer(INFO, DROPPED, GetModelInfoResponse(base_model="tiny"))
    assert info(scripted.address) == "tiny"


@both_texts
def test_a_stream_that_an_ending_server_dropped_before_it_began_is_opened_again(
    scripted: ScriptedServer, text: Ask
) -> None:
    scripted.answer(STREAM, [DROPPED], [END])
    assert text(scripted.address) == "!"


def test_a_stream_that_was_cancelled_here_is_not_opened_again(scripted: ScriptedServer) -> None:
    asked, over = threading.Event(), threading.Event()

    def stand_still(_: list[Any]) -> list[Any]:
        asked.set()
        over.wait(200)
        return [END]

    scripted.answer(STREAM, stand_still)
    with Client(scripted.address, retry=QUICK) as client, client.stream("hi") as stream:
        assert asked.wait(200)
        stream.cancel()
        with pytest.raises(Cancelled):
            next(stream)
    over.set()
    assert len(scripted.calls(STREAM)) == 1


@both_infos
def test_after_the_last_attempt_the_error_is_told(scripted: ScriptedServer, info: Ask) -> None:
    scripted.answer(INFO, GONE)
    with pytest.raises(Unavailable, match="gone for a moment"):
        info(scripted.address)
    assert len(scripted.calls(INFO)) == 3


@both_infos
def test_a_full_server_is_asked_again_after_the_delay_it_names(scripted: ScriptedServer, info: Ask) -> None:
    scripted.answer(INFO, FULL, GetModelInfoResponse(base_model="tiny"))
    started = time.monotonic()
    assert info(scripted.address) == "tiny"
    assert time.monotonic() - started >= 0.05


@both_infos
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Failure(grpc.StatusCode.RESOURCE_EXHAUSTED), ResourceExhausted),  # too large a message, say: it stays so
        (Failure(grpc.StatusCode.INVALID_ARGUMENT), InvalidArgument),
        (Failure(grpc.StatusCode.INTERNAL), Internal),
        (Failure(grpc.StatusCode.ABORTED), Aborted),
    ],
    ids=["full without a delay", "wrong", "fault", "conflict"],
)
def test_what_a_retry_cannot_heal_is_told_at_once(scripted: ScriptedServer, info: Ask, failure, error) -> None:
    scripted.answer(INFO, failure)
    with pytest.raises(error):
        info(scripted.address)
    assert len(scripted.calls(INFO)) == 1


def test_no_retry_waits_past_the_timeout(scripted: ScriptedServer) -> None:
    much_later = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (retry_info(3000),))
    scripted.answer(INFO, much_later)
    with Client(scripted.address, retry=QUICK) as client, pytest.raises(ResourceExhausted):
        started = time.monotonic()
        client.model_info(timeout=100.0)
    assert time.monotonic() - started < 100.0
    assert len(scripted.calls(INFO)) == 1


@both_texts
def test_a_stream_that_delivered_nothing_is_begun_again(scripted: ScriptedServer, text: Ask) -> None:
    scripted.answer(STREAM, GONE, [FULL], [StreamGenerateResponse(text_delta="hello"), END])
    assert text(scripted.address) == "hello!"


@both_texts
def test_a_stream_that_delivered_something_is_never_begun_again(scripted: ScriptedServer, text: Ask) -> None:
    scripted.answer(STREAM, [StreamGenerateResponse(text_delta="hel"), GONE])
    with pytest.raises(Unavailable):
        text(scripted.address)
    assert len(scripted.calls(STREAM)) == 1


@both_texts
def test_a_stream_without_its_final_message_is_not_taken_for_whole(scripted: ScriptedServer, text: Ask) -> None:
    scripted.answer(STREAM, [StreamGenerateResponse(text_delta="hel")])
    with pytest.raises(Internal, match="final"):
        text(scripted.address)


def move_tag(address: str) -> None:
    with Client(address, retry=QUICK) as client:
        client.update_tag("pirate", "latest", "sha256:new", expected_digest="sha256:old")


def test_a_tag_move_whose_answer_was_lost_is_not_sent_twice(scripted: ScriptedServer) -> None:
    scripted.answer(UPDATE_TAG, GONE, UpdateTagResponse())
    with pytest.raises(Unavailable):
        move_tag(scripted.address)
    assert len(scripted.calls(UPDATE_TAG)) == 1


def test_a_tag_move_that_was_refused_with_a_delay_is_sent_again(scripted: ScriptedServer) -> None:
    draining = Failure(grpc.StatusCode.UNAVAILABLE, "draining", (error_info("SHUTTING_DOWN"), retry_info(0.01)))
    scripted.answer(UPDATE_TAG, draining, UpdateTagResponse())
    move_tag(scripted.address)
    assert len(scripted.calls(UPDATE_TAG)) == 2


def test_backoff_grows_to_its_limit() -> None:
    policy = RetryPolicy(initial_backoff_seconds=1.0, multiplier=3.0, max_backoff_seconds=5.0)
    longest = [max(policy.backoff_seconds(retry) for _ in range(300)) for retry in (1, 2, 3, 9)]
    assert [round(seconds) for seconds in longest] == [1, 3, 5, 5]
    assert min(policy.backoff_seconds(9) for _ in range(300)) < 1.0  # full jitter: callers do not march in step


def test_attempts_end_with_their_timeout() -> None:
    attempts = Attempts(QUICK, timeout=0.0)
    with pytest.raises(DeadlineExceeded, match="no answer in 0 s"):
        attempts.remaining()


def test_progress_gives_a_transfer_new_attempts() -> None:
    attempts = Attempts(RetryPolicy(max_attempts=2, initial_backoff_seconds=0.0), timeout=None)
    for _ in range(5):
        attempts.wait_after(Unavailable("broke"))
        attempts.progressed()
    attempts.wait_after(Unavailable("broke"))
    with pytest.raises(CallError):
        attempts.wait_after(Unavailable("broke"))


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"multiplier": 0.5}, {"max_backoff_seconds": -1.0}])
def test_a_senseless_policy_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RetryPolicy(**wrong)
