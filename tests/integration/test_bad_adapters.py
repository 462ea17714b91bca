"""A server that is sent every malformed adapter refuses each by name, and is none the worse for it."""

import json
import struct
from pathlib import Path

import grpc
import pytest
from bad_configs import BAD_CONFIGS, WRITERS
from server_process import ServerProcess, publish

from hotshoe.clients import Client

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def answer(server: ServerProcess, *adapters: str) -> list[int]:
    with Client(server.ready["grpc"]) as client:
        response = client.generate("still here?", adapters=adapters, max_new_tokens=16, ignore_eos=True)
    return [token.token_id for token in response.completions[0].tokens]


def refusal(server: ServerProcess, directory: Path) -> str:
    """What a publish is refused with: it begins with a field's name."""
    with pytest.raises(grpc.RpcError) as refused:
        publish(server, "team/bad", directory)
    assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    details: str = refused.value.details()
    assert details.isprintable() and len(details) < 1_200
    return details


def test_every_bad_config_is_refused_by_name_and_the_server_is_unharmed(
    server, tiny_base: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    sound = WRITERS["LORA"](tmp_path / "sound", model, seed=77)
    publish(server, "team/sound", sound)
    before = answer(server), answer(server, "team/sound")
    cases = [(kind, change, field) for kind, changes in BAD_CONFIGS.items() for change, field in changes]
    assert len(cases) >= 50
    wrong = []
    for kind, change, field in cases:
        directory = WRITERS[kind](tmp_path / "bad", model)
        config = json.loads((directory / CONFIG).read_text())
        (directory / CONFIG).write_text(json.dumps({**config, **change}))
        named = refusal(server, directory)
        if field not in named:
            wrong.append((change, field, named))
    assert wrong == []
    assert (answer(server), answer(server, "team/sound")) == before
    with Client(server.ready["grpc"]) as client:
        assert list(client.list_adapters(name_contains="team/bad")) == []


def test_a_header_bomb_is_refused(server: ServerProcess, tiny_base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    directory = WRITERS["LORA"](tmp_path / "bomb", AutoModelForCausalLM.from_pretrained(tiny_base))
    with (directory / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", 95 << 20))
        file.truncate(96 << 20)  # sparse: what the header declares is there
    assert WEIGHTS in refusal(server, directory)
    assert answer(server)
