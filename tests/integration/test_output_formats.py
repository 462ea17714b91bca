"""Formats over the wire: answers are of them whatever draws them, and what is wrong is told by its name."""

import asyncio
import json
import re
from pathlib import Path

import grpc
import jsonschema
import pytest
from model_directories import tiny_model
from peft_adapters import write_ia3, write_lora
from server_process import ServerProcess, publish

from hotshoe.clients import AsyncClient, Client, InvalidArgument
from hotshoe.protos.v1 import generation_pb2

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "tags": {"type": "array", "items": {"enum": ["a", "bé"]}, "maxItems": 2},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "tags", "n"],
    "additionalProperties": False,
}


def test_every_answer_is_of_the_schema_with_adapters_and_stacks(server: ServerProcess, tmp_path: Path) -> None:
    publish(server, "formats/lora", write_lora(tmp_path / "lora", tiny_model(), seed=1))
    publish(server, "formats/ia3", write_ia3(tmp_path / "ia3", tiny_model(), seed=2))
    drawn = {"temperature": 1.5, "seed": 3, "n": 4, "max_new_tokens": 300, "stop": ["never"], "frequency_penalty": 0.1}
    with Client(server.ready["grpc"]) as client:
        texts = {}
        for adapters in ((), ("formats/lora",), (("formats/lora", 0.5), "formats/ia3")):
            answers = client.generate("Tell of it", adapters=adapters, json_schema=SCHEMA, **drawn)
            texts[adapters] = [completion.text for completion in answers.completions]
            for completion in answers.completions:
                assert completion.finish_reason == generation_pb2.FINISH_REASON_STOP
                assert not completion.stop_sequence
                jsonschema.validate(json.loads(completion.text), SCHEMA)
        again = client.generate("Tell of it", json_schema=json.dumps(SCHEMA), **drawn)
        assert [completion.text for completion in again.completions] == texts[()]
        assert len({text for each in texts.values() for text in each}) > 8


def test_streams_and_both_clients_ask_for_each_kind(server: ServerProcess) -> None:
    with Client(server.ready["grpc"]) as client:
        with client.stream("Which?", choices=["yes", "no", "maybe so"], temperature=2.0, seed=1) as stream:
            text = "".join(delta.text_delta for delta in stream)
        assert text in ("yes", "no", "maybe so")
        assert stream.final.completions[0].finish_reason == generation_pb2.FINISH_REASON_STOP
        assert re.fullmatch("[a-f]{3}-[0-9]", client.generate("x", regex="[a-f]{3}-[0-9]").completions[0].text)
        assert client.generate("x", lark='start: "a" B\nB: /bc/').completions[0].text == "abc"
        assert client.generate("x", json_object=True, max_new_tokens=1).completions[0].text == "{"

        async def ask() -> str:
            async with AsyncClient(server.ready["grpc"]) as client:
                return (await client.generate("x", choices=["only"])).completions[0].text

        assert asyncio.run(ask()) == "only"
        cut = client.generate("x", regex="(ab){20}", stop=["ba"]).completions[0]
        assert (cut.text, cut.stop_sequence) == ("a", "ba"), "a stop string cuts a format short"


@pytest.mark.parametrize(
    "options, field",
    [
        ({"json_schema": {"type": "thing"}}, "format.json_schema"),
        ({"json_schema": {"enum": [str(i) for i in range(10**5)]}}, "format.json_schema"),
        ({"json_schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}}}}, "format.json_schema"),
        ({"regex": "(a"}, "format.regex"),
        ({"choices": ["a"] * 5000}, "format.choices.texts"),
        ({"lark": "start: other"}, "format.lark"),
    ],
)
def test_what_is_wrong_is_invalid_by_its_name(server: ServerProcess, options: dict[str, object], field: str) -> None:
    with Client(server.ready["grpc"]) as client:
        with pytest.raises(InvalidArgument) as refused:
            client.generate("x", **options)  # type: ignore[arg-type]
        assert refused.value.status is grpc.StatusCode.INVALID_ARGUMENT and field in str(refused.value)
        client.generate("x", max_new_tokens=1)
