"""What callers write becomes the message that they mean, or an error that names what is wrong."""

import typing

import numpy as np
import pytest

from hotshoe.clients import AdapterSelection
from hotshoe.clients.messages import (
    GenerateOptions,
    adapter_selections,
    generate_request,
    load_request,
    score_request,
)
from hotshoe.clients.registry_messages import merge_request
from hotshoe.protos.v1 import generation_pb2, residency_pb2

USER = {"role": "user", "content": "hi"}


def test_text_is_sent_as_text() -> None:
    assert generate_request("hi", {}) == generation_pb2.GenerateRequest(text="hi")


@pytest.mark.parametrize("ids", [[1, 2, 3], (1, 2, 3), range(1, 4), np.array([1, 2, 3])], ids=repr)
def test_token_ids_of_any_kind_are_sent_as_ids(ids) -> None:
    assert list(generate_request(ids, {}).token_ids.ids) == [1, 2, 3]


def test_messages_are_sent_as_a_conversation() -> None:
    request = generate_request([{"role": "system", "content": "be brief"}, USER], {})
    assert [(message.role, message.content) for message in request.chat.messages] == [
        ("system", "be brief"),
        ("user", "hi"),
    ]


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ([], "empty list"),
        (7, "int"),
        (["hi"], "token ids"),
        ([1, -2], "token ids"),
        ([{"role": "user"}], "content"),
        ([{"role": "robot", "content": "hi"}], "role must be one of system, user, assistant, not 'robot'"),
        ([USER, "hi"], "chat message"),
    ],
)
def test_a_prompt_that_is_none_of_these_is_refused(prompt, problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^prompt: .*{problem}"):
        generate_request(prompt, {})


@pytest.mark.parametrize(
    ("option", "format"),
    [
        ({"json_schema": {"é": [1]}}, generation_pb2.OutputFormat(json_schema='{"é": [1]}')),
        ({"json_schema": "{}"}, generation_pb2.OutputFormat(json_schema="{}")),
        ({"json_object": True, "regex": None}, generation_pb2.OutputFormat(json_object=generation_pb2.JsonObject())),
        ({"regex": "a", "json_object": False}, generation_pb2.OutputFormat(regex="a")),
        ({"choices": ("a", "b")}, generation_pb2.OutputFormat(choices=generation_pb2.Choices(texts=["a", "b"]))),
        ({"lark": "start: A"}, generation_pb2.OutputFormat(lark="start: A")),
    ],
)
def test_a_format_is_one_of_several(option, format: generation_pb2.OutputFormat) -> None:
    assert generate_request("hi", option).format == format
    assert not generate_request("hi", {}).HasField("format")


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ({"regex": "a", "choices": ["b"]}, "regex and choices: expected one of them"),
        ({"choices": "yes"}, "choices: must be several strings"),
        ({"json_object": 1}, "json_object: must be True or False"),
        ({"regex": 7}, "regex"),
    ],
)
def test_a_format_that_is_none_is_refused(option, problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        generate_request("hi", option)


def test_an_option_left_out_is_unset_and_a_zero_is_a_zero() -> None:
    unset = generate_request("hi", {})
    assert not unset.HasField("sampling") and not unset.HasField("stopping") and not unset.HasField("n")
    zero = generate_request("hi", {"temperature": 0.0, "top_k": 0, "seed": 0, "logprobs": 0})
    assert zero.sampling.HasField("temperature") and zero.sampling.HasField("top_k") and zero.sampling.HasField("seed")
    assert zero.HasField("logprobs") and not zero.sampling.HasField("top_p")


def test_every_option_reaches_its_field() -> None:
    options = GenerateOptions(
        adapters="pirate",
        max_new_tokens=5,
        min_new_tokens=2,
        temperature=0.5,
        top_p=0.75,
        top_k=3,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=2**64 - 1,
        logit_bias={7: -1.5},
        stop=["\n", "END"],
        stop_token_ids=[9],
        ignore_eos=True,
        time_limit=1.5,
        logprobs=4,
        prompt_logprobs=2,
        n=3,
        request_id="mine",
    )
    formats = {"json_schema", "json_object", "regex", "choices", "lark"}
    assert options.keys() | formats == GenerateOptions.__annotations__.keys()  # this test knows them all
    request = generate_request("hi", options)
    messages = (request, request.sampling, request.stopping)
    sent = {field.name: value for message in messages for field, value in message.ListFields()}
    assert sent.pop("time_limit").ToNanoseconds() == 1_500_000_000
    assert [adapter.reference for adapter in sent.pop("adapters")] == ["pirate"]
    assert dict(sent.pop("logit_bias")) == {7: -1.5}
    for name in ("text", "sampling", "stopping"):
        sent.pop(name)
    assert sent == {name: options[name] for name in sent}
    assert sent.keys() == options.keys() - {"time_limit", "adapters", "logit_bias"}


def test_one_stop_string_may_stand_alone() -> None:
    assert list(generate_request("hi", {"stop": "END"}).stopping.stop) == ["END"]


def test_an_option_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(TypeError, match="unknown option max_tokens; there are .*max_new_tokens"):
        generate_request("hi", typing.cast(GenerateOptions, {"max_tokens": 5}))


@pytest.mark.parametrize(
    "wrong", [{"temperature": "hot"}, {"top_k": 2**31}, {"seed": -1}, {"max_new_tokens": -1}, {"stop_token_ids": ["a"]}]
)
def test_a_value_that_does_not_fit_its_field_is_refused_by_name(wrong) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(wrong))}: "):
        generate_request("hi", wrong)


def test_a_task_is_named_beside_the_adapter_or_not_at_all() -> None:
    selections = adapter_selections(["a", ("b", 0.5), ("c", 2, 1), ("d", 1.0, None), AdapterSelection("e", task=0)])
    assert [one.task if one.HasField("task") else None for one in selections] == [None, None, 1, None, 0]
    assert load_request("a", tier="host", pin=False, task=0).HasField("task")
    assert not load_request("a", tier="host", pin=False).HasField("task")


def test_a_merge_takes_a_task_of_a_source() -> None:
    request = merge_request(["a", ("b", 0.5, 1)], "c", method="linear", parameters={}, tags=[])
    assert [one.task if one.HasField("task") else None for one in request.sources] == [None, 1]
    assert [one.HasField("weight") for one in request.sources] == [False, True]


def test_adapters_are_named_in_three_ways() -> None:
    selections = adapter_selections(["a:1", ("b", 0.5), ("c", 2), AdapterSelection("d", -1.0)])
    assert [(one.reference, one.weight, one.HasField("weight")) for one in selections] == [
        ("a:1", 0.0, False),
        ("b", 0.5, True),
        ("c", 2.0, True),
        ("d", -1.0, True),
    ]


@pytest.mark.parametrize("adapter", ["pirate", AdapterSelection("pirate")])
def test_a_single_adapter_may_stand_alone(adapter) -> None:
    [selection] = adapter_selections(adapter)
    assert selection.reference == "pirate"


@pytest.mark.parametrize("adapters", [("pirate", 0.5), [("a", "b")], [("a", 1.0, 2.0)], [None], [b"pirate"]])
def test_adapters_of_another_form_are_refused(adapters) -> None:
    with pytest.raises(TypeError, match="^adapters: "):
        adapter_selections(adapters)


def test_choices_must_be_several() -> None:
    with pytest.raises(TypeError, match="^choices: "):
        score_request("hi", "yes", adapters=(), length_normalized=False, request_id="")


def test_a_tier_is_named_by_a_word() -> None:
    assert load_request("a", tier="host", pin=True).tier == residency_pb2.TIER_HOST
    with pytest.raises(ValueError, match="^tier: must be one of host, device, not 'moon'"):
        load_request("a", tier="moon", pin=False)  # type: ignore[arg-type]
