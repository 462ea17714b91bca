"""Requests that could never be served are refused by the name of the field, before anything is queued."""

from typing import Any

import pytest
from running_engine import make_request

from hotshoe.server.config import EngineConfig
from hotshoe.server.engine.admission import check_request
from hotshoe.server.engine.request import AdapterUse, Request, SamplingParams
from hotshoe.server.errors import InvalidRequest, PromptTooLong

CONFIG = EngineConfig(max_running_requests=4, max_step_tokens=16, kv_tokens=64, page_tokens=4)


def check(request: Request) -> None:
    check_request(request, CONFIG, kv_tokens=64, vocab_size=100, max_sequence_length=200, adapter_slots=2)


def score(*choices: tuple[int, ...], **fields: Any) -> Request:
    return make_request([1, 2], max_new_tokens=0, choices=choices, **fields)


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("prompt", make_request([])),
        ("prompt.token_ids", make_request([1, 100])),
        ("prompt.token_ids", make_request([-1])),
        ("sampling.logit_bias", make_request([1], sampling=SamplingParams(logit_bias={100: 1.0}))),
        ("stopping.stop_token_ids", make_request([1], stopping={"stop_token_ids": frozenset([2**31])})),
        ("stopping.max_new_tokens", make_request([1], max_new_tokens=0)),
        ("n", make_request([1], n=0)),
        ("n", make_request([1], n=5)),
        ("logprobs", make_request([1], logprobs=-1)),
        ("prompt_logprobs", make_request([1], prompt_logprobs=101)),
        ("adapters", make_request([1], adapters=[AdapterUse(name, name, name) for name in "abc"])),
        ("choices[1]", score((1,), ())),
        ("choices[0]", score((100,))),
        ("n", score((1,), n=2)),
        ("prompt_logprobs", score((1,), prompt_logprobs=0)),
    ],
)
def test_bad_fields_are_named(field: str, request_: Request) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check(request_)
    assert raised.value.field == field


@pytest.mark.parametrize(
    "request_",
    [
        make_request([1] * 61, max_new_tokens=5),  # 65 positions in the cache of 64, the last token's apart
        make_request([1], max_new_tokens=10**9),
        score((1,) * 64),
    ],
)
def test_what_never_fits_is_refused(request_: Request) -> None:
    with pytest.raises(PromptTooLong):
        check(request_)


def test_what_just_fits_is_taken() -> None:
    check(make_request([1] * 61, max_new_tokens=4))
    check(score((1,) * 63))
    check(make_request([0, 99], n=4, logprobs=0, prompt_logprobs=100))


def test_the_model_s_length_is_a_limit_too() -> None:
    limits = {"kv_tokens": 1024, "vocab_size": 100, "max_sequence_length": 200, "adapter_slots": 2}
    check_request(make_request([1] * 150, max_new_tokens=50), CONFIG, **limits)
    with pytest.raises(PromptTooLong, match="200"):
        check_request(make_request([1] * 150, max_new_tokens=51), CONFIG, **limits)
