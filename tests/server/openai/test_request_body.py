import json
from typing import Any

import pytest

from hotshoe.protos.v1 import generation_pb2
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.openai.request_body import chat_request, completion_requests, streams, streams_usage

CHAT = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "base", "prompt": "hi"}


def test_a_chat_becomes_a_request() -> None:
    body = {
        "model": "team/skills:v1#2",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "are you?"}]},
        ],
        "adapters": [{"reference": "team/json", "weight": 0.5}, {"reference": "team/x", "task": 0}],
        "max_completion_tokens": 9,
        "max_tokens": 7,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "seed": (1 << 64) - 1,
        "n": 2,
        "stop": "END",
        "logit_bias": {"42": -100},
        "logprobs": True,
        "top_logprobs": 4,
        "user": "ada",
        "tools": None,
        "tool_choice": "none",
        "response_format": {"type": "text"},
    }
    chat = generation_pb2.ChatPrompt(
        messages=[
            generation_pb2.ChatMessage(role="system", content="Be brief."),
            generation_pb2.ChatMessage(role="user", content="Who are you?"),
        ]
    )
    assert chat_request(body, "Base-1B") == generation_pb2.GenerateRequest(
        adapters=[
            generation_pb2.AdapterSelection(reference="team/skills:v1", task=2),
            generation_pb2.AdapterSelection(reference="team/json", weight=0.5),
            generation_pb2.AdapterSelection(reference="team/x", task=0),
        ],
        chat=chat,
        sampling=generation_pb2.SamplingParams(
            temperature=0, top_p=0.5, top_k=3, seed=(1 << 64) - 1, logit_bias={42: -100.0}
        ),
        stopping=generation_pb2.StopCriteria(max_new_tokens=9, stop=["END"]),
        logprobs=4,
        n=2,
    )


OBJECT = {"type": "object", "properties": {"é": {"type": "integer"}}}
_SCHEMA = generation_pb2.OutputFormat(json_schema=json.dumps(OBJECT, ensure_ascii=False))
_ANY = generation_pb2.OutputFormat(json_object=generation_pb2.JsonObject())
_YES_NO = generation_pb2.OutputFormat(choices=generation_pb2.Choices(texts=["yes", "no"]))


@pytest.mark.parametrize(
    "body, format",
    [
        ({"response_format": {"type": "json_object"}}, _ANY),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": OBJECT, "strict": True}}},
         _SCHEMA),
        ({"structured_outputs": {"json": OBJECT}}, _SCHEMA),
        ({"structured_outputs": {"json_object": True, "regex": None}}, _ANY),
        ({"structured_outputs": {"choice": ["yes", "no"], "json_object": False}}, _YES_NO),
        ({"structured_outputs": {"grammar": "start: A"}}, generation_pb2.OutputFormat(lark="start: A")),
        ({"guided_json": json.dumps(OBJECT, ensure_ascii=False)}, _SCHEMA),
        ({"guided_regex": "a+"}, generation_pb2.OutputFormat(regex="a+")),
        ({"guided_choice": ["yes", "no"], "response_format": {"type": "text"}}, _YES_NO),
    ],
)  # fmt: skip
def test_a_format_is_asked_for_in_openais_words_or_vllms(
    body: dict[str, Any], format: generation_pb2.OutputFormat
) -> None:
    assert chat_request(CHAT | body, "b").format == format
    assert completion_requests(TEXT | body, "b")[0].format == format


def test_what_is_not_said_is_as_openai_has_it() -> None:
    chat, [text] = chat_request(CHAT | {"model": "Base-1B"}, "Base-1B"), completion_requests(TEXT, "Base-1B")
    assert not chat.adapters and not text.adapters
    assert chat.sampling.temperature == text.sampling.temperature == 1
    assert not chat.stopping.HasField("max_new_tokens") and text.stopping.max_new_tokens == 16
    assert not chat.HasField("logprobs") and not text.HasField("logprobs") and not chat.HasField("n")


def test_a_completion_has_one_request_of_each_prompt() -> None:
    def prompts(value: Any) -> list[Any]:
        requests = completion_requests(TEXT | {"prompt": value}, "b")
        return [request.text or list(request.token_ids.ids) for request in requests]

    assert prompts("a") == ["a"] and prompts([1, 2]) == [[1, 2]]
    assert prompts(["a", "b"]) == ["a", "b"] and prompts([[1], "b", [2, 3]]) == [[1], "b", [2, 3]]


def test_an_echo_asks_for_the_prompt_s_log_probabilities_and_for_one_token_at_least() -> None:
    [request] = completion_requests(TEXT | {"echo": True, "max_tokens": 0, "logprobs": 1}, "b")
    assert request.prompt_logprobs == request.logprobs == 1 and request.stopping.max_new_tokens == 1
    [request] = completion_requests(TEXT | {"max_tokens": 0}, "b")
    assert request.stopping.max_new_tokens == 0  # which the service refuses


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"model": "a#x"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"adapters": "a"}, "adapters"),
        ({"adapters": [{"name": "a"}]}, "adapters[0]"),
        ({"adapters": [{"reference": "a", "weight": "1"}]}, "adapters[0].weight"),
        ({"adapters": [{"reference": "a", "task": -1}]}, "adapters[0].task"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": 1 << 40}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 64}, "seed"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1 << 32}, "max_tokens"),
        ({"n": 0.5}, "n"),
        ({"stop": 7}, "stop"),
        ({"stop": ["a", 7]}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias"),
        ({"model": "\ud800"}, "model"),
        ({"model": f"team/skills#{'1' * 5000}"}, "model"),
        ({"logit_bias": {"1": "much"}}, "logit_bias[1]"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "more": 1}}},
            "response_format.json_schema.more",
        ),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
        ({"guided_choice": "yes"}, "guided_choice"),
        ({"guided_choice": ["yes", "\ud800"]}, "guided_choice"),
        ({"request_id": 7}, "request_id"),
        ({"prompt": "hi"}, "prompt"),
        ({"unheard_of": 0}, "unheard_of"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], field: str) -> None:
    body = CHAT | change
    with pytest.raises(InvalidRequest) as error:
        streams(body)
        chat_request(body, "b")
    assert error.value.field == field


@pytest.mark.parametrize("prompt", [None, "", 7, [], [[]], [["a"]], ["a", 7], [1, "a"], [-1], [1 << 32], ["a"] * 65])
def test_a_prompt_that_is_none_is_named(prompt: Any) -> None:
    try:
        requests = completion_requests(TEXT | {"prompt": prompt}, "b")
    except InvalidRequest as error:
        assert error.field.startswith("prompt")
    else:
        assert prompt in ("", [[]]) and len(requests) == 1, "the service refuses those, as over gRPC"


def test_stream_options_ask_for_the_usage() -> None:
    assert not streams_usage({}) and not streams_usage({"stream_options": None})
    assert streams_usage({"stream_options": {"include_usage": True}})
    for wrong in ([], {"include_usage": 1}, {"other": True}):
        with pytest.raises(InvalidRequest):
            streams_usage({"stream_options": wrong})
