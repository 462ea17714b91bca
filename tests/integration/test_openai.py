"""OpenAI's own client, and others, against the HTTP API; tokens are asked for there as over gRPC."""

import functools
import gzip
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from model_directories import tiny_model
from peft_adapters import write_lora
from server_process import ServerProcess, command, launch, until
from tokens import KEY, token

from hotshoe.clients import Client

CHAT = [{"role": "user", "content": "Who are you?"}]
ALL = token(scope="generate read publish admin", exp=int(time.time()) + 80_000)  # as long as any run of the tests
GREEDY: Any = {"temperature": 0, "max_tokens": 12}


@dataclass
class House:
    server: ServerProcess
    grpc: Client
    api: openai.OpenAI

    @property
    def base(self) -> str:
        return str(self.server.ready["base_model"])

    def post(
        self, path: str, data: bytes, content_type: str = "application/json", encoding: str = "identity"
    ) -> tuple[int, Any]:
        headers = {"Content-Type": content_type, "Content-Encoding": encoding, "Authorization": f"Bearer {ALL}"}
        request = urllib.request.Request(f"http://{self.server.ready['openai']}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def house(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    directory = tmp_path_factory.mktemp("openai")
    (directory / "keys").write_bytes(KEY.public.pem())
    cache = tmp_path_factory.getbasetemp() / "bases"
    flags = ["--base-cache", str(cache), "--openai", "127.0.0.1:0", "--auth-keys", str(directory / "keys")]
    server = launch(directory, command(tiny_base, directory / "registry", *flags))
    api = openai.OpenAI(base_url=f"http://{server.ready['openai']}/v1", api_key=ALL, max_retries=0, timeout=120)
    with Client(server.ready["grpc"], token=ALL) as client:
        write_lora(directory / "pirate", tiny_model(), scale=1.0)
        client.publish_directory(directory / "pirate", "team/pirate", tags=["v1", "latest"])
        yield House(server, client, api)
    server.end()


def test_the_models_are_the_base_and_every_tag(house: House) -> None:
    digest = house.grpc.get_adapter("team/pirate:v1").digest
    models = {model.id: model for model in house.api.models.list()}
    assert models.keys() == {house.base, "team/pirate:v1", "team/pirate:latest"}
    assert models["team/pirate:v1"].root == digest and models["team/pirate:v1"].parent == house.base
    assert house.api.models.retrieve("team/pirate:v1").root == digest
    assert house.api.models.retrieve(house.base).id == house.base


@pytest.mark.parametrize("model", ["base", "team/pirate:v1"])
def test_a_chat_is_answered_as_over_grpc_whole_and_streamed(house: House, model: str) -> None:
    adapters = [] if model == "base" else [model]
    expected = house.grpc.generate(CHAT, adapters=adapters, max_new_tokens=12)
    whole = house.api.chat.completions.create(model=model, messages=CHAT, **GREEDY)
    [choice] = whole.choices
    assert choice.message.content == expected.completions[0].text and choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length") and whole.model == model
    assert whole.usage.completion_tokens == expected.usage.completion_tokens
    assert whole.usage.prompt_tokens == expected.usage.prompt_tokens
    assert [one["digest"] for one in whole.adapters] == [one.digest for one in expected.adapters]
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = house.api.chat.completions.create(model=model, messages=CHAT, **GREEDY, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert [chunk.choices[0].delta.role for chunk in chunks].count("assistant") == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == [
        choice.finish_reason
    ]
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in [*chunks, last]}) == 1


def test_log_probabilities_are_grpcs(house: House) -> None:
    expected = house.grpc.generate(CHAT, max_new_tokens=12, logprobs=2).completions[0].tokens
    [choice] = house.api.chat.completions.create(
        model="base", messages=CHAT, logprobs=True, top_logprobs=2, **GREEDY
    ).choices
    # The second finds its prompt in the cache, and computes fewer rows at once.
    assert [one.logprob for one in choice.logprobs.content] == pytest.approx(
        [one.logprob for one in expected], abs=1e-5
    )
    assert [[other.token for other in one.top_logprobs] for one in choice.logprobs.content] == [
        [other.text for other in one.alternatives] for one in expected
    ]


def test_a_stack_several_answers_and_samplers_reach_the_engine(house: House) -> None:
    answer = house.api.chat.completions.create(
        model="base", messages=CHAT, n=3, max_tokens=4, seed=7, top_p=0.9,
        extra_body={"adapters": [{"reference": "team/pirate:v1", "weight": 0.5}], "top_k": 9, "ignore_eos": True},
    )  # fmt: skip
    assert len(answer.choices) == 3 and answer.usage.completion_tokens == 12
    assert [(one["reference"], one["weight"]) for one in answer.adapters] == [("team/pirate:v1", 0.5)]


def test_formats_in_openais_words_and_vllms(house: House) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}},
              "required": ["n"], "additionalProperties": False}  # fmt: skip
    create: Any = functools.partial(house.api.chat.completions.create, model="base", messages=CHAT, max_tokens=90)
    asked = {"type": "json_schema", "json_schema": {"name": "count", "schema": schema, "strict": True}}
    [choice] = create(response_format=asked).choices
    assert json.loads(choice.message.content).keys() == {"n"} and choice.finish_reason == "stop"
    chunks = create(response_format=asked, stream=True, seed=5)
    assert "n" in json.loads("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    [choice] = create(response_format={"type": "json_object"}, temperature=0).choices
    assert choice.message.content.startswith("{")
    [choice] = create(extra_body={"guided_choice": ["red", "green"]}).choices
    assert choice.message.content in ("red", "green")
    [text] = house.api.completions.create(
        model="base", prompt="x", extra_body={"structured_outputs": {"regex": "[0-9]{3}"}}
    ).choices
    assert text.text.isdigit() and len(text.text) == 3
    with pytest.raises(openai.BadRequestError) as refused:
        create(response_format=asked | {"json_schema": {"name": "x", "schema": {"type": "thing"}}})
    assert refused.value.param == "response_format" and "thing" in refused.value.message


def test_completions_of_several_prompts_with_echo(house: House) -> None:
    prompts = ["one two", "three"]
    answer = house.api.completions.create(model="base", prompt=prompts, echo=True, logprobs=1, **GREEDY)
    for choice, prompt in zip(answer.choices, prompts, strict=True):
        expected = house.grpc.generate(prompt, max_new_tokens=12, prompt_logprobs=1, logprobs=1)
        told = [*expected.prompt_tokens, *expected.completions[0].tokens]
        assert choice.text == prompt + expected.completions[0].text
        assert choice.logprobs.tokens == [one.text for one in told]
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1:] == pytest.approx([one.logprob for one in told[1:]], abs=1e-4)
        assert choice.logprobs.text_offset[: len(prompt)] == list(range(len(prompt)))
    scored = house.api.completions.create(model="base", prompt=prompts, echo=True, logprobs=1, max_tokens=0)
    assert [choice.text for choice in scored.choices] == prompts
    assert [len(choice.logprobs.tokens) for choice in scored.choices] == [7, 5]


def test_a_completion_is_streamed(house: House) -> None:
    asked: Any = {"model": "team/pirate", "prompt": "one two", "logprobs": 0, **GREEDY}
    whole = house.api.completions.create(**asked).choices[0]
    chunks = list(house.api.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    streamed = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [value for one in streamed for value in getattr(one, name)] == getattr(whole.logprobs, name)
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


REFUSALS = [
    ({"model": "none/such"}, 404, None, "adapter_not_found"),
    ({"model": "NO"}, 400, "adapters[0].reference", "invalid_reference"),
    ({"max_tokens": 100_000}, 400, "max_tokens", "prompt_too_long"),
    ({"top_p": 3}, 400, "top_p", "invalid_parameter"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, 400, "messages[0].role", "invalid_parameter"),
    ({"tools": [{"type": "function"}]}, 400, "tools", "invalid_parameter"),
    ({"n": 2, "stream": True}, 400, "n", "invalid_parameter"),
    ({"stop": ["x" * 300]}, 400, "stop[0]", "invalid_parameter"),
]


@pytest.mark.parametrize(("change", "status", "param", "code"), REFUSALS)
def test_what_is_wrong_is_told_as_openai_tells_it(
    house: House, change: dict[str, Any], status: int, param: str | None, code: str
) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        house.api.chat.completions.create(**{"model": "base", "messages": CHAT} | change)
    assert (error.value.status_code, error.value.param, error.value.code) == (status, param, code)
    assert error.value.body["message"]


def test_bodies_that_are_none_are_refused(house: House) -> None:
    path, good = "/v1/chat/completions", json.dumps({"model": "base", "messages": CHAT, "max_tokens": 1}).encode()
    assert house.post(path, good)[0] == 200
    assert house.post(path, good, "text/plain")[0] == 415, "a page in a browser may send it without asking"
    for body in (b"", b"{", b"[]", b"[" * 100_000, b"\xff"):
        status, told = house.post(path, body)
        assert status == 400 and told["error"]["param"] == "body", body[:10]
    for body, encoding in ((good, "gzip"), (b'{"model": "\\ud800"}', "identity")):
        assert house.post(path, body, encoding=encoding)[0] == 400
    assert house.post(path, b" " * (5 << 20))[0] == 413
    assert house.post(path, gzip.compress(b" " * (5 << 20)), encoding="gzip")[0] == 413
    assert "traceback" not in house.server.log.lower()
    assert house.post("/v1/embeddings", good)[0] == 404 and house.post("/v1/models", good)[0] == 405


def test_a_token_is_asked_for(house: House) -> None:
    nobody = openai.OpenAI(base_url=house.api.base_url, api_key="nothing", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as error:
        nobody.models.list()
    assert error.value.response.headers["WWW-Authenticate"] == "Bearer"
    reader = openai.OpenAI(base_url=house.api.base_url, api_key=token(scope="read"), max_retries=0)
    assert reader.models.list()
    with pytest.raises(openai.PermissionDeniedError, match="scope generate"):
        reader.chat.completions.create(model="base", messages=CHAT)


def test_who_goes_away_leaves_nothing_running(house: House) -> None:
    ended = functools.partial(house.server.metric, "vllm:request_success_total")
    for _ in range(20):  # on a busy machine the answer may end before its reader goes
        stream = house.api.chat.completions.create(
            model="base", messages=CHAT, max_tokens=400, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
        until(lambda: not any(house.server.metric(f"vllm:num_requests_{state}") for state in ("running", "waiting")))
        if ended("abort"):
            break
    assert (ended("abort"), ended("error")) == (1.0, 0.0) and "internal_error" not in house.server.log
