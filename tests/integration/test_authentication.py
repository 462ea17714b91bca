"""A server with --auth-keys: who comes in, as whom, and what they may do."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from model_directories import tiny_model
from peft_adapters import write_lora
from server_process import ServerProcess, command, launch
from tokens import KEY, token
from typer.testing import CliRunner

from hotshoe.clients import NO_RETRY, AsyncClient, Client, PermissionDenied
from hotshoe.clients.cli.__main__ import command_line
from hotshoe.protos.v1 import generation_pb2, registry_pb2, residency_pb2

MODULES = (generation_pb2, registry_pb2, residency_pb2)
METHODS = [
    method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
FOR_ANYBODY_WITH_A_TOKEN = {"Tokenize", "GetModelInfo"}
PROMPT = "A system prompt that everybody sends, long enough to fill some pages of the cache."


@pytest.fixture(scope="module")
def guarded(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("guarded")
    keys = directory / "auth.pem.pub"
    keys.write_bytes(KEY.public.pem())
    cache = tmp_path_factory.getbasetemp() / "bases"
    arguments = ["--base-cache", str(cache), "--auth-keys", str(keys), "--reflection"]
    server = launch(directory, command(tiny_base, directory / "registry", *arguments))
    yield server
    server.end()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapter")
    write_lora(directory, tiny_model())
    return directory


def code_of(server: ServerProcess, method: Any, *metadata: tuple[str, str]) -> grpc.StatusCode:
    """How a call with an empty message ends."""
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    path = f"/{method.containing_service.full_name}/{method.name}"
    request = iter([b""]) if method.client_streaming else b""
    try:
        answer = getattr(server.channel(), shape)(path)(request, metadata=metadata, timeout=200)
        if method.server_streaming:
            next(answer, None)
            answer.cancel()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_nobody_calls_anything_without_a_token_nor_with_one_of_no_scope(guarded: ServerProcess) -> None:
    wrong = (("authorization", f"Bearer {token(aud='else')}"),)
    powerless = (("authorization", f"Bearer {token(scope='')}"),)
    assert len(METHODS) > 35
    for method in METHODS:
        assert code_of(guarded, method) == grpc.StatusCode.UNAUTHENTICATED, method.name
        assert code_of(guarded, method, *wrong) == grpc.StatusCode.UNAUTHENTICATED, method.name
        denied = code_of(guarded, method, *powerless) == grpc.StatusCode.PERMISSION_DENIED
        assert denied is (method.name not in FOR_ANYBODY_WITH_A_TOKEN), method.name


def test_probes_come_in(guarded: ServerProcess) -> None:
    assert Client(guarded.ready["grpc"]).health() == "SERVING"
    assert guarded.get("/health")[0] == 200


def test_a_publisher_publishes_under_its_names_alone(guarded: ServerProcess, adapter: Path) -> None:
    address = guarded.ready["grpc"]
    with Client(address, token=token(sub="ci", scope="read publish:team/*"), retry=NO_RETRY) as client:
        published = client.publish_directory(adapter, "team/pirate", tags=["v1"])
        assert client.get_adapter("team/pirate:v1").digest == published.adapter.digest
        with pytest.raises(PermissionDenied, match="ci: the token lacks the scope publish:other/pirate") as error:
            client.publish_directory(adapter, "other/pirate")
        assert error.value.reason == "SCOPE_MISSING"
        with pytest.raises(PermissionDenied, match="tag:team/pirate"):
            client.delete_tag("team/pirate", "v1")
        with pytest.raises(PermissionDenied, match="generate"):
            client.generate("hello", adapters=["team/pirate:v1"], max_new_tokens=1)

    async def ask() -> str:
        given = iter([token(scope="generate:team/*")] * 2)
        async with AsyncClient(address, token=lambda: next(given)) as other:
            answer = await other.generate("hello", adapters=["team/pirate:v1"], max_new_tokens=1)
            async with other.stream("hello", adapters=["team/pirate:v1"], max_new_tokens=1) as stream:
                async for _ in stream:
                    pass
            assert next(given, "none is left") == "none is left"
            return answer.adapters[0].digest

    assert asyncio.run(ask()) == published.adapter.digest
    events = [json.loads(line) if line.startswith("{") else line for line in guarded.log.splitlines()]
    told = [str(event) for event in events if "permitted" in str(event)]
    assert any("ci" in line and "publish:team/pirate" in line and "not_" not in line for line in told)
    assert any("not_permitted" in line and "publish:other/pirate" in line for line in told)
    assert "eyJ" not in guarded.log  # as every token begins


def test_the_token_names_the_tenant(guarded: ServerProcess) -> None:
    def cached_tokens(**claims: str) -> int:
        with Client(guarded.ready["grpc"], token=token(scope="generate", **claims)) as client:
            return client.generate(PROMPT, max_new_tokens=1, ignore_eos=True).usage.cached_prompt_tokens

    shared = len(PROMPT) // 16 * 16
    assert [cached_tokens(sub=name) for name in ("eve", "bob", "eve")] == [0, 0, shared]
    assert cached_tokens(sub="eve", tenant="bob") == shared


def test_the_command_line_makes_tokens_and_carries_them(guarded: ServerProcess, adapter: Path, tmp_path: Path) -> None:
    private, file = tmp_path / "auth.pem", tmp_path / "token"
    private.write_bytes(KEY.pem())

    def hotshoe(*words: str, code: int = 0, **environment: str) -> str:
        given = {"HOTSHOE_SERVER": guarded.ready["grpc"], "HOTSHOE_TOKEN": "", "HOTSHOE_TOKEN_FILE": ""} | environment
        result = CliRunner().invoke(command_line(), words, env=given)
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return result.stdout if code == 0 else result.stderr

    assert "HOTSHOE_TOKEN" in hotshoe("ls", code=5)
    new = ("token", "new", "--key", str(private), "--subject", "ci", "--scope", "read", "--scope", "publish:cli/*")
    made = hotshoe(*new, "--for", "0.5").strip()
    file.write_text(made + "\n")
    hotshoe("publish", str(adapter), "cli/one:v1", HOTSHOE_TOKEN=made)
    assert "cli/one" in hotshoe("ls", HOTSHOE_TOKEN_FILE=str(file))
    assert "publish:two" in hotshoe("publish", str(adapter), "two", code=5, HOTSHOE_TOKEN=made)
    told = hotshoe("token", "show", str(file))
    assert "ci" in told and "read publish:cli/*" in told and "for 30 minutes" in told
    assert "scope: expected generate" in hotshoe(*new, "--scope", "everything", code=2)
    assert "would go to" in hotshoe("ls", "--server", "192.0.2.1:50051", code=2, HOTSHOE_TOKEN=made)


def test_a_server_does_not_start_with_keys_that_are_none(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(KEY.pem())
    with pytest.raises(AssertionError, match="--auth-keys: .*expected public keys in PEM"):
        launch(tmp_path, command(tiny_base, tmp_path / "registry", "--auth-keys", str(tmp_path / "keys")))
