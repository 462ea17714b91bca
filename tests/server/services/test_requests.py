import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from hotshoe.protos.v1 import generation_pb2
from hotshoe.registry.errors import AdapterNotFound
from hotshoe.server.engine.request import Request
from hotshoe.server.errors import InvalidRequest, PromptTooLong
from hotshoe.server.services.requests import RequestMapper, request_id_of
from hotshoe.server.services.stop_criteria import DEFAULT_MAX_NEW_TOKENS

MAX_TOKENS = 1000
VOCAB_SIZE = 300


@dataclass(frozen=True)
class Adapter:
    name: str
    digest: str
    kind: str = "LORA"
    virtual_tokens: int = 0
    num_tasks: int = 0


ADAPTERS = {
    "poet": Adapter("poet", "sha256:1"),
    "poet:v1": Adapter("poet", "sha256:1"),
    "judge": Adapter("judge", "sha256:2", "IA3"),
    "prefix": Adapter("prefix", "sha256:3", "PREFIX_TUNING", 8),
    "prompt": Adapter("prompt", "sha256:4", "PROMPT_TUNING", 4),
    "context": Adapter("context", "sha256:5", "CPT", 3),
    "skills": Adapter("skills", "sha256:6", "POLY", num_tasks=3),
}
ADAPTERS |= {f"a{number}": Adapter(f"a{number}", f"sha256:a{number}") for number in range(9)}


class ByteTokenizer:
    """One token a byte; a chat is its contents with marks."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return ([256] if add_special_tokens else []) + list(text.encode())

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if messages[0]["content"] == "refuse":
            raise InvalidRequest("messages", "refused by the template")
        return [257 + len(messages)]


def resolve(reference: str) -> Adapter:
    if reference not in ADAPTERS:
        raise AdapterNotFound(f"no adapter {reference}")
    return ADAPTERS[reference]


MAPPER = RequestMapper(tokenizer=ByteTokenizer(), resolve=resolve, vocab_size=VOCAB_SIZE, max_tokens=MAX_TOKENS)


def _message(**fields: Any) -> generation_pb2.GenerateRequest:
    if not {"text", "token_ids", "chat"} & fields.keys():
        fields["text"] = "hello"
    return generation_pb2.GenerateRequest(**{key: value for key, value in fields.items() if value is not None})


def _map(streaming: bool = False, **fields: Any) -> Request:
    return MAPPER.generate(_message(**fields), request_id="r", deadline=None, streaming=streaming)


def _score(**fields: Any) -> Request:
    fields = {"text": "hello", "choices": ["a", "bc"], **fields}
    return MAPPER.score(generation_pb2.ScoreRequest(**fields), request_id="r", deadline=None)


def test_unset_fields_take_the_defaults() -> None:
    request = _map()
    assert request.prompt_token_ids == (256, *b"hello")
    assert request.sampling.greedy
    assert (request.sampling.top_p, request.sampling.top_k, request.sampling.min_p) == (1.0, 0, 0.0)
    assert request.sampling.repetition_penalty == 1.0
    assert request.stopping.max_new_tokens == DEFAULT_MAX_NEW_TOKENS
    assert request.stopping.time_limit_seconds is None
    assert (request.n, request.logprobs, request.prompt_logprobs, request.adapters) == (1, None, None, ())


def test_a_set_zero_is_a_zero() -> None:
    sampling = generation_pb2.SamplingParams(temperature=0.0, presence_penalty=0.0, seed=0, top_k=0)
    request = _map(sampling=sampling, logprobs=0, prompt_logprobs=0)
    assert request.sampling.seed == 0
    assert (request.logprobs, request.prompt_logprobs) == (0, 0)


def test_a_seed_is_drawn_where_none_was_given() -> None:
    seeds = {_map().sampling.seed for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_the_largest_seed_passes_unchanged() -> None:
    assert _map(sampling=generation_pb2.SamplingParams(seed=2**64 - 1)).sampling.seed == 2**64 - 1


def test_everything_that_is_set_arrives() -> None:
    sampling = generation_pb2.SamplingParams(temperature=0.5, top_p=0.25, top_k=7, min_p=0.125, logit_bias={5: -1.5})
    stopping = generation_pb2.StopCriteria(
        max_new_tokens=9, min_new_tokens=2, stop=["\n", "é"], stop_token_ids=[7, 8], ignore_eos=True
    )
    stopping.time_limit.FromMilliseconds(1500)
    request = _map(sampling=sampling, stopping=stopping, n=3, logprobs=20, prompt_logprobs=1)
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0.5, 0.25, 7)
    assert dict(request.sampling.logit_bias) == {5: -1.5}
    assert (request.stopping.max_new_tokens, request.stopping.min_new_tokens) == (9, 2)
    assert request.stopping.stop == ("\n", "é")
    assert request.stopping.stop_token_ids == {7, 8}
    assert request.stopping.ignore_eos
    assert request.stopping.time_limit_seconds == 1.5
    assert (request.n, request.logprobs, request.prompt_logprobs) == (3, 20, 1)


def test_token_ids_and_chats_are_prompts_too() -> None:
    assert _map(token_ids={"ids": [1, 299]}).prompt_token_ids == (1, 299)
    assert _map(chat={"messages": [{"role": "user", "content": ""}]}).prompt_token_ids == (258,)


def test_the_default_length_is_cut_to_what_fits() -> None:
    assert _map(token_ids={"ids": [1] * (MAX_TOKENS - 10)}).stopping.max_new_tokens == 10


def test_the_default_length_leaves_room_for_soft_prompts() -> None:
    request = _map(
        token_ids={"ids": [1] * (MAX_TOKENS - 20)}, adapters=[{"reference": "prefix"}, {"reference": "prompt"}]
    )
    assert request.stopping.max_new_tokens == 8


def test_a_minimum_raises_the_default_length() -> None:
    stopping = generation_pb2.StopCriteria(min_new_tokens=DEFAULT_MAX_NEW_TOKENS + 5)
    assert _map(stopping=stopping).stopping.max_new_tokens == DEFAULT_MAX_NEW_TOKENS + 5


def test_adapters_are_resolved_to_digests_with_their_weights() -> None:
    request = _map(adapters=[{"reference": "poet"}, {"reference": "judge", "weight": 0.0}])
    assert [(use.reference, use.name, use.digest, use.weight) for use in request.adapters] == [
        ("poet", "poet", "sha256:1", 1.0),
        ("judge", "judge", "sha256:2", 0.0),
    ]


def test_an_unknown_adapter_is_not_found() -> None:
    with pytest.raises(AdapterNotFound):
        _map(adapters=[{"reference": "nobody"}])


def _sampling(**fields: Any) -> dict[str, Any]:
    return {"sampling": generation_pb2.SamplingParams(**fields)}


def _stopping(**fields: Any) -> dict[str, Any]:
    return {"stopping": generation_pb2.StopCriteria(**fields)}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"text": ""}, "text"),
        ({"token_ids": {"ids": []}}, "token_ids"),
        ({"token_ids": {"ids": [1, VOCAB_SIZE]}}, "token_ids.ids[1]"),
        ({"token_ids": {"ids": [2**32 - 1]}}, "token_ids.ids[0]"),
        ({"chat": {"messages": []}}, "chat.messages"),
        ({"chat": {"messages": [{"role": "tool", "content": "x"}]}}, "chat.messages[0].role"),
        ({"chat": {"messages": [{"role": "user", "content": "x"}, {"content": "x"}]}}, "chat.messages[1].role"),
        ({"chat": {"messages": [{"role": "user", "content": "refuse"}]}}, "chat.messages"),
        (_sampling(temperature=math.nan), "sampling.temperature"),
        (_sampling(temperature=-1), "sampling.temperature"),
        (_sampling(temperature=math.inf), "sampling.temperature"),
        (_sampling(top_p=0), "sampling.top_p"),
        (_sampling(top_p=2), "sampling.top_p"),
        (_sampling(top_k=-1), "sampling.top_k"),
        (_sampling(min_p=1.5), "sampling.min_p"),
        (_sampling(repetition_penalty=0), "sampling.repetition_penalty"),
        (_sampling(presence_penalty=math.nan), "sampling.presence_penalty"),
        (_sampling(frequency_penalty=-math.inf), "sampling.frequency_penalty"),
        (_sampling(logit_bias={VOCAB_SIZE: 1.0}), f"sampling.logit_bias[{VOCAB_SIZE}]"),
        (_sampling(logit_bias={3: math.nan}), "sampling.logit_bias[3]"),
        (_sampling(logit_bias={token: 1.0 for token in range(1025)}), "sampling.logit_bias"),
        (_stopping(max_new_tokens=0), "stopping.max_new_tokens"),
        (_stopping(max_new_tokens=5, min_new_tokens=6), "stopping.min_new_tokens"),
        (_stopping(min_new_tokens=10**9), "stopping.min_new_tokens"),
        (_stopping(stop=["x"] * 17), "stopping.stop"),
        (_stopping(stop=["ok", ""]), "stopping.stop[1]"),
        (_stopping(stop=["é" * 129]), "stopping.stop[0]"),
        (_stopping(stop_token_ids=[1] * 65), "stopping.stop_token_ids"),
        (_stopping(stop_token_ids=[1, VOCAB_SIZE]), "stopping.stop_token_ids[1]"),
        (_stopping(time_limit={"seconds": 0}), "stopping.time_limit"),
        (_stopping(time_limit={"seconds": -1}), "stopping.time_limit"),
        (_stopping(time_limit={"seconds": 10**9}), "stopping.time_limit"),
        (_stopping(time_limit={"seconds": 1, "nanos": -1}), "stopping.time_limit.nanos"),
        (_stopping(time_limit={"nanos": 1_000_000_000}), "stopping.time_limit.nanos"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"adapters": [{"reference": f"a{number}"} for number in range(9)]}, "adapters"),
        ({"adapters": [{"reference": "poet"}, {"reference": "poet:v1"}]}, "adapters[1].reference"),
        ({"adapters": [{"reference": "poet", "weight": math.nan}]}, "adapters[0].weight"),
        ({"adapters": [{"reference": "poet", "weight": math.inf}]}, "adapters[0].weight"),
        ({"adapters": [{"reference": "poet", "weight": 101}]}, "adapters[0].weight"),
        ({"adapters": [{"reference": "judge"}, {"reference": "prefix", "weight": 0.5}]}, "adapters[1].weight"),
        ({"adapters": [{"reference": "prompt", "weight": 0.0}]}, "adapters[0].weight"),
        ({"adapters": [{"reference": "context", "weight": 0.5}]}, "adapters[0].weight"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name_in_the_proto(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _map(**fields)
    assert type(caught.value) is InvalidRequest
    assert caught.value.field == field


def test_a_request_without_a_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        MAPPER.generate(generation_pb2.GenerateRequest(), request_id="r", deadline=None)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("n", [0, 2])
def test_a_stream_has_one_answer(n: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _map(streaming=True, n=n)
    assert caught.value.field == "n"
    assert _map(streaming=True, n=1).n == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"token_ids": {"ids": [1] * (MAX_TOKENS + 1)}}, "token_ids"),
        ({"token_ids": {"ids": [1] * MAX_TOKENS}}, "token_ids"),
        ({"text": "x" * MAX_TOKENS}, "text"),
        (_stopping(max_new_tokens=MAX_TOKENS), "stopping.max_new_tokens"),
        (_stopping(max_new_tokens=2**32 - 1), "stopping.max_new_tokens"),
    ],
)
def test_what_does_not_fit_is_too_long(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(PromptTooLong) as caught:
        _map(**fields)
    assert caught.value.field == field


def test_choices_are_tokenized_without_special_tokens() -> None:
    request = _score()
    assert request.choices == (tuple(b"a"), tuple(b"bc"))
    assert request.logprobs == 0


@pytest.mark.parametrize(("choices", "field"), [([], "choices"), (["x"] * 65, "choices"), (["a", ""], "choices[1]")])
def test_wrong_choices_are_refused(choices: list[str], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _score(choices=choices)
    assert caught.value.field == field


def test_a_choice_must_fit_beside_the_prompt() -> None:
    with pytest.raises(PromptTooLong):
        _score(choices=["x" * MAX_TOKENS])


def test_request_ids_are_kept_or_made() -> None:
    assert request_id_of("trace-1/2:3") == "trace-1/2:3"
    assert len(request_id_of("")) == 32
    assert request_id_of("") != request_id_of("")


@pytest.mark.parametrize("text", [" ", "a b", "a\n", "é", "x" * 129, "\x7f"])
def test_request_ids_that_no_header_can_carry_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_id_of(text)
    assert caught.value.field == "request_id"


@pytest.mark.parametrize(
    ("selection", "problem"),
    [
        ({"reference": "skills"}, "missing, expected a task from 0 to 2"),
        ({"reference": "skills", "task": 3}, "found 3, expected a task from 0 to 2"),
        ({"reference": "judge", "task": 0}, "found 0, expected none: the adapter has no tasks"),
    ],
)
def test_a_task_is_named_of_an_adapter_that_has_tasks_and_of_no_other(selection: dict[str, Any], problem: str) -> None:
    for ask in (_map, _score):
        with pytest.raises(InvalidRequest) as caught:
            ask(adapters=[{"reference": "poet"}, selection])
        assert caught.value.field == "adapters[1].task"
        assert problem in str(caught.value)


def test_each_task_of_an_adapter_is_another_in_the_stack() -> None:
    request = _map(adapters=[{"reference": "skills", "task": 2}, {"reference": "skills", "task": 0, "weight": 0.5}])
    assert [(use.key, use.task, use.weight) for use in request.adapters] == [
        ("sha256:6#2", 2, 1.0),
        ("sha256:6#0", 0, 0.5),
    ]
    with pytest.raises(InvalidRequest, match="in the stack twice, first as skills"):
        _map(adapters=[{"reference": "skills", "task": 2}, {"reference": "skills", "task": 2}])
